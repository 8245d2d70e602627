"""All forgeries: what is forged is in the modules beside this one, which fill the registry."""

from __future__ import annotations

from . import of_config, of_files, of_members, of_requests, of_weights
from .forger import FORGERIES, Forger, forgery

__all__ = ["FORGERIES", "of_config", "of_files", "of_members", "of_requests", "of_weights"]


@forgery("nothing: the bundle as it was fused")
def untouched(forger: Forger) -> None:
    pass


@forgery("nothing: the bundle sealed again by the forger's own tools")
def sealed_again(forger: Forger) -> None:
    for name in ("alpha", "beta", "gamma"):
        forger.requote_weights(name)
    forger.seal()
