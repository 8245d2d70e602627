"""``generate``: a bundle's answer to one prompt."""

from __future__ import annotations

from pathlib import Path

import click

from ...schemas.errors import UsageError
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.base_place import choose_base_to_run
from ..workflows.bundle_folder import find_bundle_folder
from .groups import examples
from .json_output import print_json
from .output import print_gate_remark, print_remark
from .parameters import (
    base_folder_option,
    base_option,
    bundle_argument,
    format_option,
    max_tokens_option,
    pass_registry,
    system_option,
)
from .prompts import check_text, read_prompt


@click.command(
    "generate",
    epilog=examples(
        "generate ./bundle 'Which court decides?'",
        "generate bundle@2 'What is a fever?' --base ./llama --member medical --max-tokens 50",
        "generate ./bundle - --no-template --format json < prompt.txt",
    ),
)
@bundle_argument
@click.argument("prompt")
@base_option
@base_folder_option
@system_option
@click.option(
    "--no-template", is_flag=True, help="Give the model the prompt as it is, without chat template."
)
@click.option("--member", metavar="NAME", help="Let this member answer; `base` is the base alone.")
@max_tokens_option
@format_option
@pass_registry
def command(
    registry: Registry,
    bundle: str,
    prompt: str,
    *,
    base: str | None,
    base_folder: Path | None,
    system: str | None,
    no_template: bool,
    member: str | None,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Answer one prompt with a bundle.

    The answer is printed as it is written; who gave it, and how sure the bundle was, is on stderr. PROMPT is
    one message of a user, in the base's chat template; - reads stdin. The answer is greedy: the same prompt
    gives the same answer.
    """
    require_torch("answering")
    from ..workflows.conversation import Served, begin_answer, load_to_answer
    from .answer_text import answer_object, describe_served, print_pieces

    if system is not None and no_template:
        raise UsageError("`--system` is a part of the chat template, found also `--no-template`")
    message = read_prompt(prompt).removesuffix("\n")
    check_text(system or "", "the system prompt")
    folder = find_bundle_folder(registry, bundle)
    source = choose_base_to_run(registry, folder, base, base_folder)
    loaded = load_to_answer(folder, source, with_template=not no_template, member=member)
    stream = begin_answer(
        loaded,
        message,
        system=system,
        with_template=not no_template,
        member=member,
        max_new_tokens=max_tokens,
    )
    if as_json:
        with stream:
            for _ in stream:
                pass
    else:
        print_pieces(stream)
    served = Served.of(stream, loaded.config.gate.scope, forced=member is not None)
    if as_json:
        print_json(answer_object(stream, served))
    print_remark(describe_served(served))
    if stream.was_cut:
        print_remark(f"note: the answer was cut at {stream.answer_tokens} tokens")
    if member is None and not loaded.config.gate.is_fitted:
        print_gate_remark()
