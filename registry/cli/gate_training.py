"""The options of ``gate fit`` for gates that are trained by gradient descent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ...schemas.errors import UsageError
from ...schemas.training import Start
from ..dependencies import require_torch
from .parameters import MAX_COUNT

if TYPE_CHECKING:
    from ...runtime.training import TrainingOptions

SGD = "sgd"

_COUNT = click.IntRange(1, MAX_COUNT)
# Without defaults, so that one that is stated without `--method sgd` can be refused; a test compares those in
# the texts with `TrainingOptions`.
_OPTIONS = {
    "start": click.option(
        "--start",
        type=click.Choice(get_args(Start)),
        help="With sgd: the gates before the first step. Default: closed-form.",
    ),
    "gate_loss": click.option(
        "--gate-loss",
        metavar="C",
        type=float,
        help="With sgd: the weight of the gates' cross-entropy beside the language model's loss. Default: 1.",
    ),
    "learning_rate": click.option(
        "--learning-rate",
        metavar="RATE",
        type=float,
        help="With sgd: of Adam, at the first step; it falls linearly to zero. Default: 0.1.",
    ),
    "steps": click.option("--steps", metavar="N", type=_COUNT, help="With sgd: how many. Default: 500."),
    "batch_size": click.option(
        "--batch-size",
        metavar="N",
        type=_COUNT,
        help="With sgd: samples in a step, of all processes together. Default: 8.",
    ),
    "seed": click.option(
        "--seed",
        metavar="N",
        type=click.IntRange(0, (1 << 32) - 1),
        help="With sgd: of the order of the samples. Default: 0.",
    ),
    "checkpoint": click.option(
        "--checkpoint",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="With sgd: keep the state there, and go on from it if the file exists.",
    ),
    "checkpoint_steps": click.option(
        "--checkpoint-steps",
        metavar="N",
        type=_COUNT,
        help="With sgd: keep the state after so many steps. Default: 50.",
    ),
}


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a training to a command, which gets them as ``training``, None without ``sgd``.

    Raises:
        UsageError: one is stated without `--method sgd`, or is out of range.
    """

    @functools.wraps(command)
    def with_training(*arguments: Any, method: str, **options: Any) -> Any:
        named = {name: options.pop(name) for name in _OPTIONS}
        stated = {name: value for name, value in named.items() if value is not None}
        return command(*arguments, training=_read(method, stated), **options)

    # The last decorator's option is the first in the help.
    for option in reversed(_OPTIONS.values()):
        option(with_training)
    with_method = click.option(
        "--method",
        type=click.Choice(["closed-form", SGD]),
        default="closed-form",
        show_default=True,
        help="Solve the gates directly, or train them as the paper does, for the scope `token`.",
    )
    return with_method(with_training)


def _read(method: str, stated: dict[str, Any]) -> TrainingOptions | None:
    if method == SGD:
        require_torch("training gates")
        from ...runtime.training import TrainingOptions

        return TrainingOptions(**stated)
    if stated:
        option = "--" + next(iter(stated)).replace("_", "-")
        raise UsageError(f"`{option}` goes with `--method {SGD}`", hint="state both, or neither")
    return None
