"""``trace``: a bundle's folder and a prompt in, which member each token took out."""

from __future__ import annotations

from pathlib import Path

from ...bundle import Bundle
from ...files.reading import real_path
from ...files.writing import check_writable, write_whole
from ...runtime import tracing
from ...runtime.fitting import open_base
from ...schemas.trace import Trace
from .loading import load_for_command


def trace(folder: Path, base: str, prompt: str, *, max_new_tokens: int, page: Path | None = None) -> Trace:
    """Load a bundle on its base and trace one prompt and its greedy answer.

    Args:
        folder: the bundle.
        base: the name or the folder of its base.
        prompt: taken as it is.
        max_new_tokens: the longest answer; 0 reads the prompt alone.
        page: where ``write_page`` will be asked to write; looked at before anything is loaded.

    Raises:
        SourceUnreadable: bundle or base cannot be read, or no file can be put at ``page``.
        BundleRefused: it is no bundle, or not one of this base.
        UsageError: the prompt is empty, or too long for the base or for a trace.
    """
    if page is not None:
        check_writable(page)
    # Before the base is loaded, which takes longer.
    Bundle.open(folder)
    loaded = load_for_command(folder, open_base(base))
    return tracing.trace(loaded, prompt, max_new_tokens=max_new_tokens, bundle=real_path(folder).name)


def write_page(path: Path, found: Trace) -> None:
    """Write a trace as one HTML page, in place of what is there.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    write_whole(path, tracing.render_page(found).encode("utf-8"))
