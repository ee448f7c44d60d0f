"""The labelled images of a Frigate custom classifier: clips/NAME/dataset/CLASS/*, as read by Frigate's own training."""

from dataclasses import replace
from pathlib import Path

from edgecnn.data.folder import open_folder, printable
from edgecnn.data.items import LabelledImages, Progress
from edgecnn.errors import DatasetError

INPUT = (224, 224, 3)

NONE = "none"
"""Frigate's class for an object that belongs to none of the others. This answer gives the object no sub label and no attribute."""

CLIPS = ("clips", "frigate/clips")
"""Where the clips are below a folder with Frigate's media. Below Home Assistant's, Frigate has its own folder."""

DATASET = "dataset"


def open_frigate(path: Path, progress: Progress | None = None, lenient: bool = False) -> LabelledImages:
    """The dataset of a Frigate custom classifier, at 224x224 RGB. PATH is Frigate's media folder or clips/NAME.

    `none` is a class like the others, left out if it has no images. Images without a class yet (clips/NAME/train) are not read.

    Raises:
        DatasetError: if there is no dataset, or several and none is named; also like `open_folder`.
    """
    folder = find_dataset(path)
    name = printable((folder.parent if folder.name == DATASET else folder).resolve().name) or "frigate"
    listed = open_folder(folder, progress, lenient, may_be_empty=(NONE,))
    return replace(listed, name=name, title=f"Frigate's {name}", shape=INPUT, place=None)


def find_dataset(path: Path) -> Path:
    """Return the dataset folder for a path of Frigate's. Raises DatasetError if it has no dataset, or several, which the message lists."""
    if not path.is_dir():
        raise DatasetError(
            f"frigate:{path} is not a folder. Expected Frigate's media folder, clips/NAME, or clips/NAME/{DATASET}."
        )
    if path.name == DATASET:
        return path
    if (path / DATASET).is_dir():
        return path / DATASET
    clips = next((path / below for below in CLIPS if (path / below).is_dir()), path)
    datasets = [folder / DATASET for folder in _folders(clips) if (folder / DATASET).is_dir()]
    if len(datasets) > 1:
        names = ", ".join(printable(dataset.parent.name) for dataset in datasets)
        raise DatasetError(
            f"{clips} holds the datasets of {len(datasets)} classifiers: {names}. Name one, such as "
            f"frigate:{datasets[0].parent}"
        )
    if datasets:
        return datasets[0]
    if clips == path and _folders(path):
        return path
    raise DatasetError(
        f"{clips} holds no Frigate dataset: expected NAME/{DATASET}/CLASS/*.png in it. Create the classifier on Frigate's page "
        "Classification, and assign classes to images there."
    )


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DatasetError(f"cannot list the folder {path}: {error.strerror or error}.") from None
