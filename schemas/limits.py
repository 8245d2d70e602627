"""The largest sizes that are written and fetched; apart from the documents, which take longer to import."""

from __future__ import annotations

# The largest bundle that is written, and that is fetched unless the caller sets another limit.
MAX_BUNDLE_BYTES = 50_000_000_000
# The largest file of an adapter that is fetched unless the caller sets another limit.
MAX_ADAPTER_FILE_BYTES = 5_000_000_000
