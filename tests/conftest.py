"""What every test relies on: no test asks a model hub, and none is judged by how long it takes."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, so it stands before any import that might do that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from hypothesis import HealthCheck, settings

# On a busy machine an example takes as long as it takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
