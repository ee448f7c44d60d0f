"""Downloads: resumed, retried and checked, or failed with a helpful message."""

import errno
import functools
import re
from pathlib import Path

import pytest

from edgecnn.data import download
from edgecnn.data.download import fetch
from edgecnn.errors import DatasetError, DownloadError, OutputError

DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Record the pauses between attempts instead of waiting."""
    taken = []
    monkeypatch.setattr(download.time, "sleep", taken.append)
    return taken


@pytest.fixture
def remote(server):
    server.files["file.bin"] = DATA

    def check(path: Path) -> None:
        if path.read_bytes() != DATA:
            raise DatasetError(f"{path} is something else")

    return functools.partial(
        fetch, f"{server.url}file.bin", check=check, offline="Offline: put file.bin into a folder."
    )


def test_a_download_is_complete_and_shows_progress(server, remote, tmp_path, monkeypatch):
    monkeypatch.setattr("edgecnn.data.items.PROGRESS_S", 0.0)
    calls = []
    remote(tmp_path / "new" / "file.bin", lambda *call: calls.append(call))
    assert (tmp_path / "new" / "file.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert calls[0] == ("downloading file.bin", 0, len(DATA))
    assert calls[-1] == ("downloading file.bin", len(DATA), len(DATA))
    assert [call[1] for call in calls] == sorted(call[1] for call in calls)
    assert len(calls) > 2


def test_progress_is_called_at_most_ten_times_per_second(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK_BYTES", 64)
    monkeypatch.setattr("edgecnn.data.items.PROGRESS_S", 3600.0)
    calls = []
    remote(tmp_path / "file.bin", lambda *call: calls.append(call))
    assert [call[1] for call in calls] == [0, len(DATA)]


def test_a_cut_connection_is_resumed_where_it_stopped(server, remote, tmp_path, pauses):
    server.cuts = [300_000, 200_000]
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert [wish for _, wish in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert pauses == [1.0, 2.0]


def test_a_part_file_of_an_earlier_command_is_resumed(server, remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA[:1000])
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.asked == [("file.bin", "bytes=1000-")]


def test_a_complete_part_file_needs_no_more_bytes(server, remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA)
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_a_server_without_ranges_starts_over(server, remote, tmp_path):
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(DATA[:1000])
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_a_passing_server_error_is_retried(server, remote, tmp_path, pauses):
    server.statuses = [503, 500]
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert pauses == [1.0, 2.0]


def test_a_missing_file_is_not_retried(server, remote, tmp_path, pauses):
    del server.files["file.bin"]
    with pytest.raises(DownloadError, match="HTTP 404 Not Found"):
        remote(tmp_path / "file.bin")
    assert len(server.asked) == 1 and pauses == []
    assert list(tmp_path.iterdir()) == []


def test_attempts_end_and_the_part_stays_for_the_next_command(server, remote, tmp_path):
    server.cuts = [1000] * download.ATTEMPTS
    with pytest.raises(DownloadError, match=r"4,000 of 1,048,576 bytes"):
        remote(tmp_path / "file.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.part"]
    remote(tmp_path / "file.bin")
    assert server.asked[-1] == ("file.bin", "bytes=4000-")


def test_wrong_bytes_are_deleted(server, remote, tmp_path):
    server.files["file.bin"] = DATA[:-1] + b"!"
    with pytest.raises(DownloadError, match="did not send the expected file; what it sent was deleted") as failure:
        remote(tmp_path / "file.bin")
    assert failure.value.exit_code == 9
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_part_is_deleted_so_that_the_next_command_succeeds(remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError):
        remote(tmp_path / "file.bin")
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_a_part_longer_than_the_file_is_deleted(remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA + b"more")
    with pytest.raises(DownloadError):
        remote(tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_a_download_error_with_reason_and_advice(server, remote, tmp_path, pauses):
    closed = functools.partial(fetch, "http://127.0.0.1:9/file.bin", **remote.keywords)
    with pytest.raises(DownloadError) as failure:
        closed(tmp_path / "file.bin")
    assert str(failure.value) == (
        "cannot download http://127.0.0.1:9/file.bin: Connection refused.\nOffline: put file.bin into a folder."
    )
    assert pauses == [1.0, 2.0, 4.0]


def test_a_full_disk_is_an_output_error_and_the_download_resumes_later(server, remote, tmp_path, file_limit):
    with file_limit(500_000), pytest.raises(OutputError, match=re.escape(f"{tmp_path}/file.bin.part: File too large")):
        remote(tmp_path / "file.bin")
    assert len(server.asked) == 1  # a full disk is not retried
    assert (tmp_path / "file.bin.part").stat().st_size == 500_000
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.asked[-1] == ("file.bin", "bytes=500000-")


def test_a_folder_that_cannot_be_made_is_an_output_error(server, remote, tmp_path):
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(OutputError, match="Not a directory") as failure:
        remote(tmp_path / "taken" / "deeper" / "file.bin")
    assert failure.value.__cause__.errno == errno.ENOTDIR
    assert server.asked == []
