"""edgecnn: from labelled images to a verified int8 image classifier on a small board. Devices import this, so it must stay light."""

__version__ = "0.2.0"
