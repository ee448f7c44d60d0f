"""Addresses of several machines that train together."""

import os

import pytest

from edgecnn.errors import ClusterError
from edgecnn.workers import TF_CONFIG, Workers, read_workers


@pytest.mark.parametrize(
    ("text", "index", "message"),
    [
        ("localhost:1", 0, "two or more different addresses"),
        ("a:1,a:1", 0, "two or more different addresses"),
        ("a:1,b", 0, "received 'b'"),
        ("a:1,:2", 0, "received ':2'"),
        ("a:1,b:99999", 0, "received 'b:99999'"),
        ("a:1,b:2", 2, "0 to 1; received 2"),
        ("a:1,b:2", -1, "received -1"),
        ("a:1,b:2", None, "received None"),
    ],
)
def test_wrong_addresses(text, index, message):
    with pytest.raises(ClusterError, match=message):
        read_workers(text, index)


def test_workers_are_announced(monkeypatch):
    monkeypatch.setenv(TF_CONFIG, "")
    assert read_workers("a:1,b:2", 0).first
    workers = read_workers("a:1, b:2", 1)
    assert workers == Workers(addresses=("a:1", "b:2"), index=1) and not workers.first
    workers.announce()
    assert os.environ[TF_CONFIG] == '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
