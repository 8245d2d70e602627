"""A vLLM engine that this process starts, watches, starts again when it ends, and stops.

vLLM lives in an environment of its own, since it pins the libraries that it needs. It is given the plain base
and every member as a LoRA module, listens on this machine alone, and has a key that only this process knows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle
from ..files.reading import open_regular
from ..fuser.extraction import extract_member
from ..inspection.vllm import ALLOWED_RANKS, least_max_rank
from ..schemas.bundle import CONFIG_FILE, EXPERTS_FOLDER
from ..schemas.errors import BundleRefused, SourceUnreadable, UsageError
from ..schemas.names import PLAIN_BASE

PROGRAM_VARIABLE = "METEORA_VLLM"
# Members that one batch may mix: each takes memory on the GPU, and more wait on the CPU.
_MAX_MIXED = 8
_TIED_PROGRAM = Path(__file__).with_name("tied_program.py")
_HOST = "127.0.0.1"
_MAX_SHOWN_BYTES = 2000
_STOP_SECONDS = 20.0
_LEAST_PAUSE_SECONDS = 1.0
_MOST_PAUSE_SECONDS = 60.0

_log = logging.getLogger(__name__)


def find_program() -> Path:
    """Return the program `vllm`: the one that METEORA_VLLM names, or the one on PATH.

    Raises:
        UsageError: there is none.
    """
    stated = os.environ.get(PROGRAM_VARIABLE)
    found = shutil.which(stated or "vllm")
    if found is None:
        what = (
            f"{PROGRAM_VARIABLE} is `{stated}`, which is not a program"
            if stated
            else "there is no `vllm` on PATH"
        )
        raise UsageError(
            what,
            hint="install vLLM in an environment of its own, and name its program in "
            f"{PROGRAM_VARIABLE}, such as `/opt/vllm/bin/vllm`",
        )
    return Path(found)


def member_folders(bundle: Bundle, scratch: Path) -> dict[str, Path]:
    """Return a folder for each member as a plain adapter: the bundle's own `experts/`, else extracted.

    Raises:
        BundleRefused: a member cannot be extracted.
    """
    folders = {}
    for name in bundle.config.names:
        kept = bundle.folder / EXPERTS_FOLDER / name
        if (kept / CONFIG_FILE).is_file():
            folders[name] = kept
        else:
            folders[name] = extract_member(bundle, name, scratch / name).folder
    return {name: folder.absolute() for name, folder in folders.items()}


def max_lora_rank(bundle: Bundle) -> int:
    """Return the least `--max-lora-rank` of vLLM that every member fits in, and whose memory each takes.

    Raises:
        BundleRefused: a member's rank is larger than any.
    """
    ranks = {
        name: max(layout.ranks[place] for layout in bundle.config.layouts.values())
        for place, name in enumerate(bundle.config.names)
    }
    name = max(ranks, key=lambda each: ranks[each])
    found = least_max_rank(ranks[name])
    if found is None:
        raise BundleRefused(
            f"the member `{name}` has rank {ranks[name]}, and vLLM takes at most {ALLOWED_RANKS[-1]}",
            hint="serve without `--engine`, or fuse the bundle without that member",
        )
    return found


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """The command line of one engine.

    Attributes:
        program: of vLLM.
        base: the base's folder or its name on the Hub.
        members: the folder of each member.
        max_rank: of any member.
        more: arguments of the user's, which come last and so replace those before them.
    """

    program: Path
    base: str
    members: Mapping[str, Path]
    max_rank: int
    more: Sequence[str] = ()

    def arguments(self, port: int) -> list[str]:
        """Return the program and its arguments."""
        modules = [json.dumps({"name": name, "path": str(path)}) for name, path in self.members.items()]
        return [
            str(self.program),
            "serve",
            self.base,
            *("--host", _HOST, "--port", str(port)),
            *("--served-model-name", PLAIN_BASE),
            # Else the base's own sampling would be the default of requests.
            *("--generation-config", "vllm"),
            "--enable-lora",
            *("--max-lora-rank", str(self.max_rank)),
            *("--max-loras", str(min(len(self.members), _MAX_MIXED))),
            *("--max-cpu-loras", str(max(len(self.members), 1))),
            *self.more,
            *("--lora-modules", *modules),
        ]


class VllmProcess:
    """One engine.

    Args:
        plan: its command line.
        log: where its output goes; a file that is there is continued.

    Attributes:
        url: of the engine.
        key: that it asks for.
    """

    def __init__(self, plan: VllmPlan, log: Path) -> None:
        self.key = secrets.token_hex(16)
        self._plan = plan
        self._log = log
        self._port = _free_port()
        self.url = f"http://{_HOST}:{self._port}"
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._has_answered = False

    async def start(self) -> None:
        """Start it, and from then on start it again whenever it ends.

        Raises:
            SourceUnreadable: the program or the file for its output cannot be used.
        """
        await self._start()
        self._keeping = asyncio.create_task(self._keep())

    async def until(self, is_up: asyncio.Event) -> None:
        """Wait until it was found to answer.

        Raises:
            SourceUnreadable: it ended before.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (is_up, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if not is_up.is_set():
            raise SourceUnreadable(
                f"vLLM ended with {self._status} before it answered; its output:\n{self._last_lines()}",
                hint="its arguments can be changed by `--engine-args`",
            )
        self._has_answered = True

    async def close(self) -> None:
        """Stop it, with every process that it started."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        process = self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Its engine is a process of the same group, and may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()

    async def _start(self) -> None:
        arguments = self._plan.arguments(self._port)
        try:
            with self._log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-S", str(_TIED_PROGRAM), str(os.getpid())),
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._environment(),
                    start_new_session=True,
                )
        except OSError as error:
            raise SourceUnreadable(
                f"vLLM cannot be started with its output in `{self._log}`: "
                f"{(error.strerror or str(error)).lower()}"
            ) from error

    def _environment(self) -> dict[str, str]:
        # No secret of this process is the engine's business.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("METEORA_")}
        return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | kept | {"VLLM_API_KEY": self.key}

    async def _keep(self) -> None:
        pause, loop = _LEAST_PAUSE_SECONDS, asyncio.get_running_loop()
        while self._process is not None:
            began = loop.time()
            await self._process.wait()
            if not self._has_answered:
                self._ended.set()
                return
            if loop.time() - began > _MOST_PAUSE_SECONDS:
                pause = _LEAST_PAUSE_SECONDS
            _log.warning(
                "warning: vLLM ended with %s and is started again in %g seconds; its output is in `%s`",
                self._status,
                pause,
                self._log,
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_SECONDS)
            try:
                await self._start()
            except SourceUnreadable as error:
                # The process is the one that ended, so this is tried again.
                _log.warning("warning: %s", error)

    @property
    def _status(self) -> str:
        code = None if self._process is None else self._process.returncode
        if code is not None and code < 0:
            return f"signal {-code}"
        return f"code {code}"

    def _last_lines(self) -> str:
        try:
            with open_regular(self._log, follows_links=True) as output:
                # A file that is continued may be large.
                output.seek(max(output.seek(0, os.SEEK_END) - _MAX_SHOWN_BYTES, 0))
                data = output.read(_MAX_SHOWN_BYTES)
        except (OSError, SourceUnreadable):
            return f"(it cannot be read from `{self._log}`)"
        lines = data.decode("utf-8", "replace").splitlines()[-10:]
        return "\n".join("".join(each if each.isprintable() else "?" for each in line) for line in lines)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((_HOST, 0))
        return int(listening.getsockname()[1])
