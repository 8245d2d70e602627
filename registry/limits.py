"""How much is fetched from the Hub unless somebody asks for more."""

MAX_ADAPTER_FILE_BYTES = 5_000_000_000
MAX_BUNDLE_BYTES = 50_000_000_000
