"""``gate``: the gates of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from ...schemas.gate_choices import DEFAULT_ABSTAIN, Answers, PromptForm, Scope
from ...scores.proportions import wilson_interval
from ..face import Registry
from .gate_training import training_options
from .groups import examples
from .json_output import print_json
from .output import describe_bytes, print_line, print_verified
from .parameters import (
    MAX_COUNT,
    BaseName,
    as_option,
    base_folder_option,
    base_option,
    bundle_argument,
    format_option,
    out_option,
    parse_share,
    pass_registry,
)
from .progress import progress_bar
from .tables import Column, number, print_table

if TYPE_CHECKING:
    from ...runtime.fitting import ChosenEvidence
    from ...runtime.training import TrainingOptions, TrainingOutcome
    from ...schemas.bundle import RequestGates
    from ..workflows.gate_adoption import GateAdoption
    from ..workflows.gate_fit import GateFit


@click.command(
    "fit",
    epilog=examples(
        "gate fit bundle --base ./base --data ./data --out fitted",
        "gate fit ./bundle --base org/base --data ./data --out fitted --scope token",
        "gate fit bundle --base ./base --data ./data --out fitted --statistics ./statistics",
        "gate fit bundle --base ./base --out fitted --statistics ./statistics",
        "gate fit bundle --base ./base --data ./data --out fitted --scope segment --answers in-order",
        "gate fit bundle --base ./base --data ./data --out trained --method sgd --checkpoint training.state",
    ),
)
@bundle_argument
@base_option
@base_folder_option
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Has a file MEMBER.jsonl for every member of which `--statistics` has no part.",
)
@out_option
@click.option("--name", help="What the catalog calls it. Default: as the bundle it was made from.")
@click.option(
    "--scope",
    type=click.Choice(get_args(Scope)),
    help="What one decision serves. Default: prompt; token with `--method sgd`.",
)
@click.option(
    "--statistics",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="A folder that keeps what `bundle add`, `remove` and `replace` need in place of the members' data.",
)
@as_option(
    None,
    "Which form of the prompts the base reads. Default: both, where its tokenizer has a chat template.",
)
@click.option(
    "--abstain",
    callback=parse_share,
    metavar="SHARE|none",
    default=f"{DEFAULT_ABSTAIN:.0%}",
    show_default=True,
    help="At most this share of own prompts is left to the base, as are prompts that no member was made for. "
    "For the scopes `prompt` and `prompt+token`.",
)
@click.option(
    "--answers",
    type=click.Choice(get_args(Answers)),
    default="by-text",
    show_default=True,
    help="Who decides for the numbered lines of an answer, for the scope `segment`: their own text, or the "
    "item with that number of the prompt's list.",
)
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(1, MAX_COUNT),
    help="At most so many samples of a member are read, spread evenly over its file. Default: 32; all with "
    "`--method sgd`.",
)
@training_options
@format_option
@pass_registry
def fit(
    registry: Registry,
    /,
    bundle: str,
    *,
    base: str | None,
    base_folder: Path | None,
    data: Path | None,
    out: Path,
    name: str | None,
    scope: str | None,
    statistics: Path | None,
    form: str | None,
    abstain: float | None,
    answers: str,
    samples: int | None,
    training: TrainingOptions | None,
    as_json: bool,
) -> None:
    """Fit the gates of a bundle on a few texts of each member.

    A few dozen are enough; the new version is registered. A line of MEMBER.jsonl is {"prompt": ...,
    "response": ...}, {"messages": [...]} or {"text": ...}. The base reads them once, without adapters, and
    every gate is then solved directly, or trained with `--method sgd`, for which `accelerate launch` may
    start several processes. The factors are taken over bit for bit; the new bundle is verified and
    catalogued like one that was just fused.
    """
    from ...runtime.processes import is_first

    with progress_bar() as progress:
        found = registry.fit(
            bundle,
            base=base,
            base_folder=base_folder,
            data=data,
            out=out,
            name=name,
            scope=cast("Scope | None", scope),
            statistics=statistics,
            form=cast("PromptForm | None", form),
            abstain=abstain,
            answers=cast("Answers", answers),
            training=training,
            samples=samples,
            progress=progress,
        )
    if not is_first():
        return
    if as_json:
        print_json(found)
    else:
        _print_fit(found)


def _print_fit(found: GateFit) -> None:
    version = found.version
    print_line(
        f"fitted: {version.source} in {found.folder}: {found.gates} gates for {found.modules} modules, "
        f"one decision per {version.gate_scope}, {describe_bytes(version.size_bytes)}"
    )
    print_verified(found.record)
    print_line()
    print_table(
        ("MEMBER", number("SAMPLES"), Column("DATA", gives_way=1)),
        [(data.member, str(data.samples), data.sha256.short) for data in found.fitting.data],
    )
    if found.training is not None:
        print_line()
        print_line(_describe_training(found.training))
    if found.request is not None:
        print_line()
        print_decisions(found.request, found.confusions)
    if found.evidence is not None:
        print_line()
        print_line(_describe_evidence(found.evidence, found.gates))


def _describe_training(training: TrainingOutcome) -> str:
    """Return what the last steps of a training show."""
    steps = f"trained: {training.steps} steps"
    if training.resumed_at:
        steps += f", from step {training.resumed_at} of the checkpoint on"
    if training.language_loss is None or training.gate_loss is None or training.right is None:
        return steps
    return (
        f"{steps}; the last {training.reported_steps}: loss of the language model "
        f"{training.language_loss:.3f}, of the gates {training.gate_loss:.3f}, {training.right:.1%} of the "
        "choices right"
    )


def _describe_evidence(evidence: ChosenEvidence, gates: int) -> str:
    """Return what is known of segments from texts that the fit did not read."""
    if not evidence.tokens:
        return f"held out: no texts, so segments are decided by all {gates} gates"
    read, share = f"all {gates} gates", evidence.right / evidence.tokens
    if evidence.modules is not None:
        read = f"{len(evidence.modules)} of {gates} gates, the last in `{evidence.modules[-1]}`"
    return (
        f"held out: {share:.1%} of the tokens decided rightly by {read} "
        f"({evidence.right_by_all / evidence.tokens:.1%} by all)"
    )


def print_decisions(request: RequestGates, confusions: Iterable[tuple[str, str, int]]) -> None:
    """Print what is known of the decisions about requests, and who was taken for whom."""
    for line in _describe_decisions(request, confusions):
        print_line(line)


def _describe_decisions(request: RequestGates, confusions: Iterable[tuple[str, str, int]]) -> Iterator[str]:
    """Yield what is known of the decisions from prompts that the fit did not read."""
    judged = request.held_out
    if judged is None:
        yield "held out: no prompts, so nothing is known of the decisions, and no prompt is left to the base"
        return
    yield (
        f"held out: {judged.prompts} prompts ({' and '.join(request.forms)}) that the fit did not read: "
        f"{judged.right} decided rightly ({judged.right / judged.prompts:.1%})"
    )
    for own, chosen, count in confusions:
        yield f"  {count} of {own} went to {chosen}"
    if judged.own_left is None or judged.general_left is None:
        reason = "none was asked for" if request.quantiles else "too few were held out to know a threshold"
        yield f"abstention: off, {reason}"
        return
    low, high = wilson_interval(judged.own_left, judged.prompts)
    yield (
        f"abstention: {judged.own_left} of them ({judged.own_left / judged.prompts:.1%}, 95 % interval "
        f"{low:.1%} to {high:.1%}) and {judged.general_left} of {judged.general_prompts} general prompts are "
        "left to the base"
    )


@click.command(
    "adopt",
    epilog=examples(
        "gate adopt ./trained --out adopted",
        "gate adopt ./trained --out adopted --from bundle@2 --name better",
    ),
)
@click.argument("saved", metavar="FOLDER", type=click.Path(path_type=Path))
@out_option
@click.option(
    "--from",
    "source",
    metavar="FOLDER|NAME[@VERSION|@ALIAS]",
    help="The bundle that was trained. Default: the one that the model states.",
)
@click.option("--name", help="What the catalog calls it. Default: as the bundle that was trained.")
@click.option(
    "--base",
    type=BaseName(),
    metavar="ORG/MODEL|FOLDER",
    help="The base model, used where the bundle states that the base renamed modules.",
)
@base_folder_option
@format_option
@pass_registry
def adopt(
    registry: Registry,
    /,
    saved: Path,
    *,
    out: Path,
    source: str | None,
    name: str | None,
    base: str | None,
    base_folder: Path | None,
    as_json: bool,
) -> None:
    """Make a bundle of a routed model that PEFT saved.

    FOLDER is what `save_pretrained` wrote after its gates were trained. Everything but the gates must be
    that of the bundle it came from. The new version states that bundle; it is verified against the members'
    own files and catalogued. FOLDER is not changed.
    """
    with progress_bar() as progress:
        found = registry.adopt_gates(
            saved,
            out=out,
            source=source,
            name=name,
            base=base,
            base_folder=base_folder,
            progress=progress,
        )
    if as_json:
        print_json(found)
    else:
        _print_adoption(found)


def _print_adoption(found: GateAdoption) -> None:
    version = found.version
    print_line(
        f"adopted: {version.source} in {found.folder}: gates {version.gate_fitted}, "
        f"{describe_bytes(version.size_bytes)}"
    )
    print_verified(found.record)
