"""Signers: who signed a bundle, who is to sign one, and whose signatures a team accepts.

The last is a TOML file, so that a person can read it and a change of it can be reviewed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints

from .digest import Digest
from .document import Document
from .errors import InvalidDocument
from .toml import TomlDocument

Method = Literal["key", "certificate", "sigstore"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
# A file beside the signers file, or anywhere by its whole path.
FileName = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class KeySigner(Document):
    """A public key, and what it is called in output."""

    public_key: FileName
    name: Text | None = None


class CertificateSigner(Document):
    """An identity in certificates that the certificates in a file lead to."""

    identity: Text
    roots: FileName


class SigstoreSigner(Document):
    """An identity that an issuer confirmed to Sigstore; ``trust_config`` is for an instance of one's own."""

    identity: Text
    issuer: Text
    trust_config: FileName | None = None


_Some = Field(default=(), max_length=1000)


class SignersFile(TomlDocument):
    """The accepted signers; a signature by any one of them is enough."""

    example: ClassVar[str] = (
        'such as `meteora_signers = 1`, then `[[key]]` and `public_key = "FILE"`; see docs/signing.md'
    )

    meteora_signers: Literal[1]
    key: tuple[KeySigner, ...] = _Some
    certificate: tuple[CertificateSigner, ...] = _Some
    sigstore: tuple[SigstoreSigner, ...] = _Some

    @classmethod
    def from_toml(cls, data: bytes, *, what: str) -> Self:
        """Read a signers file.

        Raises:
            InvalidDocument: too large or too deep, not TOML, a field breaks the schema, or no signer.
        """
        file = super().from_toml(data, what=what)
        if not (file.key or file.certificate or file.sigstore):
            raise InvalidDocument(
                f"`{what}` names no signer, so it accepts nothing",
                hint="add a table `[[key]]`, `[[certificate]]` or `[[sigstore]]`",
            )
        return file


@dataclass(frozen=True, slots=True)
class SignedBy:
    """The signer of a bundle, as a check of its signature found it.

    ``fingerprint`` is the digest of the public key or of the certificate; Sigstore alone has an ``issuer``.
    """

    method: Method
    signer: str
    fingerprint: Digest
    issuer: str | None = None

    def __str__(self) -> str:
        match self.method:
            case "key":
                return f"{self.signer} (key {self.fingerprint.short})"
            case "certificate":
                return f"{self.signer} (certificate {self.fingerprint.short})"
            case "sigstore":
                return f"{self.signer} (confirmed by {self.issuer or 'Sigstore'})"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key in PEM, and the file with its certificate and those that lead to a root, if it has any.

    Without a key the signer is who Sigstore finds: a CI job by its own token, a person in a browser.
    """

    key: str | os.PathLike[str] | None
    certificate: str | os.PathLike[str] | None = None
