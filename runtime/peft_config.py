"""The bundle's config as a ``PeftConfig``, checked by the schema when it is made.

PEFT passes the keys of ``adapter_config.json`` as keyword arguments and writes the fields back when it
saves, so the fields here are plain JSON values; everything else reads ``bundle``, the checked document.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import nn

from ..schemas.base_name import is_other_base, parse_cache_path
from ..schemas.bundle import IMPORTED, PEFT_TYPE, BundleConfig, Fitting, check_readable
from ..schemas.digest import Digest
from .requirements import check_folder, manifest_in


class GateNotFittedWarning(UserWarning):
    """The gate of a loaded bundle is not fitted, so its routing means nothing yet."""


class MeteoraPeftType(str, Enum):  # noqa: UP042 (PEFT shows the type by what follows the dot of `str()`)
    """PEFT's own enum of types is closed; a member that equals the same string finds the same entries."""

    METEORA = PEFT_TYPE


@dataclass
class MeteoraConfig(PeftConfig):
    """The keys of a bundle's ``adapter_config.json``; ``bundle`` is their checked form.

    Raises:
        BundleRefused: not a bundle, another format, or a required feature that this reader does not know.
        InvalidDocument: a field breaks the schema.
    """

    peft_type: Any = MeteoraPeftType.METEORA
    meteora_format: Any = None
    required_features: Any = None
    target_modules: Any = None
    members: Any = None
    rank_alignment: Any = None
    top_k: Any = None
    temperature: Any = None
    gate: Any = None
    changed_from: Any = None

    def __post_init__(self) -> None:
        value = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        check_readable(value, what="adapter_config.json")
        super().__post_init__()  # type: ignore[no-untyped-call]  # PEFT leaves it untyped
        self.is_checked = False
        self.manifest_sha256: Digest | None = None
        self._bundle = BundleConfig.from_value(value, what="adapter_config.json")
        self.peft_type = MeteoraPeftType.METEORA
        # PEFT shortens a list or a set of many paths to suffixes, but leaves a tuple as it is.
        self.target_modules = self._bundle.target_modules

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Read the config of a bundle, after its folder was checked.

        Raises:
            BundleRefused, InvalidDocument, SourceUnreadable: as ``check_folder``.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.is_checked = True
        config.manifest_sha256 = manifest_in(Path(pretrained_model_name_or_path, subfolder or ""))
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> Any:
        """Read the file as PEFT does; ``from_pretrained`` calls it with where it found the config."""
        # PEFT takes the last of two values of one key.
        check_folder(Path(path_json_file).parent)
        return super().from_json_file(path_json_file, **kwargs)

    @property
    def bundle(self) -> BundleConfig:
        """The checked document."""
        return self._bundle


def warn_of_other_base(model: nn.Module, bundle: BundleConfig) -> None:
    """Warn if the base was loaded under the name of another model than the bundle was fused for.

    Shapes alone do not tell two bases apart, and on the wrong one every answer is silently wrong.
    """
    loaded = getattr(model, "name_or_path", None)
    # A folder may be called anything, such as `models/base`.
    if not isinstance(loaded, str) or (Path(loaded).exists() and not parse_cache_path(loaded)):
        return
    if is_other_base(loaded, bundle.base_model_name_or_path):
        warnings.warn(
            f"the base is `{loaded}`, and the bundle was fused for `{bundle.base_model_name_or_path}`",
            stacklevel=2,
        )


def warn_unless_fitted(bundle: BundleConfig, adapter_name: str) -> None:
    """Warn once per load that the gate is not fitted, or may not be, and what to do about it."""
    fitted = bundle.gate.fitted
    if not isinstance(fitted, Fitting):
        state = f"is not fitted: which of its {len(bundle.members)} members a token takes means nothing yet"
    elif fitted.method == IMPORTED:
        state = "came with another layout, which does not state whether it was fitted, or on what"
    else:
        return
    warnings.warn(
        f"the gate of bundle `{adapter_name}` {state}; use one member with `force_adapter(model, NAME)`, "
        "or fit the gates with `meteora-registry gate fit`",
        GateNotFittedWarning,
        stacklevel=2,
    )
