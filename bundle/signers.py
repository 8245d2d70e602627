"""The signers that a person or a team accepts, with their keys and certificates read."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..files.reading import read_bounded
from ..schemas.errors import MissingDependency, UsageError

SIGNERS_VARIABLE = "METEORA_SIGNERS"
# The certificates of every public authority have 300 kB.
_MAX_MATERIAL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AcceptedKey:
    """A public key in PEM."""

    name: str
    pem: bytes


@dataclass(frozen=True, slots=True)
class AcceptedCertificate:
    """An identity in certificates that lead to one of ``roots``, which are in PEM."""

    identity: str
    roots: bytes


@dataclass(frozen=True, slots=True)
class AcceptedIdentity:
    """An identity that an issuer confirmed to Sigstore; its public instance without a ``trust_config``."""

    identity: str
    issuer: str
    trust_config: bytes | None = None


@dataclass(frozen=True, slots=True)
class Signers:
    """The signers that are accepted; a signature by any one of them is enough."""

    keys: tuple[AcceptedKey, ...] = ()
    certificates: tuple[AcceptedCertificate, ...] = ()
    identities: tuple[AcceptedIdentity, ...] = ()

    def __bool__(self) -> bool:
        """Return whether any signer is accepted."""
        return bool(self.keys or self.certificates or self.identities)

    def __or__(self, other: Signers) -> Signers:
        """Return the signers of both."""
        return Signers(
            self.keys + other.keys,
            self.certificates + other.certificates,
            self.identities + other.identities,
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a signers file, and the keys and certificates that it names.

        Raises:
            InvalidDocument: it breaks its schema, or names no signer.
            SourceUnreadable: it or a file that it names cannot be read.
        """
        # Every command loads this module, and few read such a file.
        from ..schemas.signers import SignersFile
        from ..schemas.toml import MAX_TOML_BYTES

        place = Path(path)
        file = SignersFile.from_toml(read_bounded(place, MAX_TOML_BYTES), what=place.name)

        def read(name: str) -> bytes:
            return read_bounded(place.parent / name, _MAX_MATERIAL_BYTES)

        return cls(
            tuple(AcceptedKey(each.name or each.public_key, read(each.public_key)) for each in file.key),
            tuple(AcceptedCertificate(each.identity, read(each.roots)) for each in file.certificate),
            tuple(
                AcceptedIdentity(
                    each.identity, each.issuer, read(each.trust_config) if each.trust_config else None
                )
                for each in file.sigstore
            ),
        )

    @classmethod
    def of(
        cls, *, public_keys: Iterable[str | os.PathLike[str]] = (), identities: Iterable[str] = ()
    ) -> Self:
        """Accept the owners of public keys, and identities that Sigstore confirms, as ``IDENTITY@ISSUER``.

        Raises:
            UsageError: an identity has another form.
            SourceUnreadable: a key cannot be read.
        """
        return cls(
            tuple(
                AcceptedKey(Path(path).name, read_bounded(Path(path), _MAX_MATERIAL_BYTES))
                for path in public_keys
            ),
            (),
            tuple(map(_parse_identity, identities)),
        )


def _parse_identity(text: str) -> AcceptedIdentity:
    # An identity is often an address of mail, with an `@` of its own.
    identity, found, issuer = text.rpartition("@https://")
    if not identity or not issuer:
        raise UsageError(
            f"the signer is `{text}`, expected IDENTITY@ISSUER, with an issuer that begins with `https://`",
            hint="for example `release@example.org@https://accounts.google.com`",
        )
    return AcceptedIdentity(identity, found[1:] + issuer)


def signers_of_environment() -> Signers | None:
    """Return the signers in the file that METEORA_SIGNERS names; None if it is not set or empty.

    Raises:
        InvalidDocument, SourceUnreadable: as ``Signers.read``.
    """
    path = os.environ.get(SIGNERS_VARIABLE)
    return Signers.read(path) if path else None


def require_signing() -> None:
    """Pass if the packages that make and check signatures are installed.

    Raises:
        MissingDependency: they are not.
    """
    if any(importlib.util.find_spec(name) is None for name in ("model_signing", "OpenSSL")):
        raise MissingDependency(
            "signatures need the package model-signing, which is not installed",
            extra="sign",
        )
