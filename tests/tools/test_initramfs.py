"""The emulated board's initramfs, tested without QEMU: the archive reads back, and modules follow their dependencies."""

import gzip
import lzma
import stat
import sys

import pytest


@pytest.fixture(scope="module")
def initramfs(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "tools" / "board"))
        import initramfs

        yield initramfs
        sys.modules.pop("initramfs")


def unpacked(archive):
    """Read a "newc" archive: names to (mode, content)."""
    entries, start = {}, 0
    while True:
        assert archive[start : start + 6] == b"070701" and start % 4 == 0
        fields = [int(archive[start + 6 + 8 * number : start + 14 + 8 * number], 16) for number in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[start + 110 : start + 110 + name_size - 1].decode()
        content = -(-(start + 110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = mode, archive[content : content + size]
        start = -(-(content + size) // 4) * 4


def test_an_archive_reads_back_with_the_folders_that_its_files_need(initramfs):
    files = {
        "init": initramfs.file(b"#!/bin/sh\n", 0o755),
        "usr/bin/tool": initramfs.file(b"x" * 5),
        "usr/lib/empty": initramfs.file(b""),
    }
    archive = initramfs.cpio(files)
    found = unpacked(archive)
    assert {name: found[name] for name in files} == files
    folders = {name: entry for name, entry in found.items() if name not in files}
    assert folders == dict.fromkeys(("usr", "usr/bin", "usr/lib"), (stat.S_IFDIR | 0o755, b""))
    assert list(found).index("usr") < list(found).index("usr/bin") < list(found).index("usr/bin/tool")
    assert gzip.decompress(initramfs.compressed(archive)) == archive
    assert initramfs.compressed(archive) == initramfs.compressed(initramfs.cpio(files)), (
        "the same files, the same bytes"
    )


def test_modules_follow_their_dependencies_and_appear_once(initramfs, tmp_path):
    def module(name, needs):
        return b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=" + name.encode() + b"\0"

    contents = {"fs/9p": module("9p", "9pnet,netfs"), "net/9pnet": module("9pnet", ""), "fs/netfs": module("netfs", "")}
    contents["media/v4l2-tpg"] = module("v4l2_tpg", "")
    contents["media/vivid"] = module("vivid", "v4l2-tpg,netfs")
    for name, content in contents.items():
        path = tmp_path / "kernel" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("media"):
            path.with_suffix(".ko.xz").write_bytes(lzma.compress(content))
        else:
            path.write_bytes(content)
    modules = initramfs.read_modules(tmp_path, ["9p", "vivid"])
    assert list(modules) == ["9pnet", "netfs", "9p", "v4l2_tpg", "vivid"]
    assert modules["vivid"] == contents["media/vivid"]
    with pytest.raises(FileNotFoundError, match="no module overlay"):
        initramfs.read_modules(tmp_path, ["overlay"])
