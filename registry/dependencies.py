"""The optional parts of the package, asked for before they are imported."""

from __future__ import annotations

import importlib.util

from ..schemas.errors import MissingDependency, UsageError


def has_torch() -> bool:
    """Return whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str) -> None:
    """Pass if torch is installed.

    Raises:
        MissingDependency: it is not; the message names the purpose.
    """
    if not has_torch():
        raise MissingDependency(f"{purpose} needs torch, which is not installed", extra="runtime")
    # transformers imports it.
    require_hub_client()


def require_serving() -> None:
    """Pass if the libraries of the server are installed.

    Raises:
        MissingDependency: one is not.
    """
    for library in ("starlette", "uvicorn", "sse_starlette", "prometheus_client"):
        if importlib.util.find_spec(library) is None:
            raise MissingDependency(f"serving needs `{library}`, which is not installed", extra="serve")


def require_hub_client(*, with_cache: bool = False) -> None:
    """Pass if huggingface_hub can be imported, which reads its settings from the environment as it is.

    Raises:
        UsageError: a variable has a value that it does not take, or ``with_cache``, and it has no folder.
    """
    try:
        from huggingface_hub import constants
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(
            f"huggingface_hub does not take this environment: {error}",
            hint="check the variables that begin with `HF_`, such as HF_ENDPOINT",
        ) from error
    # What `expanduser` leaves alone would become a folder of that name in the current one.
    if with_cache and str(constants.HF_HUB_CACHE).startswith("~"):
        raise UsageError(
            "the Hub's cache has no folder: this account has no home", hint="name one in HF_HOME"
        )
