"""Default limits on downloads from the Hub; apart from the Hub's folder, which needs huggingface_hub."""

MAX_ADAPTER_FILE_BYTES = 5_000_000_000
MAX_BUNDLE_BYTES = 50_000_000_000
