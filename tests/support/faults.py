"""Commands run in real processes, with a fault at exactly the system call that a test chooses.

A server process imports everything once; each command runs in a child forked from it, as the command
line itself, so a trial costs the work and not the imports. The child's calls come through
``faults_calls``; what to do about each is the test's decision.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

from .faults_calls import Call, Listener, install_filter
from .patience import PATIENCE_SECONDS
from .warm import warm_context


class Fault(Enum):
    """A fault of the process at a call, which is not carried out if the process dies there."""

    KILL = auto()
    INTERRUPT = auto()


# Takes words, and returns an exit code; of a module that a child can import.
Program = Callable[[list[str]], int]
# Called with the number of a call, from 1, and its name; an integer is the error number to fail it with.
Decide = Callable[[int, str], Fault | int | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a command; ``code`` is negative after a signal, ``calls`` are those that were let through.

    ``seconds`` is from where it could first be killed to its end.
    """

    code: int
    stdout: str
    stderr: str
    calls: tuple[str, ...]
    seconds: float


def run_command(
    arguments: Sequence[str | Path],
    decide: Decide | None = None,
    *,
    kill_after_seconds: float | None = None,
    user: int | None = None,
    program: Program | None = None,
) -> Outcome:
    """Run a command line to its end, with every call that changes a disk decided by ``decide``.

    Args:
        arguments: the command line.
        decide: what to do about each call; by default nothing.
        kill_after_seconds: kill it at a moment that the clock chooses, wherever it is then.
        user: the number of the user who runs it, by default this one.
        program: what is run in place of the command line.
    """
    context = warm_context()
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(
            target=_run, args=([str(each) for each in arguments], folder, theirs, user, program), daemon=True
        )
        process.start()
        theirs.close()
        calls: list[str] = []
        if not ours.poll(PATIENCE_SECONDS):
            process.kill()
            raise TimeoutError(f"the process did not begin within {PATIENCE_SECONDS} seconds")
        listener = Listener(recv_handle(ours))
        try:
            assert process.pid is not None
            began = time.monotonic()
            deadline = None if kill_after_seconds is None else began + kill_after_seconds
            _answer_calls(listener, process.pid, decide or _let_pass, calls, deadline)
            seconds = time.monotonic() - began
            process.join(PATIENCE_SECONDS)
        finally:
            process.kill()
            listener.close()
            ours.close()
        assert process.exitcode is not None
        stdout, stderr = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        code = process.exitcode
        process.close()
    return Outcome(code, stdout, stderr, tuple(calls), seconds)


def kill_at(number: int) -> Decide:
    """Kill the process before its ``number``-th call, which is after the one before it."""
    return lambda found, name: Fault.KILL if found == number else None


def interrupt_at(number: int) -> Decide:
    """Press Ctrl-C while the call runs."""
    return lambda found, name: Fault.INTERRUPT if found == number else None


def fail_from(number: int, error_number: int, names: frozenset[str]) -> Decide:
    """Make every call of these names fail, from the ``number``-th call on."""
    return lambda found, name: error_number if found >= number and name in names else None


def _let_pass(number: int, name: str) -> None:
    """Return no fault."""


def _answer_calls(
    listener: Listener, process: int, decide: Decide, calls: list[str], deadline: float | None
) -> None:
    while True:
        left = PATIENCE_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            call = listener.receive(left)
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            if deadline is None:
                raise
            return
        if call is None:
            return
        fault = decide(len(calls) + 1, call.name)
        if fault is Fault.KILL:
            os.kill(process, signal.SIGKILL)
            return
        if fault is Fault.INTERRUPT:
            os.kill(process, signal.SIGINT)
        calls.append(call.name)
        _answer(listener, call, fault)


def _answer(listener: Listener, call: Call, fault: Fault | int | None) -> None:
    if isinstance(fault, int):
        listener.fail(call, fault)
    else:
        listener.proceed(call)


def _run(
    arguments: list[str], folder: str, connection: Connection, user: int | None, program: Program | None
) -> None:
    from meteora_registry.registry.cli.main import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = folder
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    listener = install_filter()
    send_handle(connection, listener, None)
    os.close(listener)
    connection.close()
    sys.exit((program or run)(arguments))
