"""What every test relies on: no test asks a model hub, and none is judged by how long it takes."""

from __future__ import annotations

import os
import signal

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they
# start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when huggingface_hub is imported, so it stands before any import that might do that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Where several processes compute at once, each with a thread for every core, threads wait for one another: that
# costs several times the work. Read when torch is imported, here and in every program that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from meteora_registry.registry import secrets

# On a busy machine an example takes as long as it takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test hide what another one's URLs made a secret of this process."""
    monkeypatch.setattr(secrets, "_remembered", set())
