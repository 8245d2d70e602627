"""Keys and certificates that sign bundles, read from PEM.

Signatures of this format are made with elliptic curves alone, so a key of another kind is refused in words.
Imported only after ``signers.require_signing``.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ..files.reading import read_bounded
from ..schemas.digest import Digest
from ..schemas.errors import UsageError

MAX_KEY_BYTES = 1 << 20
_MALFORMED = (ValueError, UnsupportedAlgorithm)
_WITHOUT_NAMES = (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
_KEYS = "expected a key of an elliptic curve (P-256, P-384 or P-521) in PEM"
_MAKE_KEY = "`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes one"


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a file.

    Raises:
        UsageError: there is none, it is encrypted, or it is of another kind.
        SourceUnreadable: the file cannot be read.
    """
    data = read_bounded(path, MAX_KEY_BYTES)
    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        raise UsageError(
            f"the key in `{path}` is encrypted, and a password cannot be given",
            hint="`openssl pkey -in KEY -out PLAIN` decrypts it; keep the plain key to yourself",
        ) from error
    except _MALFORMED as error:
        raise UsageError(f"`{path}` has no private key: {_KEYS}", hint=_MAKE_KEY) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise UsageError(f"`{path}` has a key of another kind: {_KEYS}", hint=_MAKE_KEY)
    return key


def load_public_key(pem: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Return a public key, which messages call ``name``.

    Raises:
        UsageError: there is none, or it is of another kind.
    """
    try:
        key = load_pem_public_key(pem)
    except _MALFORMED as error:
        raise UsageError(
            f"`{name}` has no public key: {_KEYS}", hint="`openssl pkey -in KEY -pubout` writes it"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise UsageError(f"`{name}` has a key of another kind: {_KEYS}", hint=_MAKE_KEY)
    return key


def read_certificate(pem: bytes, path: Path, public: bytes) -> tuple[bytes, bool]:
    """Return the first certificate of a file in DER, and whether it is of the public key.

    Raises:
        UsageError: there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        key = certificate.public_key()
    except _MALFORMED as error:
        raise UsageError(
            f"`{path}` has no certificate in PEM",
            hint="it begins with the signer's own, and those that lead to a root follow",
        ) from error
    is_of_key = isinstance(key, ec.EllipticCurvePublicKey) and pem_of(key) == public
    return certificate.public_bytes(Encoding.DER), is_of_key


def identities_of(der: bytes) -> list[str]:
    """Return the addresses, URIs and hosts of a certificate's owner; none if it cannot be read."""
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*_MALFORMED, *_WITHOUT_NAMES):
        return []
    return [
        *names.get_values_for_type(x509.RFC822Name),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
        *names.get_values_for_type(x509.DNSName),
    ]


def pem_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key in PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: ec.EllipticCurvePublicKey) -> Digest:
    """Return the digest by which a signature names its key."""
    return Digest.of_bytes(pem_of(key))
