"""A bundle attached to its base without weights: whether it loads, found out before anyone needs it.

The base is built on the meta device and the layers are put in by the tuner itself, so that what is refused
here is what loading would refuse.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from transformers import PreTrainedModel

from ..bundle import Bundle
from ..files.reading import read_bounded
from ..schemas.bundle import CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES
from ..schemas.document import load_json
from .fitting.inputs import check_shapes
from .peft_config import MeteoraConfig
from .tuner import MeteoraModel, register


def attach(folder: Path, base: PreTrainedModel) -> None:
    """Put the layers of a bundle into a base on the meta device, which is of no other use afterwards.

    Raises:
        BundleRefused: the base lacks a module, or has another shape or another kind of layer there.
    """
    bundle = Bundle.open(folder)
    check_shapes(base, bundle.shapes, bundle.config.observed)
    register()
    data = read_bounded(folder / CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES)
    config = load_json(data, what=CONFIG_FILE, max_bytes=MAX_BUNDLE_CONFIG_BYTES)
    with warnings.catch_warnings():
        # A bundle that was just fused has no fitted gate.
        warnings.simplefilter("ignore")
        MeteoraModel(base, MeteoraConfig(**config), "default", low_cpu_mem_usage=True)
