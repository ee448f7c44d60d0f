"""Labelled images: named datasets, and any folder or zip of images."""

import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgecnn.data.dataset import Conflict, Dataset, Duplicate, Known, Split, known_images
from edgecnn.data.folder import open_folder, with_unseen
from edgecnn.data.items import LabelledImages, Note, Progress
from edgecnn.data.named import (
    VARIABLE,
    data_home,
    is_cifar10,
    is_fashion_mnist,
    open_cifar10,
    open_digits,
    open_fashion_mnist,
    read_cifar10,
    read_fashion_mnist,
)
from edgecnn.errors import DatasetError, UnknownNameError, nearest
from edgecnn.recipe import DataRecipe, source_kind
from edgecnn.runs import Run

__all__ = [
    "DATASETS",
    "PREFIXES",
    "Conflict",
    "Dataset",
    "Duplicate",
    "Progress",
    "Split",
    "known_images",
    "open_dataset",
    "open_run_dataset",
]

DATASETS: Mapping[str, Callable[[Progress | None], LabelledImages]] = {
    "cifar10": open_cifar10,
    "fashion-mnist": open_fashion_mnist,
    "digits": open_digits,
}
"""Datasets by name. The first line of each function's docstring describes its dataset."""

PREFIXES = {"frigate": "edgecnn.interop:open_frigate"}
"""Kinds of folders that a source names before its path, as in "frigate:PATH", and their openers; others are recognised by content."""


def open_dataset(
    recipe: DataRecipe,
    *,
    progress: Progress | None = None,
    for_training: bool = True,
    note: Note = lambda text: None,
    known: Known | None = None,
) -> Dataset:
    """Find, list, hash and divide a dataset; images are not decoded yet.

    The images of `recipe.unseen`, if set, are the test split, and those of `recipe.source` only train and validate. Both are a name in
    DATASETS, or a path, with or without one of PREFIXES, also relative to $EDGECNN_DATA; a name goes first. `for_training` requires a
    training image of every class, no empty split and no faulty folder; `note` gets lines to print; `known` are the images to keep to.

    UnknownNameError, DatasetError, UnsafeArchiveError, DownloadError or OutputError on failure.
    """
    listed = _listed(recipe.source, progress, for_training)
    if recipe.unseen:
        listed = with_unseen(listed, _listed(recipe.unseen, progress, for_training))
    return Dataset(listed, recipe, for_training, note, known)


def _listed(source: str, progress: Progress | None, for_training: bool) -> LabelledImages:
    if source in DATASETS:
        return DATASETS[source](progress)
    kind, where = source_kind(source)
    path = _find(where)
    if path is None:
        home = data_home()
        below = f"or below {home} ({VARIABLE})" if home else f"({VARIABLE} can name another place; it is not set)"
        if kind:
            raise UnknownNameError(f"there is no {where or 'path'!r} here {below}: expected a folder of {kind}.")
        raise UnknownNameError(
            f"{source!r} is neither a dataset's name nor a folder or zip of images here {below}.\n"
            f"{nearest(source, DATASETS)}"
        )
    if kind:
        opened: LabelledImages = pkgutil.resolve_name(PREFIXES[kind])(path, progress, not for_training)
        return opened
    if is_cifar10(path):
        return read_cifar10(path, progress)
    if is_fashion_mnist(path):
        return read_fashion_mnist(path, progress)
    if path.suffix == ".edgecnn":
        raise DatasetError(
            f"{path} is a bundle, which holds a model and not the photos that it learnt from. Expected a folder or zip of images, "
            "with a folder for each class: name that with --data, and a bundle with --model or --against."
        )
    return open_folder(path, progress, not for_training)


def open_run_dataset(
    run: Run, *, source: str | None = None, progress: Progress | None = None, note: Note = lambda text: None
) -> Dataset:
    """Open the data of a run, at `source` if they moved, without images added later. Errors as in `open_dataset`, and RunError."""
    recipe = run.recipe.data if source is None else replace(run.recipe.data, source=source)
    return open_dataset(recipe, progress=progress, for_training=False, note=note, known=known_images(run))


def _find(source: str) -> Path | None:
    path = Path(os.path.expanduser(source))
    candidates = [path, *(home / path for home in [data_home()] if home)]
    return next((candidate for candidate in candidates if source and os.path.exists(candidate)), None)
