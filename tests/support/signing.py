"""Keys, certificates and signatures of tests, made with `cryptography`, some of them forged."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

RELEASE = "release@example.org"
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class KeyFiles:
    """A private key and its public key, in files."""

    private: Path
    public: Path


def make_key(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> KeyFiles:
    """Make a key, and return its files."""
    folder.mkdir(exist_ok=True)
    return write_key(folder, name, ec.generate_private_key(curve or ec.SECP256R1()))


def write_key(folder: Path, name: str, key: Any) -> KeyFiles:
    """Write a key of any kind, and return its files."""
    files = KeyFiles(folder / f"{name}.key", folder / f"{name}.pub")
    files.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files.public.write_bytes(public)
    return files


class Authority:
    """An authority of certificates: a root and one below it, which issues certificates that sign."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.roots = folder / f"{name}-roots.pem"
        self._root_key, self._key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = _certificate(f"{name} root", self._root_key, f"{name} root", self._root_key, is_authority=True)
        self._name = name
        self._own = _certificate(name, self._key, f"{name} root", self._root_key, is_authority=True)
        self.roots.write_bytes(root.public_bytes(Encoding.PEM))

    def issue(self, identity: str | None = RELEASE, *, days: int = 1, name: str = "signer") -> KeyFiles:
        """Make a key with a certificate; ``public`` is the certificate, and the authority's own after it.

        Args:
            identity: the address of the owner, if it is to have one.
            days: until its end; negative if that is over.
            name: of the files.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        files = write_key(self.folder, name, key)
        leaf = _certificate(name, key, self._name, self._key, identity=identity, days=days)
        files.public.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, self._own)))
        return files


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = False,
    identity: str | None = None,
    days: int = 1,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - (30 if is_authority else 10) * _DAY)
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if not is_authority:
        usage = x509.KeyUsage(True, *[False] * 8)
        builder = builder.add_extension(usage, critical=True)
    if identity is not None:
        owner = x509.SubjectAlternativeName([x509.RFC822Name(identity)])
        builder = builder.add_extension(owner, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def change_signature(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON of a signature."""
    path = folder / "model.sig"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def change_statement(folder: Path, change: Callable[[dict[str, Any]], None], key: Path | None = None) -> None:
    """Change what a signature states; with the private ``key`` the result is genuine."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    def restate(value: dict[str, Any]) -> None:
        envelope = value["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        payload = json.dumps(statement).encode()
        envelope["payload"] = base64.b64encode(payload).decode()
        if key is not None:
            private = load_pem_private_key(key.read_bytes(), None)
            assert isinstance(private, ec.EllipticCurvePrivateKey)
            # The encoding before signing of DSSE, https://github.com/secure-systems-lab/dsse.
            kind = envelope["payloadType"]
            text = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
            made = private.sign(text, ec.ECDSA(hashes.SHA256()))
            envelope["signatures"][0]["sig"] = base64.b64encode(made).decode()

    change_signature(folder, restate)
