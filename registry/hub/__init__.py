"""The Hugging Face Hub, through huggingface_hub alone: nothing outside this folder imports it."""
