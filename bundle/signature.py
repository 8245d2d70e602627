"""``model.sig``: what a signature states, read without believing it.

The format is that of OpenSSF Model Signing 1.0: a Sigstore bundle around an in-toto statement that lists
files with their digests. A signature of a bundle covers its manifest and its verification record; the
manifest has the digests of all other files. Whether the signature is genuine, and by whom, is found in
``signing``.

Every field is read strictly, because the library that checks the signature reads the file once more: nothing
may be there twice, or under two spellings, for the two to read differently.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from ..files.reading import cached_blob, read_bounded, read_start
from ..schemas.bundle import MANIFEST_FILE, SIGNATURE_FILE, VERIFICATION_FILE
from ..schemas.digest import Digest
from ..schemas.document import Document
from ..schemas.errors import BundleRefused, InvalidDocument, MeteoraError
from ..schemas.manifest import MAX_MANIFEST_BYTES
from ..schemas.signers import Method
from .opened import MAX_RECORD_BYTES

# One of Sigstore has 12 kB, one with a long chain of certificates 20 kB.
MAX_SIGNATURE_BYTES = 256 << 10
# What a signature covers, with the largest size of each.
COVERED = {MANIFEST_FILE: MAX_MANIFEST_BYTES, VERIFICATION_FILE: MAX_RECORD_BYTES}

_MAX_VALUES = 10_000
_SIGN = "its publisher signs it with `meteora-registry push --sign`"
_Base64 = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SIGNATURE_BYTES)]


class _Wire(Document):
    """A part of a Sigstore bundle, whose JSON spells names with capitals."""

    model_config = ConfigDict(alias_generator=to_camel)


class _PublicKey(_Wire):
    hint: Digest


class _Certificate(_Wire):
    raw_bytes: _Base64


class _Chain(_Wire):
    certificates: Annotated[tuple[_Certificate, ...], Field(min_length=1, max_length=20)]


class _Material(_Wire):
    """The key or certificates of a signature; entries of Sigstore's log are left to its own library."""

    public_key: _PublicKey | None = None
    x509_certificate_chain: _Chain | None = None
    certificate: _Certificate | None = None
    tlog_entries: tuple[dict[str, Any], ...] = ()
    timestamp_verification_data: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        if (
            sum(each is not None for each in (self.public_key, self.x509_certificate_chain, self.certificate))
            != 1
        ):
            raise ValueError("expected one of `publicKey`, `x509CertificateChain` and `certificate`")
        return self


class _Signed(_Wire):
    sig: _Base64
    keyid: str | None = None


class _Envelope(_Wire):
    payload: _Base64
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: tuple[_Signed]


class _File(_Wire):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(Document):
    name: str
    algorithm: Literal["sha256"]
    digest: Digest


class _Serialization(Document):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: tuple[str, ...] = ()


class _Predicate(Document):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Subject(Document):
    name: str
    digest: dict[str, str]


class _Statement(_Wire):
    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it was read; ``files`` are the digests that it states, by their names.

    ``key`` is the digest of the public key that it names, ``certificates`` the chain, the signer's own first.
    """

    data: bytes
    method: Method
    files: dict[str, Digest]
    key: Digest | None
    certificates: tuple[bytes, ...]


def has_signature(folder: Path) -> bool:
    """Return whether a bundle has something in the place of a signature."""
    path = folder / SIGNATURE_FILE
    return path.is_symlink() or path.exists()


def read_signature(folder: Path, what: str) -> Signature:
    """Read the signature of a bundle, which messages call ``what``.

    Raises:
        BundleRefused: there is none, or it cannot be read: a link, too large, of another form.
    """
    if not has_signature(folder):
        raise BundleRefused(f"{what} is not signed: it has no `{SIGNATURE_FILE}`", hint=_SIGN)
    path = folder / SIGNATURE_FILE
    try:
        return _parse(read_start(cached_blob(path) or path, MAX_SIGNATURE_BYTES))
    except MeteoraError as error:
        raise BundleRefused(
            f"the signature of {what} cannot be read: {error}", hint="get the bundle again"
        ) from error


def _parse(data: bytes) -> Signature:
    file = _File.from_bytes(data, what=SIGNATURE_FILE, max_bytes=MAX_SIGNATURE_BYTES, max_values=_MAX_VALUES)
    statement = _Statement.from_bytes(
        _decode(file.dsse_envelope.payload), what="its statement", max_values=_MAX_VALUES
    )
    material = file.verification_material
    if material.public_key is not None:
        method: Method = "key"
    else:
        method = "certificate" if material.x509_certificate_chain is not None else "sigstore"
    chain: tuple[_Certificate, ...] = (material.certificate,) if material.certificate else ()
    if material.x509_certificate_chain is not None:
        chain = material.x509_certificate_chain.certificates
    resources = statement.predicate.resources
    files = {each.name: each.digest for each in resources}
    if len(files) < len(resources):
        raise InvalidDocument("its statement lists a file twice")
    return Signature(
        data,
        method,
        files,
        material.public_key.hint if material.public_key else None,
        tuple(_decode(each.raw_bytes) for each in chain),
    )


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidDocument(f"`{SIGNATURE_FILE}` has a value that is not base64: {error}") from error


def read_covered(folder: Path, what: str) -> dict[str, bytes]:
    """Return the files of a bundle that a signature covers, by their names.

    Raises:
        BundleRefused: one is missing.
        SourceUnreadable: one is too large, or cannot be read.
    """
    for name in COVERED:
        if not (folder / name).is_file():
            raise BundleRefused(f"{what} has no `{name}`, which a signature covers", hint=_SIGN)
    return {name: read_bounded(folder / name, limit) for name, limit in COVERED.items()}


def check_covers(signature: Signature, covered: dict[str, bytes], what: str) -> None:
    """Check that a signature states these very files, and no other; messages call the bundle ``what``.

    Raises:
        BundleRefused: it states other digests, or other files.
    """
    if signature.files.keys() != covered.keys():
        found = ", ".join(f"`{name[:80]}`" for name in sorted(signature.files)[:5]) or "nothing"
        raise BundleRefused(
            f"the signature of {what} covers {len(signature.files)} files ({found}), expected "
            + " and ".join(f"`{name}`" for name in sorted(covered)),
            hint=_SIGN,
        )
    for name, data in covered.items():
        if (found := Digest.of_bytes(data)) != signature.files[name]:
            raise BundleRefused(
                f"the signature of {what} is for another `{name}`: it states the digest "
                f"`{signature.files[name].short}`, found `{found.short}`",
                hint=f"`{name}` was changed since it was signed; {_SIGN}",
            )
