"""The Hugging Face Hub, through huggingface_hub alone: nothing outside this folder talks to it."""

from ..dependencies import require_hub_client

# Checked before any module of this folder imports the library, which would raise its own error.
require_hub_client(with_cache=True)
