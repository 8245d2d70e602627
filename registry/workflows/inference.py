"""``eval`` and ``trace``: workflows that load a bundle on its base and let it answer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

from ...bundle import Bundle
from ...bundle.files import check_files
from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...files.writing import check_writable, write_whole
from ...runtime import GateNotFittedWarning, LoadedBundle, evaluation, load_bundle, tracing
from ...runtime.evaluation import (
    Answerer,
    EvaluationOptions,
    ModelAnswerer,
    Task,
    answering_processes,
    read_task_settings,
)
from ...runtime.evaluation.plots import check_can_draw, draw_plots
from ...runtime.fitting import OpenedBase, TaskData, context_of, open_base, read_task_data, strangers_in
from ...schemas.errors import SourceUnreadable, UsageError
from ...schemas.evaluation import Evaluation, EvaluationSummary
from ...schemas.names import CatalogSource
from ...schemas.quotation import quote_name
from ...schemas.trace import Trace
from ..workspace import Workspace

_SHOWN_STRANGERS = 5


def evaluate(
    workspace: Workspace,
    folder: Path,
    base: str,
    data: Path,
    options: EvaluationOptions,
    *,
    run: Path | None = None,
    processes: int = 1,
    out: Path | None = None,
    plots: Path | None = None,
    foreign: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the bundle in a folder.

    Data, options and the places for results are looked at before the base's weights are loaded.

    Args:
        workspace: its catalog keeps the scores, if the bundle is catalogued.
        folder: the bundle.
        base: the name or the folder of its base.
        data: a folder with a file for each member, and maybe ``tasks.toml`` with settings of the tasks.
        options: modes, metrics, and how much is asked.
        run: a file that keeps answers as they come; those that it has are not asked again.
        processes: how many processes answer, each with the base loaded for itself.
        out: a file for the evaluation as JSON; one that is there is replaced.
        plots: a folder for the figures, made if it is not there; files of the same names are replaced.
        foreign: a folder of prompts that no member was made for, to count what is left to the base.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        SourceUnreadable: bundle, base or data cannot be read, or a result cannot be written.
        DataRefused: the data cannot be used.
        BundleRefused: it is not a bundle, or was made for another base.
        InvalidDocument: the run or the tasks' settings are malformed.
        UsageError: an option is out of range, the bundle cannot serve in a mode, or the run is of another
            bundle, asked otherwise, or was damaged.
        MissingDependency: a library of a metric, of the intervals or of the figures is not installed.
    """
    if processes < 1:
        raise UsageError(f"processes is {processes}, expected at least 1")
    bundle = Bundle.open(folder)
    manifest_sha256 = bundle.manifest_sha256
    versions = _catalogued_versions(workspace, bundle)
    if out is not None:
        check_writable(out)
    if plots is not None:
        check_can_draw()
        _make_folder(plots)
    options = replace(options, settings=read_task_settings(data))
    opened = open_base(base)
    tasks, others = _read_prompts(workspace, bundle.config.names, opened, options, data, foreign)
    with ExitStack() as stack:
        kept = None if run is None else stack.enter_context(evaluation.opened_run(run))
        if kept is not None:
            kept.check(
                [task.description for task in tasks], evaluation.known_settings(manifest_sha256, options)
            )
        found = evaluation.evaluate_tasks(
            stack.enter_context(_answerer(folder, opened, tasks, processes)),
            bundle.config,
            tasks,
            options,
            bundle=real_path(folder).name,
            manifest_sha256=manifest_sha256,
            run=kept,
            foreign=others,
            progress=progress,
        )
    if out is not None:
        write_whole(out, found.to_bytes())
    if versions:
        summary = EvaluationSummary.of(found)
        workspace.note(lambda catalog: catalog.record_evaluation(manifest_sha256, summary))
    if plots is not None:
        for name, image in draw_plots(found).items():
            write_whole(plots / name, image)
    return found


def _read_prompts(
    workspace: Workspace,
    members: Sequence[str],
    base: OpenedBase,
    options: EvaluationOptions,
    data: Path,
    foreign: Path | None,
) -> tuple[tuple[Task, ...], dict[str, TaskData] | None]:
    """Return the tasks that are asked, and the foreign prompts, None where none are named."""
    context = context_of(base.config)
    read = read_task_data(data, options.asked(members), tokenizer=base.tokenizer, context_tokens=context)
    others = None
    # In the folder of the data, the files of no member are the foreign ones.
    is_same_folder = foreign is not None and real_path(foreign) == real_path(data)
    if foreign is not None:
        own = members if is_same_folder else ()
        others = evaluation.read_foreign(foreign, base.tokenizer, context, members=own)
    if not is_same_folder:
        warn_of_strangers(workspace, data, members)
    return evaluation.make_tasks(read, members, base.tokenizer, options, context_tokens=context), others


@contextmanager
def _answerer(folder: Path, base: OpenedBase, tasks: Sequence[Task], processes: int) -> Iterator[Answerer]:
    """Yield who answers: a model in this process, or several in processes of their own."""
    if processes == 1:
        yield ModelAnswerer(load_for_command(folder, base), tasks)
        return
    with answering_processes(processes, loader_for_processes(folder, base), tasks) as answerer:
        yield answerer


def _catalogued_versions(workspace: Workspace, bundle: Bundle) -> tuple[CatalogSource, ...]:
    """Return the versions whose very bytes are measured; () if a file is not the one of the manifest.

    The files are hashed before they are loaded. One that was changed is evaluated as it is, and not recorded.
    """
    versions: list[CatalogSource] = []
    workspace.note(lambda catalog: versions.extend(catalog.find_manifest(bundle.manifest_sha256)))
    if versions and (problems := check_files(bundle.folder, bundle.manifest)):
        workspace.warn(f"the scores are not kept in the catalog, for the bundle was changed: {problems[0]}")
        return ()
    return tuple(versions)


def warn_of_strangers(workspace: Workspace, data: Path, members: Sequence[str]) -> None:
    """Report the files in a folder of task data that belong to no member, and were therefore not read."""
    strangers = [quote_name(name) for name in strangers_in(data, members)]
    if strangers:
        more = f" and {len(strangers) - _SHOWN_STRANGERS} more" if len(strangers) > _SHOWN_STRANGERS else ""
        workspace.warn(
            f"not read, for they belong to no member: {', '.join(strangers[:_SHOWN_STRANGERS])}{more}"
        )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise SourceUnreadable(f"cannot make the folder `{path}`: {error.strerror or error}") from error


def trace(folder: Path, base: str, prompt: str, *, max_new_tokens: int, page: Path | None = None) -> Trace:
    """Load a bundle on its base and trace one prompt and its greedy answer.

    Args:
        folder: the bundle.
        base: the name or the folder of its base.
        prompt: taken as it is.
        max_new_tokens: the longest answer; 0 reads the prompt alone.
        page: where ``write_page`` will be asked to write; looked at before anything is loaded.

    Raises:
        SourceUnreadable: bundle or base cannot be read, or no file can be put at ``page``.
        BundleRefused: it is not a bundle, or was made for another base.
        UsageError: the prompt is empty, or too long for the base or for a trace.
    """
    if page is not None:
        check_writable(page)
    # Before the base is loaded, which takes longer.
    Bundle.open(folder)
    loaded = load_for_command(folder, open_base(base))
    return tracing.trace(loaded, prompt, max_new_tokens=max_new_tokens, bundle=real_path(folder).name)


def write_page(path: Path, found: Trace) -> None:
    """Write a trace as one HTML page, in place of what is there.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    write_whole(path, tracing.render_page(found).encode("utf-8"))


def load_base(base: OpenedBase) -> PreTrainedModel:
    """Load the model of a base.

    Raises:
        SourceUnreadable: it has no weights that transformers can load.
    """
    draw_progress_for_people()
    return base.load()


def draw_progress_for_people() -> None:
    """Let transformers draw its progress on a terminal alone."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def loader_for_processes(folder: Path, base: OpenedBase) -> Callable[[], LoadedBundle]:
    """Return what loads a bundle on its base in another process, wherever that one runs.

    Calling it raises what ``open_base`` and ``load_for_command`` do.
    """
    place = Path(base.name)
    return partial(_open_and_load, folder.absolute(), str(place.absolute()) if place.is_dir() else base.name)


def _open_and_load(folder: Path, base: str) -> LoadedBundle:
    return load_for_command(folder, open_base(base))


def load_for_command(folder: Path, base: OpenedBase) -> LoadedBundle:
    """Load a bundle on its base, without the warning about a gate that is not fitted: commands print it.

    Raises:
        SourceUnreadable: bundle or base cannot be read.
        BundleRefused: it is not a bundle, or was made for another base.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GateNotFittedWarning)
        # PEFT asks transformers for it at every load.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return load_bundle(folder, load_base(base))
