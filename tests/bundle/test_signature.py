"""Signatures over a bundle's manifest and record: who made them, for which files, and forged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

import model_signing
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from meteora_registry.bundle.signers import Signers
from meteora_registry.bundle.signing import check_key, check_signature, sign_bundle
from meteora_registry.schemas.bundle import MANIFEST_FILE, SIGNATURE_FILE, VERIFICATION_FILE, WEIGHTS_FILE
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import BundleRefused, InvalidDocument, SourceUnreadable, UsageError
from meteora_registry.schemas.signers import SigningKey
from support.signing import (
    RELEASE,
    Authority,
    KeyFiles,
    change_signature,
    change_statement,
    make_key,
    write_key,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "1" / "bundles" / "arrow"
Json = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of an old bundle with a record."""
    return shutil.copytree(GOLDEN, tmp_path / "bundle")


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    return make_key(tmp_path / "keys", "release")


@pytest.fixture
def signed(bundle: Path, key: KeyFiles) -> Path:
    """The bundle, signed with the key."""
    sign_bundle(bundle, SigningKey(key.private))
    return bundle


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def accept(key: KeyFiles) -> Signers:
    return Signers.of(public_keys=[key.public])


def accept_certificate(tmp_path: Path, roots: Path, identity: str = RELEASE) -> Signers:
    path = tmp_path / "signers.toml"
    path.write_text(f'meteora_signers = 1\n[[certificate]]\nidentity = "{identity}"\nroots = "{roots}"\n')
    return Signers.read(path)


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda each: each.name
)
def test_signature_with_a_key_names_its_owner(bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = make_key(tmp_path / "keys", "release", curve)
    made = sign_bundle(bundle, SigningKey(str(key.private)))
    found = check_signature(bundle, accept(key))
    assert (found.method, found.fingerprint) == ("key", Digest.of_bytes(key.public.read_bytes()))
    assert (made.method, made.fingerprint) == (found.method, found.fingerprint)
    assert str(made) == f"release.key (key {found.fingerprint.short})"


def test_signature_with_a_certificate_names_its_owner(
    bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    made = authority.issue()
    signed_by = sign_bundle(bundle, SigningKey(str(made.private), str(made.public)))
    found = check_signature(bundle, accept_certificate(tmp_path, authority.roots))
    assert (found.method, found.signer) == ("certificate", RELEASE)
    assert signed_by == found


def test_signature_can_be_checked_with_the_tool_of_its_format(signed: Path, key: KeyFiles) -> None:
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key.public)
    config.set_ignore_unsigned_files(True).verify(signed, signed / SIGNATURE_FILE)
    (signed / MANIFEST_FILE).write_bytes(b"{}")
    with pytest.raises(ValueError, match="Hash mismatch"):
        config.verify(signed, signed / SIGNATURE_FILE)


def test_one_of_several_accepted_signers_is_enough(signed: Path, key: KeyFiles, tmp_path: Path) -> None:
    other = make_key(tmp_path / "keys", "other")
    signers = Signers.of(public_keys=[other.public, key.public], identities=["a@b.org@https://issuer.org"])
    assert check_signature(signed, signers).signer == "release.pub"


def test_same_key_keeps_its_signature_and_another_one_replaces_it(
    signed: Path, key: KeyFiles, authority: Authority, tmp_path: Path
) -> None:
    first = (signed / SIGNATURE_FILE).read_bytes()
    sign_bundle(signed, SigningKey(key.private))
    assert (signed / SIGNATURE_FILE).read_bytes() == first
    other = make_key(tmp_path / "keys", "other")
    sign_bundle(signed, SigningKey(other.private))
    check_signature(signed, accept(other))
    made = authority.issue()
    sign_bundle(signed, SigningKey(made.private, made.public))
    check_signature(signed, accept_certificate(tmp_path, authority.roots))


def test_signature_that_was_damaged_is_made_again_with_the_same_key(signed: Path, key: KeyFiles) -> None:
    replace_the_bytes_signed(signed, key)
    sign_bundle(signed, SigningKey(key.private))
    check_signature(signed, accept(key))


def test_bundle_without_a_signature_is_refused(bundle: Path, key: KeyFiles) -> None:
    with pytest.raises(BundleRefused, match=r"is not signed: it has no `model\.sig`"):
        check_signature(bundle, accept(key))


def test_signature_by_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "keys", "other")
    with pytest.raises(
        BundleRefused, match=r"is signed with the key `[0-9a-f]{12}`, expected the key `.*other"
    ):
        check_signature(signed, accept(other))


def test_signature_of_another_kind_is_refused(signed: Path, authority: Authority, tmp_path: Path) -> None:
    for signers, expected in (
        (accept_certificate(tmp_path, authority.roots), f"a certificate of `{RELEASE}`"),
        (Signers.of(identities=[f"{RELEASE}@https://issuer.org"]), f"`{RELEASE}` of `https://issuer.org`"),
    ):
        with pytest.raises(BundleRefused, match=f"is signed with the key `.*`, expected {expected}"):
            check_signature(signed, signers)


def test_signature_is_refused_where_no_signer_is_accepted(signed: Path) -> None:
    """An empty list of keys is not the same as no requirement."""
    with pytest.raises(BundleRefused, match="expected a signer that is accepted, and none is"):
        check_signature(signed, Signers.of(public_keys=[]))


@pytest.mark.parametrize("name", [MANIFEST_FILE, VERIFICATION_FILE])
def test_changed_manifest_or_record_is_refused(signed: Path, key: KeyFiles, name: str) -> None:
    path = signed / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BundleRefused, match=f"is for another `{name}`: it states the digest"):
        check_signature(signed, accept(key))


def test_record_that_is_gone_is_refused(signed: Path, key: KeyFiles) -> None:
    (signed / VERIFICATION_FILE).unlink()
    for attempt in (
        lambda: check_signature(signed, accept(key)),
        lambda: sign_bundle(signed, SigningKey(key.private)),
    ):
        with pytest.raises(BundleRefused, match=f"has no `{VERIFICATION_FILE}`, which a signature covers"):
            attempt()


def test_certificate_of_another_authority_is_refused(
    bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    """Anyone can write any identity into a certificate of their own."""
    made = Authority(tmp_path / "forger").issue()
    sign_bundle(bundle, SigningKey(made.private, made.public))
    with pytest.raises(BundleRefused, match=f"does not verify with the roots of `{RELEASE}`"):
        check_signature(bundle, accept_certificate(tmp_path, authority.roots))


def test_certificate_of_another_owner_is_refused(bundle: Path, authority: Authority, tmp_path: Path) -> None:
    made = authority.issue("intern@example.org")
    sign_bundle(bundle, SigningKey(made.private, made.public))
    with pytest.raises(BundleRefused, match=r"by `intern@example\.org`, expected a certificate of `release"):
        check_signature(bundle, accept_certificate(tmp_path, authority.roots))


def test_certificate_whose_time_is_over_still_shows_what_it_signed(
    bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    """Nothing in such a signature shows when it was made, so today's date does not count."""
    made = authority.issue(days=-2)
    sign_bundle(bundle, SigningKey(made.private, made.public))
    assert check_signature(bundle, accept_certificate(tmp_path, authority.roots)).signer == RELEASE


@pytest.fixture
def trust_config(tmp_path: Path) -> Path:
    """The trust root of the public Sigstore instance, as its library brings it, in the file of an own one."""
    store = files("sigstore") / "_store" / quote("https://tuf-repo-cdn.sigstore.dev", safe="")
    path = tmp_path / "trust.json"
    config = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": json.loads((store / "trusted_root.json").read_bytes()),
        "signingConfig": json.loads((store / "signing_config.v0.2.json").read_bytes()),
    }
    path.write_text(json.dumps(config))
    return path


def test_certificate_that_sigstore_did_not_issue_is_refused_by_its_own_code(
    bundle: Path, authority: Authority, trust_config: Path, tmp_path: Path
) -> None:
    made = authority.issue()
    sign_bundle(bundle, SigningKey(made.private, made.public))

    def present_as_that_of_sigstore(value: Json) -> None:
        leaf = value["verificationMaterial"].pop("x509CertificateChain")["certificates"][0]
        value["verificationMaterial"]["certificate"] = leaf

    change_signature(bundle, present_as_that_of_sigstore)
    path = tmp_path / "signers.toml"
    path.write_text(
        f'meteora_signers = 1\n[[sigstore]]\nidentity = "{RELEASE}"\nissuer = "https://issuer.org"\n'
        f'trust_config = "{trust_config}"\n'
    )
    with pytest.raises(BundleRefused, match="does not verify with Sigstore's word for `release@") as refused:
        check_signature(bundle, Signers.read(path))
    assert type(refused.value.__cause__).__module__.startswith("sigstore.")


def replace_the_bytes_signed(folder: Path, key: KeyFiles) -> None:
    change_signature(folder, lambda value: value["dsseEnvelope"]["signatures"][0].update(sig="MEUCIQDx"))


def sign_with_the_key_of_a_stranger(folder: Path, key: KeyFiles) -> None:
    """Name the accepted key in a signature that another one made."""
    hint = json.loads((folder / SIGNATURE_FILE).read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    stranger = make_key(folder.parent / "keys", "stranger")
    sign_bundle(folder, SigningKey(stranger.private))
    change_signature(folder, lambda value: value["verificationMaterial"]["publicKey"].update(hint=hint))


def restate(change: Callable[[Json], None]) -> Callable[[Path, KeyFiles], None]:
    """Return a forgery whose signature is genuine: its signer stated something else."""
    return lambda folder, key: change_statement(folder, change, key.private)


def rewrite(change: Callable[[Json], None]) -> Callable[[Path, KeyFiles], None]:
    return lambda folder, key: change_signature(folder, change)


def put(data: bytes) -> Callable[[Path, KeyFiles], None]:
    return lambda folder, key: (folder / SIGNATURE_FILE).write_bytes(data) and None


def replace_by_a_link(folder: Path, key: KeyFiles) -> None:
    path = folder / SIGNATURE_FILE
    path.replace(folder.parent / "elsewhere.sig")
    path.symlink_to(folder.parent / "elsewhere.sig")


def replace_by_a_folder(folder: Path, key: KeyFiles) -> None:
    (folder / SIGNATURE_FILE).unlink()
    (folder / SIGNATURE_FILE).mkdir()


def state_a_key_twice(folder: Path, key: KeyFiles) -> None:
    path = folder / SIGNATURE_FILE
    text = path.read_text()
    path.write_text(text.replace('"mediaType"', '"dsseEnvelope": {}, "mediaType"', 1))


def add_a_file(statement: Json) -> None:
    extra = {"name": WEIGHTS_FILE, "algorithm": "sha256", "digest": "0" * 64}
    statement["predicate"]["resources"].append(extra)


def leave_out_the_manifest(statement: Json) -> None:
    """Cover the record alone, and have the package overlook the manifest."""
    predicate = statement["predicate"]
    predicate["resources"] = [r for r in predicate["resources"] if r["name"] != MANIFEST_FILE]
    predicate["serialization"]["ignore_paths"].append(MANIFEST_FILE)
    restate_subject(statement)


def list_a_file_twice(statement: Json) -> None:
    resources = statement["predicate"]["resources"]
    resources.append(resources[0])
    restate_subject(statement)


def restate_subject(statement: Json) -> None:
    digests = b"".join(bytes.fromhex(r["digest"]) for r in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = str(Digest.of_bytes(digests))


def escape_the_folder(statement: Json) -> None:
    statement["predicate"]["resources"][0]["name"] = "../../etc/passwd"


# What is written over a genuine signature, and what the refusal states.
FORGERIES: dict[str, tuple[Callable[[Path, KeyFiles], None], str]] = {
    "empty": (put(b""), "`model.sig` is not JSON"),
    "empty object": (put(b"{}"), "`model.sig` breaks its schema: mediaType: field required"),
    "huge": (put(b"[" + b"1," * (1 << 20) + b"1]"), "`model.sig` has more than 262144 bytes"),
    "deep": (put(b"[" * 1000 + b"]" * 1000), "`model.sig` nests deeper than 64 levels"),
    "many values": (put(b"[" + b"1," * 100_000 + b"1]"), "`model.sig` has more than 10000 values"),
    "not text": (put(b"\xff\xfe\x00"), "`model.sig` is not UTF-8 text"),
    "link": (replace_by_a_link, "is a symbolic link, which is never followed"),
    "folder": (replace_by_a_folder, "is not a regular file"),
    "key twice": (state_a_key_twice, "the key `dsseEnvelope` is in one object twice"),
    "other spelling too": (
        rewrite(lambda value: value.update(dsse_envelope=value["dsseEnvelope"])),
        "dsse_envelope: extra inputs are not permitted",
    ),
    "other media type": (
        rewrite(lambda value: value.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1")),
        "mediaType: input should be 'application/vnd.dev.sigstore.bundle.v0.3+json'",
    ),
    "other payload type": (
        rewrite(lambda value: value["dsseEnvelope"].update(payloadType="text/plain")),
        "dsseEnvelope.payloadType: input should be 'application/vnd.in-toto+json'",
    ),
    "payload that is not base64": (
        rewrite(lambda value: value["dsseEnvelope"].update(payload="e30=\n!")),
        "has a value that is not base64",
    ),
    "no signature in it": (rewrite(lambda value: value["dsseEnvelope"].update(signatures=[])), "signatures"),
    "two signatures": (
        rewrite(lambda value: value["dsseEnvelope"]["signatures"].append({"sig": "AAAA"})),
        "dsseEnvelope.signatures",
    ),
    "no key named": (
        rewrite(lambda value: value["verificationMaterial"].update(publicKey={})),
        "verificationMaterial.publicKey.hint: field required",
    ),
    "key and certificate": (
        rewrite(lambda value: value["verificationMaterial"].update(certificate={"rawBytes": "AAAA"})),
        "expected one of `publicKey`, `x509CertificateChain` and `certificate`",
    ),
    "certificate that is none": (
        rewrite(
            lambda value: value.update(
                verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}
            )
        ),
        "is signed with a certificate by no one, expected the key",
    ),
    "Sigstore's form with nothing in it": (
        rewrite(lambda value: value.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}})),
        "is signed through Sigstore by no one, expected the key",
    ),
    "bytes that are not a signature": (replace_the_bytes_signed, "does not verify with the key"),
    "key of a stranger": (sign_with_the_key_of_a_stranger, "does not verify with the key"),
    "statement changed": (
        lambda folder, key: change_statement(folder, lambda s: s["subject"][0].update(name="other")),
        "does not verify with the key",
    ),
    "other predicate": (
        restate(lambda s: s.update(predicateType="https://model_signing/Digests/v0.1")),
        "predicateType: input should be 'https://model_signing/signature/v1.0'",
    ),
    "other statement": (
        restate(lambda s: s.update(_type="https://in-toto.io/Statement/v0.1")),
        "_type: input should be 'https://in-toto.io/Statement/v1'",
    ),
    "other algorithm": (
        restate(lambda s: s["predicate"]["resources"][0].update(algorithm="blake2")),
        "predicate.resources.0.algorithm: input should be 'sha256'",
    ),
    "files in pieces": (
        restate(lambda s: s["predicate"]["serialization"].update(method="shards", shard_size=1)),
        "predicate.serialization.method: input should be 'files'",
    ),
    "one more file": (restate(add_a_file), "covers 3 files"),
    "without the manifest": (
        restate(leave_out_the_manifest),
        "covers 1 files (`verification.json`), expected",
    ),
    "file twice": (restate(list_a_file_twice), "its statement lists a file twice"),
    "path out of the folder": (restate(escape_the_folder), "covers 2 files (`../../etc/passwd`"),
    "other digest of all": (
        restate(lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)),
        "does not verify with the key",
    ),
    "digest of another file": (
        restate(lambda s: s["predicate"]["resources"][0].update(digest="0" * 64)),
        "is for another `",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_signature_is_refused_in_words(
    signed: Path, key: KeyFiles, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    forge, message = FORGERIES[name]
    forge(signed, key)
    with pytest.raises(BundleRefused) as refused:
        check_signature(signed, accept(key))
    assert message in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_what_a_genuine_statement_says_is_what_was_restated(signed: Path, key: KeyFiles) -> None:
    """The forgeries above that keep the key are genuine but for what they state."""
    change_statement(signed, lambda statement: statement["subject"][0].update(name="other"), key.private)
    check_signature(signed, accept(key))


def test_key_that_cannot_sign_is_refused_in_words(tmp_path: Path, key: KeyFiles) -> None:
    folder = tmp_path / "keys"
    encrypted = folder / "encrypted.key"
    private = ec.generate_private_key(ec.SECP256R1())
    encrypted.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    )
    for path, message in (
        (key.public, "has no private key: expected a key of an elliptic curve"),
        (encrypted, "is encrypted, and a password cannot be given"),
        (write_key(folder, "rsa", rsa.generate_private_key(65537, 2048)).private, "a key of another kind"),
        (write_key(folder, "ed", ed25519.Ed25519PrivateKey.generate()).private, "a key of another kind"),
        (make_key(folder, "koblitz", ec.SECP256K1()).private, "a key of another kind"),
    ):
        with pytest.raises(UsageError, match=message):
            check_key(SigningKey(path))
    with pytest.raises(SourceUnreadable, match="cannot be read"):
        check_key(SigningKey(folder / "missing.key"))


def test_public_key_of_another_kind_is_refused_in_words(signed: Path, key: KeyFiles, tmp_path: Path) -> None:
    other = write_key(tmp_path / "keys", "rsa", rsa.generate_private_key(65537, 2048))
    for path, message in ((key.private, "has no public key"), (other.public, "a key of another kind")):
        with pytest.raises(UsageError, match=message):
            check_signature(signed, Signers.of(public_keys=[path]))


def test_certificate_that_cannot_sign_is_refused_in_words(
    key: KeyFiles, authority: Authority, tmp_path: Path
) -> None:
    named, nameless = authority.issue(), authority.issue(None, name="nameless")
    for signing_key, message in (
        (SigningKey(key.private, named.public), "is not one of the key in"),
        (SigningKey(nameless.private, nameless.public), "names no address, URI or host of its owner"),
        (SigningKey(key.private, key.public), "has no certificate in PEM"),
        (SigningKey(None, named.public), "Sigstore issues the certificate itself"),
    ):
        with pytest.raises(UsageError, match=message):
            check_key(signing_key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "meteora_signers: field required"),
        ("meteora_signers = 1", "names no signer, so it accepts nothing"),
        ("meteora_signers = 2\n[[key]]\npublic_key = 'a'", "meteora_signers: input should be 1"),
        (
            "meteora_signers = 1\n[[keys]]\npublic_key = 'a'",
            "keys: there is no such key, did you mean `key`?",
        ),
        ("meteora_signers = 1\n[[certificate]]\nidentity = 'a'", r"certificate.0.roots: field required"),
        ("meteora_signers = 1\n[[sigstore]]\nidentity = 'a'", r"sigstore.0.issuer: field required"),
        ("meteora_signers = 1\n[[sigstore]]\nidentity = ''\nissuer = 'b'", r"sigstore.0.identity"),
    ],
    ids=["empty", "no signer", "other version", "misspelt", "no roots", "no issuer", "empty identity"],
)
def test_malformed_signers_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "signers.toml"
    path.write_text(text)
    with pytest.raises(InvalidDocument, match=message):
        Signers.read(path)


def test_signers_file_finds_keys_beside_itself(
    signed: Path, key: KeyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = key.public.parent / "signers.toml"
    path.write_text('meteora_signers = 1\n[[key]]\nname = "release team"\npublic_key = "release.pub"\n')
    monkeypatch.chdir(tmp_path)
    assert check_signature(signed, Signers.read(path)).signer == "release team"


@pytest.mark.parametrize(
    "text", ["release@example.org", "@https://issuer.org", "a@http://issuer.org", "a@https://"]
)
def test_signer_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match="expected IDENTITY@ISSUER, with an issuer that begins with `https://`"
    ):
        Signers.of(identities=[text])


def test_address_of_mail_is_taken_apart_at_its_issuer() -> None:
    (found,) = Signers.of(identities=[f"{RELEASE}@https://accounts.example.org"]).identities
    assert (found.identity, found.issuer) == (RELEASE, "https://accounts.example.org")
