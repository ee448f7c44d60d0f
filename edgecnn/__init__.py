"""edgecnn: from labelled images to a verified int8 image classifier on a small board, whose device imports this: nothing heavy here."""

__version__ = "0.2.0"
