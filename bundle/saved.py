"""A routed model that PEFT's ``save_pretrained`` wrote: a bundle's config and weights, with nothing else.

It has neither the manifest nor the verification of a bundle, so no tool takes it for one until its gates are
adopted.
"""

from __future__ import annotations

from pathlib import Path

from ..files.reading import read_bounded
from ..inspection.header import read_header
from ..schemas.bundle import CONFIG_FILE, MANIFEST_FILE, MAX_BUNDLE_CONFIG_BYTES, PEFT_TYPE, WEIGHTS_FILE
from ..schemas.document import load_json
from ..schemas.errors import BundleRefused, MeteoraError

_ADOPT = "`meteora-registry gate adopt {folder} --out NEW` makes it a version of the bundle that it came from"


def is_saved_model(folder: Path) -> bool:
    """Return whether a folder has a routed model as PEFT saves it, and no bundle."""
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if (folder / MANIFEST_FILE).exists() or not (config.is_file() and weights.is_file()):
        return False
    try:
        data = read_bounded(config, MAX_BUNDLE_CONFIG_BYTES)
        value = load_json(data, what=CONFIG_FILE, max_bytes=MAX_BUNDLE_CONFIG_BYTES)
        # A bundle's weights state their format, PEFT's do not.
        return value.get("peft_type") == PEFT_TYPE and "meteora_format" not in read_header(weights).metadata
    except MeteoraError:
        return False


def refuse_saved_model(folder: Path) -> None:
    """Refuse a folder that has a routed model as PEFT saves it.

    Raises:
        BundleRefused: it has one.
    """
    if is_saved_model(folder):
        raise BundleRefused(
            f"`{folder}` is a routed model that PEFT saved, and not a bundle yet: it has no "
            f"`{MANIFEST_FILE}` and was never verified",
            hint=_ADOPT.format(folder=folder),
        )
