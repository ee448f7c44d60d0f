"""The service itself: choose a release, test it, classify the camera's frames, change over to another; without a network, if it needs none.

A systemd unit cannot depend on the options. A process can set a filter of system calls (seccomp(2)) itself; the filter also applies to its
child processes and cannot be removed.

It judges a release and feeds systemd's watchdog: only classified frames count. See sd_notify(3).

Without a release it waits for one, since the bundle that ships with edgecnn knows nothing about this camera's scene.
"""

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgecnn.bundle.file import read_bundle
from edgecnn.device.doctor import RELEASE_YEAR
from edgecnn.device.service.config import Config
from edgecnn.device.slots.record import BAD, GOOD, NO_RELEASE, PENDING, Slots
from edgecnn.device.slots.store import Choice, Store, approve, choose_for_start, condemn
from edgecnn.device.stream.events import Event, FrameResult, ProblemEvent, RateLimiter, ReleaseEvent, StateChangedEvent
from edgecnn.device.stream.loop import Consumer, Item, open_stream
from edgecnn.errors import EdgeCNNError, SlotError
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.selftest import require_pass, selftest

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K

NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; for the argument, the lower half on little-endian machines."""


MACHINES = {
    "x86_64": (0xC000003E, 41),
    "aarch64": (0xC00000B7, 198),
    "armv7l": (0x40000028, 281),
    "armv6l": (0x40000028, 281),
    "riscv64": (0xC00000F3, 198),
}
"""For each processor, the kernel's AUDIT_ARCH_… number and the number of socket(2)."""


def close_network() -> str:
    """Refuse every new socket that is not AF_UNIX from now on; return why that fails, or ""."""
    if platform.machine() not in MACHINES:
        return f"unknown processor {platform.machine()}"
    architecture, number_of_socket = MACHINES[platform.machine()]
    steps = (
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 0, 5, architecture),
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 3, number_of_socket),
        (LOAD, 0, 0, ARGUMENT),
        (EQUAL, 1, 0, socket.AF_UNIX),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    # struct sock_filter: code, jump if true, jump if false, value; struct sock_fprog: their number and address
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(instructions)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    filtered = PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(*filtered):
        return errno.errorcode.get(ctypes.get_errno(), "an unknown error")
    return ""


def is_closed() -> bool:
    """Return whether this process has closed its network, perhaps before an exec."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno == errno.EAFNOSUPPORT
    return False


def notify(text: str) -> None:
    """Send assignments, such as "READY=1", to the service manager, if any. Drop them if they cannot be sent immediately."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


FEED_EVERY_S = 1.0

AGAIN_S = 60.0  # seconds until the next attempt to record a release as good, after a full disk for example


class Judge(Consumer):
    """Counts the fresh frames of a release until it is good, and feeds the watchdog with each."""

    def __init__(
        self,
        release: str,
        name: str,
        frames: int,
        approve: Callable[[], list[str]],
        *,
        tell: Callable[[str], object] = notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`frames` is the number that makes the release good. `approve` records that, and returns any problems."""
        self._release, self._name, self._left = release, name, frames
        self._approve, self._tell = approve, tell
        self._feeds, self._tries = RateLimiter(FEED_EVERY_S, clock), RateLimiter(AGAIN_S, clock)

    def take(self, item: Item) -> Iterable[Event]:
        """Count a frame; report a change of the state to the service manager."""
        if isinstance(item, StateChangedEvent):
            self._tell(f"STATUS=state: {'none' if item.state is None else repr(item.state)}")
        if not isinstance(item, FrameResult):
            return ()
        if self._feeds.count():
            self._tell("WATCHDOG=1")
        if self._left > 1:
            self._left -= 1
        elif self._left and self._tries.count():
            if problems := self._approve():
                return [ProblemEvent(ts=item.ts, source=item.source, about="disk", message=text) for text in problems]
            self._left = 0
            what = {"release": self._release, "name": self._name, "state": GOOD}
            return [ReleaseEvent(ts=item.ts, source=item.source, **what, reason=None)]
        return ()


LOOK_EVERY_S = 1.0

WAIT_S = 0.1  # seconds between checks for a signal, while it waits for a release

START_S = 180  # seconds that a new process may take until its first frame, as in the unit

CHANGED, ENDED = "changed", "ended"  # a new process must load another release; the source has ended


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the service talks to. `check` is called at least every tenth of a second and raises to stop; `tell` is systemd's notify."""

    report: Callable[[Item], object]
    check: Callable[[], object] = bool
    consumers: Callable[[Classifier], list[Consumer]] = lambda classifier: []
    tell: Callable[[str], object] = notify
    wall: Callable[[], float] = time.time

    def problem(self, about: str, message: str) -> None:
        self.report(ProblemEvent(ts=self.wall(), source="", about=about, message=message))

    def release(self, release: str, name: str, state: str, reason: str | None = None) -> None:
        event = ReleaseEvent(ts=self.wall(), source="", release=release, name=name, state=state, reason=reason or None)
        self.report(event)


def run_service(store: Store, config: Config, around: Surroundings) -> str:
    """Run the service; return CHANGED or ENDED. EdgeCNNError if a good release cannot be loaded."""
    year = time.gmtime(around.wall()).tm_year
    if year < RELEASE_YEAR:
        around.problem(
            "clock", f"it shows the year {year}: times are wrong and TLS fails until it is set. Everything else works."
        )
    before, look = read(store), RateLimiter(LOOK_EVERY_S)
    prepared = prepare_release(store, around, config)
    if prepared is None:
        wait(store, before, around)
        return change_over(around)
    choice, classifier = prepared
    release = str(choice.release)
    frames = config.good_after if choice.pending else 0
    judge = Judge(release, classifier.name, frames, lambda: approve(store, release), tell=around.tell)
    consumers = [judge, *around.consumers(classifier)]
    stream = open_stream(config.source or None, classifier, config.settings, consumers=consumers)
    around.tell(f"READY=1\nSTATUS=waiting for the camera{watchdog(os.environ.get('WATCHDOG_USEC'))}")
    with stream:
        for item in stream.ticks():
            around.check()
            if item is not None:
                around.report(item)
            if look.count() and (slots := read(store)) != before and slots.current != release:
                return change_over(around)
    return ENDED


def change_over(around: Surroundings) -> str:
    """Give the next process the time limit of a start, and return CHANGED."""
    around.tell(f"STATUS=changing over{watchdog(START_S * 1_000_000)}")
    return CHANGED


def wait(store: Store, before: Slots, around: Surroundings) -> None:
    """Report what to do, and wait until the record has changed and a release is in use. Meanwhile, feed the watchdog."""
    around.problem("release", f"{NO_RELEASE}.")
    around.tell(f"READY=1\nSTATUS={NO_RELEASE}{watchdog(os.environ.get('WATCHDOG_USEC'))}")
    feed, look = RateLimiter(FEED_EVERY_S), RateLimiter(LOOK_EVERY_S)
    while not look.count() or (slots := read(store)) == before or slots.current is None:
        around.check()
        if feed.count():
            around.tell("WATCHDOG=1")
        time.sleep(WAIT_S)


def watchdog(microseconds: int | str | None) -> str:
    """Return the part of a message that resets the watchdog's limit; "" for None, without a watchdog."""
    return "" if microseconds is None else f"\nWATCHDOG_USEC={microseconds}"


def prepare_release(store: Store, around: Surroundings, config: Config) -> tuple[Choice, Classifier] | None:
    """Choose and load a release, or return None. A pending one must pass its self-test. EdgeCNNError if a good one cannot be loaded."""
    avoid: set[str] = set()
    while True:
        choice = choose_for_start(store, avoid)
        for problem in choice.problems:
            around.problem("disk", problem)
        for release, about in choice.refused.items():
            around.release(release, about.name, BAD, about.reason)
        if choice.release is None:
            return None
        path = store.path(choice.release)
        try:
            if choice.pending:
                require_pass(selftest(read_bundle(path), apart=True))
            classifier = Classifier.load(path, strangers=config.strangers, num_threads=config.threads)
        except EdgeCNNError as error:
            if not choice.pending:
                raise
            avoid.add(choice.release)
            around.release(choice.release, choice.name, BAD, str(error))
            for problem in condemn(store, choice.release, str(error)):
                around.problem("disk", problem)
            continue
        around.release(choice.release, classifier.name, PENDING if choice.pending else GOOD)
        return choice, classifier


def read(store: Store) -> Slots:
    """Return the record of releases; an empty one if it cannot be read."""
    try:
        return store.read()
    except SlotError:
        return Slots()
