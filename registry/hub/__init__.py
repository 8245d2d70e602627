"""The Hugging Face Hub, through huggingface_hub alone: nothing outside this folder talks to it."""

from ..dependencies import require_hub_client

# Before any module of this folder imports it, and says so in a traceback.
require_hub_client(with_cache=True)
