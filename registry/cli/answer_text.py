"""Answers on a terminal: their pieces as they come, who gave them, and why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import click

from ...runtime import AnswerStream, Decision, LoadedBundle
from ...schemas.names import PLAIN_BASE
from ..workflows.conversation import Served
from .output import describe_share, escape_answer

_MAX_BAR, _MIN_BAR = 40, 10
# More rows than this say nothing that the first do not.
_MAX_ROWS = 20
_LEAST_SHOWN = 0.005
_NO_MEMBER = "(no member)"


def answer_object(stream: AnswerStream, served: Served) -> dict[str, Any]:
    """Return an answer with who gave it, as ``--format json`` prints it."""
    return {
        "text": stream.answer.text,
        **{field.name: getattr(served, field.name) for field in fields(served)},
        "prompt_tokens": stream.prompt_tokens,
        "answer_tokens": stream.answer_tokens,
        "was_cut": stream.was_cut,
    }


def print_pieces(stream: AnswerStream) -> None:
    """Print an answer as it is written, and a new line behind it; an exception stops the answer."""
    try:
        with stream:
            for piece in stream:
                click.echo(escape_answer(piece), nl=False)
    finally:
        if not stream.answer.text.endswith("\n"):
            click.echo()


def describe_served(served: Served) -> str:
    """Return who answered and how sure the bundle was: `legal 0.98`, or `base`."""
    if served.forced:
        return f"{served.member or PLAIN_BASE}, forced"
    if served.decides_by_token:
        took = sorted(served.shares.items(), key=lambda item: -item[1])
        return ", ".join(f"{member} {describe_share(share)}" for member, share in took if share >= 0.0005)
    return ", ".join(_describe_decision(each) for each in served.decisions)


def _describe_decision(decision: Decision) -> str:
    if not decision.members:
        return PLAIN_BASE
    return f"{_those_who_served(decision)} {decision.confidence:.2f}"


def _those_who_served(decision: Decision) -> str:
    """Return the members of a decision, without those whose share of the answer rounds to 0.00."""
    shared = zip(decision.members, decision.weights, strict=True)
    return " + ".join(member for member, weight in shared if weight >= _LEAST_SHOWN)


def explain(served: Served, loaded: LoadedBundle) -> Iterator[str]:
    """Yield the lines that say why these members answered: the evidence of every member, as bars."""
    if served.forced:
        yield f"`{served.member or PLAIN_BASE}` was forced, so nothing was decided"
    elif served.decides_by_token:
        yield f"scope `{served.scope}`: every module decides for each token; shares of the answer:"
        yield from _bars(served.shares)
    for place, decision in enumerate(() if served.forced else served.decisions):
        if place:
            yield ""
        yield from _explain_decision(decision, served, loaded)


def _explain_decision(decision: Decision, served: Served, loaded: LoadedBundle) -> Iterator[str]:
    names, gate = loaded.config.names, loaded.config.gate
    evidence = dict(zip(names, decision.evidence, strict=True))
    is_by_request = gate.request is not None and served.scope != "segment"
    if is_by_request:
        evidence[_NO_MEMBER] = max(0.0, 1 - sum(decision.evidence))
    what = f"tokens {decision.start} to {decision.end - 1}" if served.scope == "segment" else "the prompt"
    if decision.item is not None:
        what = f"item {decision.item} of the prompt's list, which {what} answer"
    yield f"how likely each member is by {what}:"
    yield from _bars(evidence)
    confidence = decision.confidence
    if decision.members:
        yield f"{_those_who_served(decision)} answered, confidence {confidence:.2f}"
    else:
        yield f"left to the base: confidence {confidence:.2f}, below {gate.abstain:g}"
    if is_by_request:
        yield f"(of the members' own prompts, {describe_share(confidence)} are less like them than this one)"


def _bars(shares: Mapping[str, float]) -> Iterator[str]:
    rows = sorted(shares.items(), key=lambda item: -item[1])
    width = max(len(name) for name, _ in rows[:_MAX_ROWS])
    bar = min(_MAX_BAR, max(_MIN_BAR, shutil.get_terminal_size().columns - width - len("    0.00  ")))
    for name, share in rows[:_MAX_ROWS]:
        yield f"  {name.ljust(width)}  {share:.2f}  {'#' * round(bar * share)}".rstrip()
    if len(rows) > _MAX_ROWS:
        yield f"  and {len(rows) - _MAX_ROWS} others below {rows[_MAX_ROWS - 1][1]:.2f}"
