"""A disk that records its operations, and the states that a power cut can leave.

After a cut, synced data is there. Any combination of the rest may be missing: a name in a folder without the names created before it, or
a file with its name but empty or half written. That is more than real file systems lose.
"""

import itertools
from pathlib import Path

from edgecnn.device.slots.record import Disk


class Recorder(Disk):
    """The real disk, and a list of its operations: (method name, paths below `root`, data)."""

    def __init__(self, root):
        super().__init__(root)
        self.done = []

    def note(self, name, *arguments):
        self.done.append(
            (name, *(item.relative_to(self.root) if isinstance(item, Path) else item for item in arguments))
        )

    def make_folder(self, path):
        if not path.is_dir():
            self.note("make_folder", path)
        super().make_folder(path)

    def write(self, path, data):
        self.note("write", path, data)
        super().write(path, data)

    def sync(self, path):
        self.note("sync", path)
        super().sync(path)

    def rename(self, old, new):
        self.note("rename", old, new)
        super().rename(old, new)

    def remove(self, path):
        self.note("remove", path)
        super().remove(path)

    def remove_folder(self, path):
        self.note("remove_folder", path)
        super().remove_folder(path)


class File:
    """A file: its content on the disk, and the writes since."""

    def __init__(self, data=b""):
        self.data = self.now = data

    def outcomes(self):
        half = self.now[: len(self.now) // 2]
        return sorted({self.data, b"", half, self.now}) if self.now != self.data else [self.data]


class Folder:
    """A folder: the names on the disk, the current names, and the changes in between: (removed name, added name, entry)."""

    def __init__(self):
        self.names, self.now, self.changes = {}, {}, []

    def change(self, gone, name, what):
        self.changes.append((gone, name, what))
        self.now = changed(self.now, [self.changes[-1]])

    def sync(self):
        self.names, self.changes = dict(self.now), []


def changed(names, changes):
    names = dict(names)
    for gone, name, what in changes:
        names.pop(gone, None)
        if name is not None:
            names[name] = what
    return names


def load(root):
    """Return a folder of the real disk, fully synced."""
    folder = Folder()
    for path in root.iterdir():
        folder.now[path.name] = load(path) if path.is_dir() else File(path.read_bytes())
    folder.sync()
    return folder


def at(folder, path):
    for part in path.parts:
        folder = folder.now[part]
    return folder


def apply(top, step):
    """Replay one recorded step in memory."""
    name, path, *more = step
    folder = at(top, path.parent)
    if name == "sync":
        what = at(top, path)
        if isinstance(what, Folder):
            what.sync()
        else:
            what.data = what.now
    elif name == "write":
        if path.name in folder.now:
            folder.change(path.name, None, None)
        folder.change(None, path.name, File())
        folder.now[path.name].now = more[0]
    elif name == "make_folder":
        folder.change(None, path.name, Folder())
    elif name == "rename":
        folder.change(path.name, more[0].name, folder.now[path.name])
    else:
        folder.change(path.name, None, None)


def outcomes(what):
    """Yield what a power cut can leave now: bytes for a file, a dict for a folder."""
    if isinstance(what, File):
        yield from what.outcomes()
        return
    for kept in itertools.product((False, True), repeat=len(what.changes)):
        names = changed(what.names, itertools.compress(what.changes, kept))
        for contents in itertools.product(*(list(outcomes(inner)) for inner in names.values())):
            yield dict(zip(names, contents, strict=True))


def cuts(top, steps):
    """Yield each distinct state that a power cut before any step, or after the last, can leave."""
    for number in range(len(steps) + 1):
        seen = []
        for left in outcomes(top):
            if left not in seen:
                seen.append(left)
                yield number, left
        if number < len(steps):
            apply(top, steps[number])


def restore(left, folder):
    """Write the state after a power cut to the real disk."""
    folder.mkdir()
    for name, content in left.items():
        if isinstance(content, dict):
            restore(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def now(what):
    """Return a folder's or file's current state with the power on, in the form of `outcomes`."""
    return what.now if isinstance(what, File) else {name: now(inner) for name, inner in what.now.items()}


def syncs(top, steps):
    """Return the numbers of the steps that sync something unsynced."""
    numbers = []
    for number, step in enumerate(steps):
        what = at(top, step[1]) if step[0] == "sync" else None
        if (isinstance(what, Folder) and what.changes) or (isinstance(what, File) and what.now != what.data):
            numbers.append(number)
        apply(top, step)
    return numbers
