"""System calls that change a disk, held at the door: another process decides what becomes of each.

Linux's seccomp has a kernel filter stop such a call before it is carried out and notify the holder of the
listener, which lets it proceed or makes it fail with an error number. So the moments of a run can be counted
one by one, those of SQLite's own code included, and a fault put at exactly the n-th. It needs no rights
and no debugger. What a process changes in memory that is mapped to a file is not a call and is not seen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from dataclasses import dataclass

# By number on x86-64. Reading, locking and closing change nothing on a disk.
CALLS = {
    1: "write",
    18: "pwrite64",
    20: "writev",
    26: "msync",
    40: "sendfile",
    44: "sendto",
    74: "fsync",
    75: "fdatasync",
    76: "truncate",
    77: "ftruncate",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    86: "link",
    87: "unlink",
    88: "symlink",
    90: "chmod",
    91: "fchmod",
    257: "openat",
    258: "mkdirat",
    263: "unlinkat",
    264: "renameat",
    265: "linkat",
    266: "symlinkat",
    268: "fchmodat",
    277: "sync_file_range",
    285: "fallocate",
    296: "pwritev",
    306: "syncfs",
    316: "renameat2",
    326: "copy_file_range",
    328: "pwritev2",
}
_WRITE, _OPENAT = 1, 257

_SYS_SECCOMP = 317
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
# A listener; and a call that was handed to it waits for its answer whatever signal arrives.
_NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_RETURN_ALLOW, _RETURN_NOTIFY = 0x7FFF0000, 0x7FC00000
_NOTIFICATION_BYTES = 80
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1

# Of the filter's machine: load a word of the call's description, compare it, answer.
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x25, 0x45, 0x06
_AT_NUMBER, _AT_FIRST_ARGUMENT, _AT_THIRD_ARGUMENT = 0, 16, 32


@dataclass(frozen=True, slots=True)
class Call:
    """A call that waits for an answer."""

    identifier: int
    name: str


class Listener:
    """The calls of every process below the filter, one after another."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def receive(self, timeout_seconds: float) -> Call | None:
        """Return the next call; None when no process is left that could make one.

        Raises:
            TimeoutError: nothing happened.
        """
        buffer = bytearray(_NOTIFICATION_BYTES)
        while ready := self._poll.poll(timeout_seconds * 1000):
            if not ready[0][1] & select.POLLIN:
                return None
            try:
                fcntl.ioctl(self._descriptor, _RECEIVE, buffer)
            except FileNotFoundError:
                continue
            identifier, _, _, number = struct.unpack_from("=QIIi", buffer)
            return Call(identifier, CALLS[number])
        raise TimeoutError(f"no system call within {timeout_seconds} seconds")

    def proceed(self, call: Call) -> None:
        """Let the kernel carry it out."""
        self._answer(struct.pack("=QqiI", call.identifier, 0, 0, _CONTINUE))

    def fail(self, call: Call, error_number: int) -> None:
        """Make the call return this error; nothing is carried out."""
        self._answer(struct.pack("=QqiI", call.identifier, 0, -error_number, 0))

    def close(self) -> None:
        """Give the listener up: every further call fails."""
        os.close(self._descriptor)

    def _answer(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self._descriptor, _SEND, response)
        except OSError as error:
            # The process was killed meanwhile.
            if error.errno != errno.ENOENT:
                raise


def install_filter() -> int:
    """Put this process and all that it starts below the filter; the listener's descriptor.

    Writes to the standard streams are let through unseen, and so is opening a file that exists.

    Raises:
        OSError: this kernel cannot do it, or may not.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    instructions = _instructions()
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    descriptor: int = library.syscall(
        _SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE_RECV, program
    )
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return descriptor


def why_unavailable() -> str | None:
    """Return why calls cannot be held here; None if they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "holding system calls is written for Linux on x86-64"
    # Once below a filter a process stays there, so another one tries.
    child = os.fork()
    if child == 0:
        try:
            install_filter()
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == 0 else f"seccomp's user notification is not to be had: {os.strerror(code)}"


def _instructions() -> list[bytes]:
    """Allow; but of ``CALLS`` notify, except for standard streams and opening without O_CREAT."""
    plain = [number for number in CALLS if number not in (_WRITE, _OPENAT)]
    # The two answers stand at the end; a jump counts from the instruction after it.
    body: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD, 0, 0, _AT_NUMBER),
        *((_EQUAL, "notify", 0, number) for number in plain),
        (_EQUAL, 0, 2, _WRITE),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_GREATER, "notify", "allow", 2),
        (_EQUAL, 0, "allow", _OPENAT),
        (_LOAD, 0, 0, _AT_THIRD_ARGUMENT),
        (_ANY_BIT, "notify", "allow", os.O_CREAT),
    ]
    answers = {"allow": len(body), "notify": len(body) + 1}

    def jump(target: int | str, here: int) -> int:
        return answers[target] - here - 1 if isinstance(target, str) else target

    packed = [
        struct.pack("=HBBI", code, jump(yes, here), jump(no, here), value)
        for here, (code, yes, no, value) in enumerate(body)
    ]
    return [*packed, *(struct.pack("=HBBI", _ANSWER, 0, 0, each) for each in (_RETURN_ALLOW, _RETURN_NOTIFY))]
