"""edgecnn: from labelled images to a verified int8 image classifier on a small board.

The device imports this package too, so nothing heavy may be imported here.
"""

__version__ = "0.2.0"
