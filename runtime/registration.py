"""PEFT learns the type ``METEORA``.

``peft.utils.register_peft_method`` takes only members of PEFT's closed enum, so the dictionaries that it
fills are filled here. They are not documented as public; the tests of this folder go through all of
PEFT's and transformers' entry points to notice a change.
"""

from __future__ import annotations

from typing import Any

import peft
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner

from ..schemas.errors import MissingDependency
from .config import MeteoraConfig, MeteoraPeftType
from .model import MeteoraModel


def register() -> None:
    """Make PEFT and transformers load bundles; once or more often is the same.

    Raises:
        MissingDependency: PEFT is too old to let a tuner check what is loaded into it.
    """
    if not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        raise MissingDependency(
            f"peft is {peft.__version__}, expected 0.21 or later",
            hint="pip install 'meteora-registry[runtime]'",
        )
    # Any: PEFT types these by its own enum, ours only equals the string.
    entries: list[tuple[dict[Any, Any], Any]] = [
        (PEFT_TYPE_TO_CONFIG_MAPPING, MeteoraConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, MeteoraModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, MeteoraModel.prefix),
    ]
    for mapping, entry in entries:
        mapping[MeteoraPeftType.METEORA] = entry
