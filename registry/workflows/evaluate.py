"""``eval``: a bundle's folder and its members' data in, an evaluation out; and two evaluations compared."""

from __future__ import annotations

from pathlib import Path

from ...bundle import Bundle
from ...files.digests import hash_file
from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...files.writing import check_writable, write_whole
from ...runtime import evaluation
from ...runtime.evaluation import EvaluationOptions
from ...runtime.evaluation.plots import check_can_draw, draw_plots
from ...runtime.fitting import context_of, open_base, read_task_data
from ...schemas.bundle import MANIFEST_FILE
from ...schemas.errors import SourceUnreadable
from ...schemas.evaluation import Evaluation
from .loading import load_for_command


def evaluate(
    folder: Path,
    base: str,
    data: Path,
    options: EvaluationOptions,
    *,
    out: Path | None = None,
    plots: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the bundle in a folder.

    Data, options and the places for results are looked at before the base's weights are loaded.

    Args:
        folder: the bundle.
        base: the name or the folder of its base.
        data: a folder with a file for each member.
        options: modes, metrics, and how much is asked.
        out: a file for the evaluation as JSON; one that is there is replaced.
        plots: a folder for the figures, made if it is not there; files of the same names are replaced.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        SourceUnreadable: bundle, base or data cannot be read, or a result cannot be written.
        DataRefused: the data cannot be used.
        BundleRefused: it is no bundle, or not one of this base.
        UsageError: an option is out of range, or the bundle cannot serve in a mode.
        MissingDependency: a library of a metric, of the intervals or of the figures is not installed.
    """
    members = Bundle.open(folder).config.names
    if out is not None:
        check_writable(out)
    if plots is not None:
        check_can_draw()
        _make_folder(plots)
    opened = open_base(base)
    context = context_of(opened.config)
    tasks = read_task_data(data, members, tokenizer=opened.tokenizer, context_tokens=context)
    evaluation.make_tasks(tasks, members, opened.tokenizer, options, context_tokens=context)
    found = evaluation.evaluate(
        load_for_command(folder, opened), tasks, options, bundle=real_path(folder).name, progress=progress
    ).model_copy(update={"manifest_sha256": hash_file(folder / MANIFEST_FILE)})
    if out is not None:
        write_whole(out, found.to_bytes())
    if plots is not None:
        for name, image in draw_plots(found).items():
            write_whole(plots / name, image)
    return found


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise SourceUnreadable(f"cannot make the folder `{path}`: {error.strerror or error}") from error
