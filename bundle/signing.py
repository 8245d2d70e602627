"""Signatures over a bundle's manifest and record, made and checked with the package `model-signing`.

The package signs folders, so it is given one of two files. What it finds genuine must also be what the strict
reader in ``signature`` read. Neither a bundle nor its weights are ever given to it. Imported only after
``signers.require_signing``.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from model_signing import hashing, signing, verifying

from ..files.reading import read_bounded
from ..files.scratch import Purpose, temporary_folder
from ..files.writing import write_whole
from ..schemas.bundle import SIGNATURE_FILE
from ..schemas.digest import Digest
from ..schemas.errors import BundleRefused, UsageError
from ..schemas.signers import SignedBy, SigningKey
from .keys import (
    MAX_KEY_BYTES,
    fingerprint,
    identities_of,
    load_private_key,
    load_public_key,
    pem_of,
    read_certificate,
)
from .signature import Signature, check_covers, has_signature, read_covered, read_signature
from .signers import AcceptedCertificate, AcceptedIdentity, AcceptedKey, Signers

# The package states its types, but not that these return anything.
_HASHING: Callable[[], Any] = hashing.Config
_SIGNING: Callable[[], Any] = signing.Config
_VERIFYING: Callable[[], Any] = verifying.Config
_SHOWN_CHARACTERS = 300
_SHOWN_SIGNERS = 5
_GET_AGAIN = "get the bundle again, or ask its publisher to sign it again"
_SIGN_AGAIN = "check the key, or with Sigstore the network and the identity, and sign it again"


def check_signature(folder: Path, signers: Signers, what: str | None = None) -> SignedBy:
    """Return who signed the manifest and the record of a bundle, if that signer is accepted.

    Args:
        folder: the bundle, or its manifest, record and signature alone.
        signers: who is accepted.
        what: how messages call it; by default by its folder.

    Raises:
        BundleRefused: it is not signed, the signature is for other files, is not genuine, or is by another
            signer.
        UsageError: an accepted key or certificate cannot be read.
        SourceUnreadable: the manifest or the record cannot be read.
    """
    what = what or f"`{folder}`"
    signature, covered = read_signature(folder, what), read_covered(folder, what)
    check_covers(signature, covered, what)
    with temporary_folder(Purpose.SIGN) as scratch:
        attempts = list(_attempts(signature, signers, scratch))
        if not attempts:
            raise BundleRefused(
                f"{what} is signed {_describe_signer(signature)}, expected {_describe_accepted(signers)}",
                hint="ask its publisher who signs it, and accept that signer if you trust it",
            )
        model = _write_covered(covered, scratch)
        place = _write(scratch / SIGNATURE_FILE, signature.data)
        for attempt in attempts:
            try:
                message = f"the signature of {what} does not verify with {attempt.whose}"
                with _wrapped(message, hint=_GET_AGAIN):
                    config = attempt.configure(_VERIFYING()).set_hashing_config(_HASHING())
                    config.verify(model, place)
            except BundleRefused:
                if attempt is attempts[-1]:
                    raise
            else:
                return attempt.signed_by
    raise AssertionError("the last attempt returns or raises")


def sign_bundle(folder: Path, by: SigningKey) -> SignedBy:
    """Sign the manifest and the record of a bundle; a signature that is there and is the same is kept.

    Raises:
        UsageError: the key or the certificate cannot be used.
        BundleRefused: there is no record, or no signature could be made.
        SourceUnreadable: a file cannot be read or written.
    """
    own = _read_own(by)
    if own is not None and (found := _find_kept(folder, own)):
        return found
    what = f"`{folder}`"
    covered = read_covered(folder, what)
    with temporary_folder(Purpose.SIGN) as scratch:
        model = _write_covered(covered, scratch)
        with _wrapped(f"{what} could not be signed", hint=_SIGN_AGAIN, output=sys.stderr):
            _signer(by).sign(model, scratch / SIGNATURE_FILE)
        signature = read_signature(scratch, what)
    check_covers(signature, covered, what)
    signed_by = _signed_by_sigstore(signature) if own is None else own.signed_by
    write_whole(folder / SIGNATURE_FILE, signature.data)
    return signed_by


def check_key(by: SigningKey) -> None:
    """Check that a key and its certificate can be used, before anything else is done.

    Raises:
        UsageError: they cannot.
        SourceUnreadable: a file cannot be read.
    """
    _read_own(by)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One accepted signer who may have made a signature, and how the package is set up to find that out."""

    whose: str
    signed_by: SignedBy
    configure: Callable[[Any], Any]


def _attempts(signature: Signature, signers: Signers, scratch: Path) -> Iterator[_Attempt]:
    """Yield the accepted signers whom a signature names."""
    match signature.method:
        case "key":
            return _attempts_with_keys(signature, signers.keys, scratch)
        case "certificate":
            return _attempts_with_certificates(signature, signers.certificates, scratch)
        case "sigstore":
            return _attempts_with_identities(signature, signers.identities, scratch)


def _attempts_with_keys(
    signature: Signature, accepted: Iterable[AcceptedKey], scratch: Path
) -> Iterator[_Attempt]:
    for number, each in enumerate(accepted):
        found = fingerprint(load_public_key(each.pem, each.name))
        if found == signature.key:
            place = _write(scratch / f"key-{number}", each.pem)
            yield _Attempt(
                f"the key `{each.name}`",
                SignedBy("key", each.name, found),
                partial(_use, "use_elliptic_key_verifier", public_key=place),
            )


def _attempts_with_certificates(
    signature: Signature, accepted: Iterable[AcceptedCertificate], scratch: Path
) -> Iterator[_Attempt]:
    own = signature.certificates[0]
    for number, each in enumerate(accepted):
        if each.identity in identities_of(own):
            place = _write(scratch / f"roots-{number}", each.roots)
            yield _Attempt(
                f"the roots of `{each.identity}`",
                SignedBy("certificate", each.identity, Digest.of_bytes(own)),
                partial(_use, "use_certificate_verifier", certificate_chain=[place]),
            )


def _attempts_with_identities(
    signature: Signature, accepted: Iterable[AcceptedIdentity], scratch: Path
) -> Iterator[_Attempt]:
    own = signature.certificates[0]
    for number, each in enumerate(accepted):
        if each.identity in identities_of(own):
            place = _write(scratch / f"trust-{number}", each.trust_config) if each.trust_config else None
            yield _Attempt(
                f"Sigstore's word for `{each.identity}` of `{each.issuer}`",
                SignedBy("sigstore", each.identity, Digest.of_bytes(own), each.issuer),
                partial(
                    _use,
                    "use_sigstore_verifier",
                    identity=each.identity,
                    oidc_issuer=each.issuer,
                    trust_config=place,
                ),
            )


def _use(method: str, config: Any, **options: Any) -> Any:
    return getattr(config, method)(**options)


def _describe_signer(signature: Signature) -> str:
    """Return whom a signature names, which is not more than its own statement."""
    if signature.key is not None:
        return f"with the key `{signature.key.short}`"
    names = ", ".join(f"`{name[:80]}`" for name in identities_of(signature.certificates[0])[:5])
    way = "with a certificate" if signature.method == "certificate" else "through Sigstore"
    return f"{way} by {names or 'no one'}"


def _describe_accepted(signers: Signers) -> str:
    names = [
        *(f"the key `{each.name}`" for each in signers.keys),
        *(f"a certificate of `{each.identity}`" for each in signers.certificates),
        *(f"`{each.identity}` of `{each.issuer}`" for each in signers.identities),
    ]
    if not names:
        return "a signer that is accepted, and none is"
    return " or ".join(names[:_SHOWN_SIGNERS]) + (" or another one" if len(names) > _SHOWN_SIGNERS else "")


def _write(place: Path, data: bytes) -> Path:
    place.write_bytes(data)
    return place


def _write_covered(covered: dict[str, bytes], scratch: Path) -> Path:
    """Write the files that a signature covers into a folder of their own, whose name it will state."""
    model = scratch / "bundle"
    model.mkdir()
    for name, data in covered.items():
        _write(model / name, data)
    return model


@dataclass(frozen=True, slots=True)
class _Own:
    """A key that signs, with all that is public of it: who it stands for, and who accepts it."""

    signed_by: SignedBy
    signers: Signers


def _read_own(by: SigningKey) -> _Own | None:
    """Read a key and its certificate; None without a key.

    Raises:
        UsageError: they are not a key and a certificate, or do not belong together.
        SourceUnreadable: a file cannot be read.
    """
    if by.key is None:
        if by.certificate is not None:
            raise UsageError("Sigstore issues the certificate itself", hint="leave out `--certificate`")
        return None
    key = load_private_key(Path(by.key))
    public = pem_of(key.public_key())
    if by.certificate is None:
        name = Path(by.key).name
        return _Own(
            SignedBy("key", name, Digest.of_bytes(public)),
            Signers(keys=(AcceptedKey(name, public),)),
        )
    certificate = Path(by.certificate)
    pem = read_bounded(certificate, MAX_KEY_BYTES)
    leaf, is_of_key = read_certificate(pem, certificate, public)
    if not is_of_key:
        raise UsageError(f"the certificate in `{certificate}` is not one of the key in `{by.key}`")
    identities = identities_of(leaf)
    if not identities:
        raise UsageError(
            f"the certificate in `{certificate}` names no address, URI or host of its owner, so it could "
            "not be asked for",
            hint="have one issued with a subject alternative name",
        )
    signed_by = SignedBy("certificate", identities[0], Digest.of_bytes(leaf))
    return _Own(signed_by, Signers(certificates=(AcceptedCertificate(identities[0], pem),)))


def _find_kept(folder: Path, own: _Own) -> SignedBy | None:
    """Return who signed the bundle, if that is the owner of this key; a new signature has other bytes."""
    if not has_signature(folder):
        return None
    try:
        found = check_signature(folder, own.signers)
    except BundleRefused:
        return None
    return found if found.fingerprint == own.signed_by.fingerprint else None


def _signer(by: SigningKey) -> Any:
    config = _SIGNING()
    if by.key is None:
        return config.use_sigstore_signer(use_ambient_credentials=True)
    if by.certificate is None:
        return config.use_elliptic_key_signer(private_key=by.key)
    # The file begins with the signer's own certificate; the package refuses a chain without any.
    return config.use_certificate_signer(
        private_key=by.key, signing_certificate=by.certificate, certificate_chain=[by.certificate]
    )


def _signed_by_sigstore(signature: Signature) -> SignedBy:
    own = signature.certificates[0]
    identities = identities_of(own)
    return SignedBy("sigstore", ", ".join(identities), Digest.of_bytes(own))


@contextlib.contextmanager
def _wrapped(message: str, *, hint: str, output: TextIO | None = None) -> Iterator[None]:
    """Turn whatever the package raises into a refusal, and keep its prints off stdout.

    Args:
        message: what a failure means.
        hint: what to do then.
        output: where prints go; nowhere by default.
    """
    try:
        with contextlib.redirect_stdout(output or io.StringIO()):
            yield
    # The package states of no function what it raises, and lets the errors of other libraries through:
    # cryptography, pyOpenSSL, protobuf, sigstore, and the network below that.
    except Exception as error:
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS] or type(error).__name__
        raise BundleRefused(f"{message}: {reason}", hint=hint) from error
