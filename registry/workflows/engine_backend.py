"""``serve`` with engines: the router's part of a bundle, and the engines that have its members."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...files.scratch import Purpose as ScratchPurpose
from ...files.scratch import temporary_folder
from ...runtime import GateNotFittedWarning
from ...runtime.decider import open_decider
from ...schemas.errors import BundleRefused, UsageError
from ...schemas.report import Purpose
from ...serving.engines import Engines, EngineTimes
from ...serving.limits import Limits
from ...serving.metrics import Metrics
from ...serving.names import ModelNames
from ...serving.routed import RoutedBackend
from ...serving.vllm_process import VllmPlan, VllmProcess, find_program, max_lora_rank, member_folders
from .inference import draw_progress_for_people
from .validation import ValidateOptions, validate

_LOG_FILE = "vllm.log"
# An engine that is starting is to be found soon after it is up.
_WHILE_STARTING = EngineTimes(most_pause=2.0)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engines that a command names.

    Attributes:
        urls: of engines that run already.
        starts_vllm: whether one is to be started.
        arguments: of the one that is started, as a shell would split them.
        log: where its output goes; None for a file that is deleted at the end.
        key: of the engines that run already; None without one.
    """

    urls: Sequence[str] = ()
    starts_vllm: bool = False
    arguments: str | None = None
    log: Path | None = None
    key: str | None = None

    def check(self) -> None:
        """Pass if the parts go together.

        Raises:
            UsageError: they do not.
        """
        if self.starts_vllm and self.urls:
            raise UsageError(
                "both `--engine` and `--engine-url` are given",
                hint="start an engine with the one, or name those that run with the other",
            )
        for option, value in (("--engine-args", self.arguments), ("--engine-log", self.log)):
            if value is not None and not self.starts_vllm:
                raise UsageError(f"`{option}` goes with `--engine vllm`")
        self.split_arguments()

    @property
    def is_any(self) -> bool:
        """Whether engines are to answer."""
        return self.starts_vllm or bool(self.urls)

    def split_arguments(self) -> list[str]:
        """Return the arguments of the engine.

        Raises:
            UsageError: a quote is open.
        """
        try:
            return shlex.split(self.arguments or "")
        except ValueError as error:
            raise UsageError(f"`--engine-args` cannot be split: {str(error).lower()}") from error


@contextmanager
def engine_backend(
    folder: Path, base: str, choice: EngineChoice, names: ModelNames, limits: Limits, metrics: Metrics
) -> Iterator[RoutedBackend]:
    """Yield the backend of a bundle that decides here and is answered for by engines.

    Args:
        folder: the bundle.
        base: the folder or the name of its base.
        choice: the engines.
        names: of the models.
        limits: of what is accepted.
        metrics: what is counted.

    Raises:
        BundleRefused: the bundle does not decide once for a request, does not fit the base, or has a member
            that vLLM does not take.
        SourceUnreadable: a file of the bundle or the base cannot be read.
        UsageError: there is no vLLM to start.
    """
    program = find_program() if choice.starts_vllm else None
    draw_progress_for_people()
    with temporary_folder(ScratchPurpose.SERVE) as scratch:
        with warnings.catch_warnings():
            # The command prints it.
            warnings.simplefilter("ignore", GateNotFittedWarning)
            decider = open_decider(folder, base)
        processes: list[VllmProcess] = []
        if program is not None:
            plan = _plan(program, Bundle.open(folder), base, scratch, choice)
            processes = [VllmProcess(plan, choice.log or scratch / _LOG_FILE)]
        engines = Engines(
            [*choice.urls, *(process.url for process in processes)],
            decider.members,
            max_in_flight=limits.max_waiting,
            key=processes[0].key if processes else choice.key,
            times=_WHILE_STARTING if processes else None,
            are_starting=bool(processes),
        )
        yield RoutedBackend(decider, names, engines, limits, metrics, processes=processes)


def _plan(program: Path, bundle: Bundle, base: str, scratch: Path, choice: EngineChoice) -> VllmPlan:
    members, rank = member_folders(bundle, scratch), max_lora_rank(bundle)
    options = ValidateOptions(purpose=Purpose.VLLM, base=base, max_lora_rank=rank)
    # vLLM itself reports it only after it has loaded the base.
    for name, folder in members.items():
        report = validate([folder], options)
        refusals = [each for each in report.adapters[0].findings if report.counts_against(each)]
        if refusals:
            raise BundleRefused(
                f"vLLM does not serve the member `{name}`: {refusals[0].describe()}",
                hint="see all of it with `meteora-registry validate --for vllm`; serve without `--engine`, "
                "or fuse the bundle without that member",
            )
    return VllmPlan(program, base, members, rank, choice.split_arguments())
