"""The PEFT tuner that runs a bundle.

Importing this package registers the peft type ``METEORA`` with PEFT, so that
``PeftModel.from_pretrained(base, DIR)``, ``AutoPeftModelForCausalLM.from_pretrained(DIR)``,
``AutoModelForCausalLM.from_pretrained(DIR)`` and ``model.load_adapter(DIR)`` accept a bundle. It costs
the import of torch, peft and transformers.
"""

from __future__ import annotations

from ..schemas.errors import MissingDependency

try:
    from .active_bundles import force_adapter, force_tokens, route_as, routing, uniform
    from .answers import Answer, AnswerStream
    from .layer import MeteoraLayer
    from .loaded_bundle import LoadedBundle, generate, load_bundle
    from .peft_config import GateNotFittedWarning, MeteoraConfig
    from .routing_record import RoutingRecord
    from .scopes.decision import Decision
    from .tuner import MeteoraModel, register
except ModuleNotFoundError as error:
    library = (error.name or "").partition(".")[0]
    if library not in ("torch", "peft", "transformers", "safetensors"):
        raise
    raise MissingDependency(
        f"loading a bundle needs `{library}`, which is not installed",
        extra="runtime",
    ) from error

register()

__all__ = [
    "Answer",
    "AnswerStream",
    "Decision",
    "GateNotFittedWarning",
    "LoadedBundle",
    "MeteoraConfig",
    "MeteoraLayer",
    "MeteoraModel",
    "RoutingRecord",
    "force_adapter",
    "force_tokens",
    "generate",
    "load_bundle",
    "register",
    "route_as",
    "routing",
    "uniform",
]
