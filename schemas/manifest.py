"""``meteora_manifest.json``: the digest of every other file of a bundle, and where its members came from.

It holds each member's own config and safetensors header word for word, so that ``extract`` can give
back the very bytes that went in and prove it by their digest. It names no time and no local path:
the same members and the same recipe give the same manifest.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .bundle import (
    MANIFEST_FILE,
    MAX_MEMBERS,
    MAX_MODULES,
    VERIFICATION_FILE,
    ModulePath,
    is_bundle_file,
)
from .digest import Digest
from .document import Count, Document, leaving_out
from .inventory import Dtype
from .names import Name, RelativePath
from .quotation import quote

MAX_MANIFEST_BYTES = 256 << 20
# Of 28 members with 448 modules it has 1000; with all of these modules renamed, 14 000.
MAX_MANIFEST_VALUES = 250_000
# Two of each member in `experts/`, and a few beside them.
MAX_FILES = 2 * MAX_MEMBERS + 64


_COMMIT = re.compile(r"[0-9a-f]{40}")


class FileRecord(Document):
    """One file's digest and size."""

    sha256: Digest
    size_bytes: Count


class Origin(Document):
    """The origin of an adapter: a Hub repository at a commit, or a folder known by its last name.

    A folder in a Hub cache has the location and the commit of the repository that it claims to be.
    """

    kind: Literal["hub", "folder"]
    location: str
    commit: str | None

    @property
    def is_claimed(self) -> bool:
        """Whether only the path of a folder names this repository as its origin."""
        return self.kind == "folder" and self.commit is not None

    def __str__(self) -> str:
        return self.location


class Cast(Document):
    """A change of element type that loses precision, asked for with ``--dtype``."""

    source: tuple[Dtype, ...]
    target: Dtype
    max_relative_error: float = Field(ge=0)


class ManifestMember(Document):
    """The facts about one member: origin, license, digests, and its own config and header word for word.

    ``renamed_modules`` maps a module path of the member's own to the bundle's, where the base's
    current implementation calls it something else. ``trusts_tensors`` is whether the member has modules that
    its config does not declare, so that PEFT alone would drop them.
    """

    # What changes a result comes with a required feature of the config, so other fields can be ignored.
    model_config = ConfigDict(extra="ignore")

    name: Name
    origin: Origin
    license: str | None
    base: str | None
    weights_sha256: Digest
    weights_bytes: Count
    config_sha256: Digest
    config_text: str
    weights_header: str
    renamed_modules: dict[ModulePath, ModulePath] = Field(max_length=MAX_MODULES)
    cast: Cast | None
    trusts_tensors: bool = False

    # A manifest without such members keeps the bytes it had before there was the field.
    _leave_out = leaving_out("trusts_tensors")

    @model_validator(mode="after")
    def _check_commit(self) -> Self:
        # The files of a branch change, so a claim that names one could never be held against it.
        if self.origin.commit is not None and not _COMMIT.fullmatch(self.origin.commit):
            raise ValueError(
                f"the origin of member `{self.name}` is at {quote(self.origin.commit)}, expected the 40 "
                "hexadecimal digits of a commit"
            )
        return self

    @model_validator(mode="after")
    def _check_config_text(self) -> Self:
        if Digest.of_bytes(self.config_text.encode("utf-8")) != self.config_sha256:
            raise ValueError(
                f"the config text of member `{self.name}` does not have the digest recorded for it"
            )
        return self


class Manifest(Document):
    """The manifest of a bundle, format 1."""

    meteora_manifest: Literal[1]
    files: dict[RelativePath, FileRecord] = Field(max_length=MAX_FILES)
    members: tuple[ManifestMember, ...] = Field(min_length=1, max_length=MAX_MEMBERS)

    @property
    def unknown_files(self) -> list[str]:
        """The files that it lists and that bundle format 1 does not have, in order."""
        return sorted(
            name
            for name in self.files
            if not is_bundle_file(name) or name in (MANIFEST_FILE, VERIFICATION_FILE)
        )

    @property
    def renamed_paths(self) -> list[str]:
        """Every module path of a member's own that the bundle calls something else, in order."""
        return sorted({path for member in self.members for path in member.renamed_modules})

    @classmethod
    def read(cls, data: bytes, *, what: str = MANIFEST_FILE) -> Self:
        """Read a manifest.

        Raises:
            InvalidDocument: it is larger than any bundle's, not JSON, or a field breaks the schema.
        """
        return cls.from_bytes(data, what=what, max_bytes=MAX_MANIFEST_BYTES, max_values=MAX_MANIFEST_VALUES)
