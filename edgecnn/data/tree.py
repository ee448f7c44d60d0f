"""The layouts that a folder or a zip of images may have.

DIR/<class>/* or DIR/{train,val,validation,test}/<class>/*, possibly below one enclosing folder. The tree
has no hidden entries and no __MACOSX: its maker leaves them out.
"""

from dataclasses import dataclass, field
from typing import Any

from edgecnn.errors import DatasetError
from edgecnn.images import SUFFIXES, left_out
from edgecnn.labels import why_not_a_label

SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

LAYOUT = "Expected DIR/<class>/<image> or DIR/{train,val,test}/<class>/<image>."


@dataclass(kw_only=True)
class Folder:
    """Names in a folder: its folders, and its files with the handles to read them."""

    folders: dict[str, "Folder"] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """Sorted names of the files that count as images."""
        return sorted(name for name in self.files if name.lower().endswith(SUFFIXES))


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image file. `path` is relative, with slashes."""

    split: str
    label: str
    path: str
    handle: Any


LEFT_OUT = "left-out.json"
"""What `edgecnn inspect` writes among the images of a cleaned copy: which ones it left out."""


def hidden(name: str) -> bool:
    """Tell whether a file or folder name is one to leave out without a word."""
    return name.startswith(".") or name in ("__MACOSX", LEFT_OUT)


def find_images(root: Folder, where: str) -> tuple[list[ImageFile], list[str]]:
    """List the images of a tree by its layout, of at least two classes.

    Args:
        root: the tree.
        where: what messages call it.

    Returns:
        The images (split "train" where the layout has no splits), and the paths of files that are not images.

    Raises:
        DatasetError: if no layout fits, a class folder is empty, there are fewer than two classes, or validation or test have a class
            that train lacks.
    """
    prefix = ""
    if len(root.folders) == 1 and not root.images:
        (name, inner), *_ = root.folders.items()
        if inner.folders and not inner.images and name.lower() not in SPLIT_FOLDERS:
            root, prefix = inner, f"{name}/"
    result: list[ImageFile] = []
    skipped = [prefix + name for name in sorted(root.files)]
    outer = root.folders.items()
    if outer and all(name.lower() in SPLIT_FOLDERS and not folder.images for name, folder in outer):
        for name, folder in sorted(root.folders.items()):
            if not folder.folders:
                raise DatasetError(f"{where}: the split folder {prefix}{name}/ has no class folders. {LAYOUT}")
            skipped += [f"{prefix}{name}/{file}" for file in sorted(folder.files)]
            _collect(folder, SPLIT_FOLDERS[name.lower()], f"{prefix}{name}/", where, result, skipped)
    else:
        _collect(root, "train", prefix, where, result, skipped)
    labels = sorted({image.label for image in result})
    if not labels:
        raise DatasetError(f"{where} has no class folders, so no image has a label. {LAYOUT}")
    if len(labels) == 1:
        raise DatasetError(f"{where} has only one class, {labels[0]!r}; a classifier needs two or more. {LAYOUT}")
    for label in labels:
        if why := why_not_a_label(label):
            raise DatasetError(
                f"{where}: the class folder {label!r} cannot be a class: {why}.\nRename the folder, for example to 'other'."
            )
    _require_same_classes(result, where)
    return result, skipped


def _require_same_classes(images: list[ImageFile], where: str) -> None:
    """Raise DatasetError if validation or test have a class that train, where there is one, does not have."""
    classes: dict[str, set[str]] = {}
    for image in images:
        classes.setdefault(image.split, set()).add(image.label)
    training = classes.get("train", set())
    for split, labels in classes.items():
        if training and (unknown := labels - training):
            missing = training - labels
            raise DatasetError(
                f"{where}: {split} has classes that train does not have: {_quoted(unknown)}"
                + (f"; and train has classes that {split} does not have: {_quoted(missing)}" if missing else "")
                + ".\nGive all splits the same class folders."
            )


def _quoted(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _collect(folder: Folder, split: str, prefix: str, where: str, result: list[ImageFile], skipped: list[str]) -> None:
    """Add the images of each class folder to `result` and its other files to `skipped`."""
    for label, inner in sorted(folder.folders.items()):
        place = f"{prefix}{label}/"
        images = inner.images
        if inner.folders:
            raise DatasetError(
                f"{where}: {place} must hold only images, but holds the folder {min(inner.folders)!r}. {LAYOUT}"
            )
        if not images:
            reason = left_out(inner.files) or f"images end in {' '.join(SUFFIXES)}."
            raise DatasetError(
                f"{where}: the class folder {place} has no images: {reason}\nAdd some, or remove the folder."
            )
        result += [ImageFile(split=split, label=label, path=place + name, handle=inner.files[name]) for name in images]
        skipped += [place + name for name in sorted(set(inner.files).difference(images))]


def insert(root: Folder, parts: list[str], handle: Any) -> None:
    """Put a file (or, with handle None, a folder) into a tree.

    Raises:
        ValueError: if the name is taken.
    """
    *above, name = parts
    for part in above:
        if part in root.files:
            raise ValueError(f"{part!r} is both a file and a folder")
        root = root.folders.setdefault(part, Folder())
    if name in root.files or (handle is not None and name in root.folders):
        raise ValueError(f"{'/'.join(parts)!r} is in it twice")
    if handle is None:
        root.folders.setdefault(name, Folder())
    else:
        root.files[name] = handle
