"""What every test relies on: no test ever asks a model hub, not even whether a name exists there."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, so it stands before any import that might do that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
