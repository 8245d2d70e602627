"""A trace of which member each token took: recorded from a model, and drawn as one self-contained page."""

from __future__ import annotations

from .page import render_page
from .recorder import trace

__all__ = ["render_page", "trace"]
