"""The plugin of vLLM by which a request may name an adapter of the catalog: `model="legal@champion"`.

vLLM asks a resolver for a name that it does not serve, if `VLLM_ALLOW_RUNTIME_LORA_UPDATING` is set. A name
is a reference to the catalog and nothing else: no path, no address, no repository. vLLM is imported when it
calls.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from ..schemas.errors import AdapterRefused, MeteoraError, NotInCatalog, UsageError
from ..schemas.names import CatalogSource, parse_catalog_source
from .settings import Settings
from .workspace import Workspace

if TYPE_CHECKING:
    from .workflows.served_adapters import ServedAdapter

NAME = "meteora-registry"
# vLLM shows the messages of its own loggers, and this is below them.
_LOG = logging.getLogger("vllm.plugins.meteora_registry")


def register() -> None:
    """Register the resolver with vLLM, which calls this in each of its processes."""
    try:
        from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
    except ImportError as error:
        # An engine that has no resolvers serves all the same.
        _LOG.warning("this vLLM takes no resolver of adapters: %s", error)
        return
    LoRAResolver.register(CatalogResolver)
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, CatalogResolver())


class CatalogResolver:
    """A resolver of vLLM that looks names up in the catalog of METEORA_HOME or METEORA_CATALOG."""

    def __init__(self) -> None:
        self._workspace: Workspace | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Return the request by which vLLM loads a catalogued adapter; None if there is none of that name.

        Raises:
            VLLMValidationError: the adapter is there, and not for this engine.
            VLLMServerError: the catalog, the store or the folder failed.
        """
        source = _parse(lora_name)
        if source is None:
            return None
        begun = time.monotonic()
        try:
            served = await asyncio.to_thread(self._serve, source, base_model_name)
        except MeteoraError as error:
            raise _as_vllm(error) from error
        if served is None:
            return None
        name = engine_name(source, served.version)
        _LOG.info("`%s` is in `%s` after %.2f s", name, served.folder, time.monotonic() - begun)
        return _request(name, served)

    def _serve(self, source: CatalogSource, base_model_name: str) -> ServedAdapter | None:
        from .workflows.served_adapters import BASE_VARIABLE, serve_adapter

        workspace = self._open()
        if workspace is None:
            return None
        try:
            return serve_adapter(workspace, source, os.environ.get(BASE_VARIABLE) or base_model_name)
        except NotInCatalog:
            return None

    def _open(self) -> Workspace | None:
        """Return the workspace; None where there is no catalog, which an engine must not create."""
        if self._workspace is None:
            home = Settings.read().place
            if home.catalog_url is None and not home.catalog_file.exists():
                _LOG.warning("there is no catalog at `%s`, so that no adapter is found", home.catalog_file)
                return None
            self._workspace = Workspace(home)
        return self._workspace


def engine_name(asked: CatalogSource, version: CatalogSource) -> str:
    """Return what the engine calls an adapter: `legal@3`, or `legal@champion=3` for what may change.

    vLLM takes two requests of one name for the same adapter, so a version that two names lead to has two
    names there; and a client reads in the answer's `model` which version answered.
    """
    return str(asked) if asked.version is not None else f"{asked}={version.version}"


def _parse(name: str) -> CatalogSource | None:
    try:
        return parse_catalog_source(name)
    except UsageError:
        return None


def _request(name: str, served: ServedAdapter) -> Any:
    from vllm.lora.request import LoRARequest

    # vLLM 0.32.0 puts a number of its own in place of this one.
    number = int(served.files_digest[:15], 16) + 1
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(served.folder))


def _as_vllm(error: MeteoraError) -> Exception:
    from vllm.exceptions import VLLMServerError, VLLMValidationError

    message = f"{error.message}; {error.hint}" if error.hint else error.message
    _LOG.warning("%s", message)
    if isinstance(error, AdapterRefused):
        refused: Exception = VLLMValidationError(message, parameter="model")
        return refused
    # What failed is the operator's affair, and may name a place.
    failed: Exception = VLLMServerError("the registry of adapters failed; its log has the reason")
    return failed
