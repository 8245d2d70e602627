"""The facts of an adapter and of a bundle: measured once, then stored, exported and shown field by field.

The catalog makes a column of each field, of a type that follows from the field's (``catalog/models.py``), and
the records that it gives back inherit the fields. A new fact is a field here, the place that measures it, and
a migration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from .digest import Digest

# What the catalog has to know of a value besides its Python type.
Foreign = Annotated[str, "written by others: any characters, any length"]
Word = Annotated[str, "one of this project's own words"]
ByteCount = Annotated[int, "may exceed 32 bits"]


@dataclass(frozen=True, slots=True)
class ListedFacts:
    """The facts of an adapter that lists and search results have, too.

    Attributes:
        weights_bytes: the size of the weights file.
        license: as the card beside the adapter states it.
        max_rank: the largest rank of any module; None for an adapter without LoRA factors.
        dtypes: the element types of the factors, sorted by name.
    """

    weights_bytes: ByteCount
    license: Foreign | None
    max_rank: int | None
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterFacts(ListedFacts):
    """The facts that the files of one adapter state; texts from its config are escaped.

    Attributes:
        weights_sha256: the digest of the weights file.
        config_sha256: the digest of the config file.
        canonical_config_sha256: the digest of the config's values, however they are written.
        declared_base: the base model that the config names.
        base_revision: the revision of the base that the config names.
        task_type: PEFT's name for the task.
        peft_version: the version of PEFT that wrote the config.
        shape_signature: a digest of module paths and shapes; None for an adapter without LoRA factors.
        rank: the config's own rank, which patterns may change for some modules; None as above.
        scaling: the config's own scaling, likewise.
    """

    weights_sha256: Digest
    config_sha256: Digest
    canonical_config_sha256: Digest
    declared_base: Foreign | None
    base_revision: Foreign | None
    task_type: Foreign | None
    peft_version: Foreign | None
    shape_signature: Digest | None
    rank: int | None
    scaling: float | None


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """The facts that the folder of one bundle states.

    Attributes:
        manifest_sha256: the digest of the manifest, which has the digests of the other files.
        size_bytes: the size of all files in the folder.
        base: the base model that the bundle names.
        base_revision: its revision.
        dtype: the element type of the factors.
        top_k: how many members the gate gives each token.
        temperature: what the gate's logits are divided by.
        gate_kind: how the gate's logits are computed.
        gate_scope: what one decision of the gate serves.
        gate_fitted: the method by which the gate was fitted, or that it was not.
    """

    manifest_sha256: Digest
    size_bytes: ByteCount
    base: Foreign | None
    base_revision: Foreign | None
    dtype: Word
    top_k: int
    temperature: float
    gate_kind: Word
    gate_scope: Word
    gate_fitted: str


def values_of(facts: ListedFacts | BundleFacts) -> dict[str, Any]:
    """Return the fields of a value by name, for a record that has them and more."""
    return {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
