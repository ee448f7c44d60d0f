"""The place of local copies of datasets."""

import os
from pathlib import Path

from edgecnn.errors import DatasetError

VARIABLE = "EDGECNN_DATA"


def data_home() -> Path | None:
    """Return the folder that $EDGECNN_DATA names, or None if it is unset; DatasetError if it is not a folder."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if not os.path.isdir(text):
        raise DatasetError(
            f"{VARIABLE} is {text!r}, which is not a folder. Unset it, or set it to a folder of datasets."
        )
    return Path(text)
