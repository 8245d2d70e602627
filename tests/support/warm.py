"""Real processes that start at once: forked from a server that imported everything once.

Starting the program costs 0.4 to 1.3 seconds of processor time, almost all of it imports. A child of the
server costs 0.02, and has an exit code, descriptors, signals and an environment of its own all the same. Only
what an interpreter does while it starts, imports or ends needs ``subprocess``: a child of the server has the
locale of the server, and calls nothing that was registered with ``atexit``.
"""

from __future__ import annotations

import contextlib
import locale
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from .unsynced import wait_for_no_disk

_TESTS = Path(__file__).parents[1]
# What reads the environment once, when it is imported, and what took names from it; and the variables.
_READ_ONCE = ("huggingface_hub", "meteora_registry.registry", "support.new_catalogs")
_VARIABLES_READ_ONCE = ("HF_", "HOME", "XDG_")
# What a process must know of a fork server that another one started; Python 3.14 also asks for a key.
_ADDRESS = ("_forkserver_address", "_forkserver_authkey")


def warm_context() -> ForkServerContext:
    """Return a context whose processes begin with everything imported, and with no test's settings."""
    _run_with_no_settings(forkserver._forkserver.ensure_running)
    return _context


def start_shared() -> dict[str, Any]:
    """Start the server, and return the address at which other processes can use it while this one lives."""
    warm_context()
    return {name: value for name, value in vars(forkserver._forkserver).items() if name in _ADDRESS}


def use_shared(address: Mapping[str, Any]) -> None:
    """Have this process use the server of another one, and start none."""
    server = forkserver._forkserver
    # Goes along with every request, for children that would start others in turn.
    vars(server).update(address, _forkserver_alive_fd=os.open(os.devnull, os.O_RDONLY))
    vars(server)["ensure_running"] = resource_tracker.ensure_running


def _run_with_no_settings(start: Callable[[], None]) -> None:
    before = dict(os.environ)
    # The server finds what it imports by its environment alone, and is silent about what it does not find.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_TESTS), before.get("PYTHONPATH")]))
    for name in before:
        if name.startswith("METEORA_"):
            del os.environ[name]
    try:
        start()
    finally:
        os.environ.clear()
        os.environ.update(before)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["support.warm_start", "support.faults"])


# What a start of a child heeds, and what the standard library does by itself.
_OPTIONS = {"cwd", "env", "stdin", "stdout", "stderr", "text", "encoding", "errors", "bufsize"}


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen`` of the program or of Python, with a child of the server as its process.

    Everything but the start and the end of the process is that of the standard library.
    """

    def __init__(self, arguments: Sequence[str | Path], **options: Any) -> None:
        if ignored := options.keys() - _OPTIONS:
            raise TypeError(f"a warm process has no options {sorted(ignored)}: start it with `subprocess`")
        super().__init__(arguments, **options)

    def _execute_child(  # type: ignore[override]
        self,
        arguments: Sequence[str | Path],
        executable: object,
        preexec_fn: object,
        close_fds: object,
        pass_fds: object,
        cwd: str | Path | None,
        env: Mapping[str, str] | None,
        startupinfo: object,
        creationflags: object,
        shell: object,
        *pipes: Any,
    ) -> None:
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = pipes[:6]
        streams = [
            ours if ours != -1 else number for number, ours in enumerate((p2cread, c2pwrite, errwrite))
        ]
        self._process = warm_context().Process(
            target=_begin,
            args=(
                [str(each) for each in arguments],
                str(cwd or Path.cwd()),
                dict(os.environ if env is None else env),
                [_Descriptor(each) for each in streams],
            ),
            daemon=True,
        )
        try:
            self._start()
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._child_created = True

    def _start(self) -> None:
        self._process.start()

    def _wait(self, timeout: float | None) -> int:
        self._process.join(timeout)
        if self._internal_poll() is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _internal_poll(self, _deadstate: int | None = None, **_: object) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode


class _RuntimeServer(forkserver.ForkServer):
    """A fork server that is itself a child of the other, so that it imports only what that one did not."""

    # As the class has it in the standard library.
    _forkserver_address: str | None

    def ensure_running(self) -> None:
        resource_tracker.ensure_running()
        if self._forkserver_address is not None:
            return
        with socket.socket(socket.AF_UNIX) as listener:
            address: str = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
            listener.bind(address)
            listener.listen()
            self._forkserver_address = address
            alive, self._forkserver_alive_fd = os.pipe()
            descriptors = [_Descriptor(listener.fileno()), _Descriptor(alive)]
            warm_context().Process(target=_serve_forks, args=descriptors, daemon=True).start()
            os.close(alive)


def _serve_forks(listener: int, alive: int) -> None:
    forkserver.main(listener, alive, ["support.warm_runtime"])


_runtime_server = _RuntimeServer()


@contextlib.contextmanager
def runtime_processes() -> Iterator[None]:
    """Have every process that starts within the block be forked from the server of what answers.

    For code that itself asks `multiprocessing` for processes of a fork server, as an evaluation does.
    """
    _runtime_server.ensure_running()
    # Read when a process starts.
    with mock.patch.object(forkserver, "connect_to_new_process", _runtime_server.connect_to_new_process):
        yield


class RuntimePopen(Popen):
    """The same, of a server that has also imported what loads a bundle and answers."""

    def _start(self) -> None:
        with runtime_processes():
            super()._start()


def run(
    arguments: Sequence[str | Path],
    *,
    input: Any = None,  # noqa: A002 - as the standard library calls it
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a command as ``subprocess.run`` does."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(arguments, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class _Descriptor:
    """A descriptor on its way into a process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.number),)


def _detach(carried: Any) -> int:
    return int(carried.detach())


def _begin(arguments: list[str], folder: str, environment: dict[str, str], descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    enter(folder, environment)
    wait_for_no_disk()
    open_streams()
    try:
        run_as_program(arguments)
    finally:
        # As an interpreter does when it ends, also where the program has put another stream in its place.
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()


def enter(folder: str | Path, environment: Mapping[str, str]) -> None:
    """Give this process a current folder and an environment, as if it had begun with them."""
    os.chdir(folder)
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    # The server may have chosen a folder already.
    tempfile.tempdir = None
    if _read_once(before) != _read_once(environment):
        for name in list(sys.modules):
            if name.startswith(_READ_ONCE):
                del sys.modules[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_streams() -> None:
    """Open the standard streams of this process as an interpreter does when it starts."""
    stated, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    encoding, errors = stated or locale.getencoding(), errors or "strict"
    for number, (name, mode, how) in enumerate(
        (("stdin", "r", errors), ("stdout", "w", errors), ("stderr", "w", "backslashreplace"))
    ):
        try:
            is_terminal = os.isatty(number)
            os.fstat(number)
        except OSError:
            stream = None
        else:
            buffering = 1 if is_terminal or name == "stderr" else -1
            stream = open(number, mode, buffering, encoding, how, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run_in_fork(
    arguments: Sequence[str],
    *,
    input: bytes,  # noqa: A002 - as the standard library calls it
    env: Mapping[str, str],
    **_: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as ``subprocess.run`` does and capture its output, in a fork of this process itself."""
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.write(streams[0], input)
    os.lseek(streams[0], 0, os.SEEK_SET)
    # What is buffered would be written by the fork, too.
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            _begin(list(arguments), os.curdir, dict(env), streams)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:  # noqa: BLE001 - whatever it is ends this process, not the one that it copies
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    out, err = (_read_from_start(each) for each in streams[1:])
    for each in streams:
        os.close(each)
    return subprocess.CompletedProcess(arguments, code, out, err)


def _read_from_start(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def run_as_program(arguments: list[str]) -> None:
    """Run the installed program, or what follows ``python -c``, ``-P -m`` or ``-P``, as the main program."""
    if arguments[:3] == [sys.executable, "-P", "-m"]:
        sys.argv = arguments[3:]
        runpy.run_module(arguments[3], run_name="__main__", alter_sys=True)
    elif arguments[:2] == [sys.executable, "-P"]:
        sys.argv = arguments[2:]
        runpy.run_path(arguments[2], run_name="__main__")
    elif arguments[:2] == [sys.executable, "-c"]:
        sys.argv = ["-c", *arguments[3:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(arguments[2], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_VARIABLES_READ_ONCE)}
