"""A base, or a bundle on its base, as commands load it: without progress bars where nobody watches."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

from ...runtime import GateNotFittedWarning, LoadedBundle, load_bundle
from ...runtime.fitting import OpenedBase


def load_base(base: OpenedBase) -> PreTrainedModel:
    """The model of a base.

    Raises:
        SourceUnreadable: it has no weights that transformers can load.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return base.load()


def load_for_command(folder: Path, base: OpenedBase) -> LoadedBundle:
    """Load a bundle on its base; that its gate is not fitted is for the command to say.

    Raises:
        SourceUnreadable: bundle or base cannot be read.
        BundleRefused: it is no bundle, or not one of this base.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GateNotFittedWarning)
        # PEFT asks transformers for it at every load.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return load_bundle(folder, load_base(base))
