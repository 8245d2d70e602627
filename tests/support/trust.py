"""A bundle's statements about itself, forged."""

from __future__ import annotations

import json
from pathlib import Path

from meteora_registry.bundle.files import write_record
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.schemas.bundle import VERIFICATION_FILE
from meteora_registry.schemas.verification import Level


def claim_a_pass(bundle: Path) -> None:
    """Write the record of a verification at level source that passed, whatever the bundle is now."""
    record = json.loads((bundle / VERIFICATION_FILE).read_bytes())
    found = verify_bundle(bundle, level=Level.INTEGRITY)
    del record["record_sha256"]
    write_record(
        bundle,
        type(found)
        .from_value(record, what="record")
        .model_copy(update={"manifest_sha256": found.manifest_sha256}),
    )
