"""The boards that a command names, and work on several of them at the same time."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from edgecnn.tables import shown

T = TypeVar("T")

NAME = r"(?:\w[\w.+-]*@)?(?:\w[\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?)"
HOST = re.compile(rf"{NAME}|ssh://{NAME}(?::\d+)?", re.ASCII)
"""A host for ssh. ssh may pass it to a shell (ProxyCommand, Match exec), so no shell syntax is let through."""


def check_host(text: str) -> str:
    """Return a valid host for ssh, such as pi@door.local or ssh://pi@10.0.0.5:2222; ValueError if it is not one."""
    if not HOST.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a host: expected NAME, USER@NAME or ssh://USER@NAME:PORT")
    return text


def read_hosts(path: Path) -> list[str]:
    """Return the hosts in a file, one per line, in order; # starts a comment. ValueError names a line that is not a host."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                hosts.append(check_host(text))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    return hosts


def on_each(hosts: Iterable[str], jobs: int, work: Callable[[str], T], stop: Callable[[], object]) -> Iterator[T]:
    """Do some work for each host, once and at most `jobs` at a time; yield results as they arrive. `stop` is called if this ends early."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(work, host) for host in dict.fromkeys(hosts)]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
