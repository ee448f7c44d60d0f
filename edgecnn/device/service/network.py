"""Run the service without a network: unless its options need one, the kernel refuses it any new socket except local ones.

A systemd unit cannot depend on the options. A process can set a filter of system calls (seccomp(2)) itself; the filter also applies to its
child processes and cannot be removed.
"""

import ctypes
import errno
import platform
import socket
from typing import NamedTuple

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K

NUMBER, ARCHITECTURE, ARGUMENT = (
    0,
    4,
    16,
)  # offsets in struct seccomp_data; for the argument, the lower half on little-endian machines


class Machine(NamedTuple):
    """The kernel's AUDIT_ARCH_… number for a processor, and the number of socket(2) on it."""

    architecture: int
    socket: int


MACHINES = {
    "x86_64": Machine(0xC000003E, 41),
    "aarch64": Machine(0xC00000B7, 198),
    "armv7l": Machine(0x40000028, 281),
    "armv6l": Machine(0x40000028, 281),
    "riscv64": Machine(0xC00000F3, 198),
}


class Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("then", ctypes.c_uint8),
        ("otherwise", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction)))


def close_network() -> str:
    """Refuse every new socket that is not AF_UNIX from now on; return why that fails, or ""."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        return f"unknown processor {platform.machine()}"
    steps = (
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 0, 5, machine.architecture),
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 3, machine.socket),
        (LOAD, 0, 0, ARGUMENT),
        (EQUAL, 1, 0, socket.AF_UNIX),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    instructions = (Instruction * len(steps))(*(Instruction(*step) for step in steps))
    program = Program(len(steps), instructions)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0
    ):
        return errno.errorcode.get(ctypes.get_errno(), "an unknown error")
    return ""


def is_closed() -> bool:
    """Return whether this process has closed its network, perhaps before an exec."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno == errno.EAFNOSUPPORT
    return False
