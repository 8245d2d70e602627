"""Signed bundles from one home to another: who signed them is required, recorded and shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

from meteora_registry.bundle.files import write_record
from meteora_registry.schemas.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
)
from meteora_registry.schemas.verification import VerificationRecord
from support.hub import LoopbackHub
from support.hub_commands import Machine, Workplace, workplace
from support.pages import example_of
from support.signing import Authority, KeyFiles, make_key
from support.tampering import Tensors, change_config, change_tensors, flip_byte
from support.trust import claim_a_pass

GOLDEN = Path(__file__).parents[2] / "golden" / "1" / "bundles"
REPOSITORY = "org/bundle"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "arrow", tmp_path / "bundle")


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    return make_key(tmp_path / "keys", "release")


@pytest.fixture
def there(shared_machine: Machine, hub: LoopbackHub, tmp_path: Path, empty_catalog: Path) -> Workplace:
    """A second home, of another user."""
    return workplace(tmp_path / "there", shared_machine, empty_catalog)


@pytest.fixture
def published(hub: LoopbackHub, here: Workplace, bundle: Path, key: KeyFiles) -> Path:
    """The bundle, signed with the key and pushed from one home."""
    pushed = here.run("push", bundle, REPOSITORY, "--sign", key.private)
    assert pushed.code == 0, pushed.err
    assert "signed by: release.key (key " in pushed.out
    return bundle


def assert_refused(there: Workplace, key: KeyFiles, message: str = "") -> None:
    """Pull with the signer required, and check that this is refused and leaves nothing."""
    refused = there.run("pull", REPOSITORY, "--out", "pulled", "--public-key", key.public)
    assert refused.code == 1, refused.out + refused.err
    assert message in refused.err
    assert sorted(path.name for path in there.folder.iterdir()) == ["home"]
    assert there.run("list", "--format", "json").data == {"adapters": [], "bundles": []}
    there.assert_whole()


def test_bundle_signed_in_one_home_is_pulled_in_another_with_the_signer_required(
    there: Workplace, published: Path, key: KeyFiles
) -> None:
    pulled = there.run("pull", REPOSITORY, "--out", "pulled", "--public-key", key.public)
    assert pulled.code == 0, pulled.err
    assert "signed by: release.pub (key " in pulled.out
    assert (there.folder / "pulled" / SIGNATURE_FILE).read_bytes() == (
        published / SIGNATURE_FILE
    ).read_bytes()
    (event,) = there.run("show", "bundle", "--format", "json").data["signatures"]
    assert (event["action"], event["details"]["signer"]) == ("check-signature", "release.pub")
    shown = there.run("show", "bundle").out.splitlines()
    assert shown[-1].startswith("checked here")
    assert shown[-1].endswith(event["details"]["fingerprint"])
    assert "check-signature" in there.run("history", "bundle").out


def test_signer_is_shown_where_the_bundle_was_signed(
    hub: LoopbackHub, here: Workplace, published: Path, key: KeyFiles
) -> None:
    hub.create("org/mine", GOLDEN / "normal")
    assert here.run("pull", "org/mine").code == 0
    assert here.run("push", "mine", "org/signed", "--sign", key.private).code == 0
    (event,) = here.run("show", "mine", "--format", "json").data["signatures"]
    assert (event["action"], event["details"]["signer"]) == ("sign", "release.key")


# Each file of a signed bundle, changed on the Hub so that it shows at once.
@pytest.mark.parametrize(
    "name", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE, VERIFICATION_FILE, SIGNATURE_FILE]
)
def test_file_that_was_changed_after_the_signature_is_refused(
    hub: LoopbackHub, there: Workplace, published: Path, key: KeyFiles, name: str
) -> None:
    flip_byte(published / name, -20)
    hub.push(REPOSITORY, {name: (published / name).read_bytes()})
    assert_refused(there, key)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_members_file_that_was_changed_after_the_signature_is_refused(
    hub: LoopbackHub, here: Workplace, there: Workplace, key: KeyFiles, tmp_path: Path, name: str
) -> None:
    bundle = shutil.copytree(GOLDEN / "experts", tmp_path / "experts")
    assert here.run("push", bundle, REPOSITORY, "--sign", key.private).code == 0
    path = next(bundle.glob(f"experts/*/{name}"))
    flip_byte(path, -20)
    hub.push(REPOSITORY, {path.relative_to(bundle).as_posix(): path.read_bytes()})
    assert_refused(there, key, "was changed")


def change_temperature(bundle: Path) -> None:
    change_config(bundle, lambda config: config.update(temperature=0.5))


def change_gates(bundle: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name, found in tensors.items():
            if name.endswith("meteora_gate"):
                found *= -1

    change_tensors(bundle, change)


@pytest.mark.parametrize("change", [change_temperature, change_gates], ids=["config", "weights"])
def test_change_that_agrees_with_manifest_and_record_is_refused_by_the_signature_alone(
    hub: LoopbackHub,
    there: Workplace,
    published: Path,
    key: KeyFiles,
    change: Callable[[Path], None],
) -> None:
    signature = (published / SIGNATURE_FILE).read_bytes()
    change(published)
    claim_a_pass(published)
    assert (published / SIGNATURE_FILE).read_bytes() == signature
    hub.create("org/forged", published)
    assert there.run("pull", "org/forged", "--out", "unsigned", "--name", "unsigned").code == 0
    refused = there.run("pull", "org/forged", "--public-key", key.public)
    assert (refused.code, "the signature of `org/forged@" in refused.err) == (1, True)
    assert "is for another `meteora_manifest.json`" in refused.err


def test_weights_of_an_unsigned_bundle_are_not_fetched(
    hub: LoopbackHub, there: Workplace, key: KeyFiles, bundle: Path
) -> None:
    hub.create(REPOSITORY, bundle)
    requests = len(hub.requests)
    assert_refused(there, key, f"`{REPOSITORY}@{hub.repositories[REPOSITORY].head.oid}` is not signed")
    assert [each for each in hub.requests[requests:] if each.path.endswith(".safetensors")] == []


def test_signature_that_is_too_large_is_refused_unread_where_a_signer_is_required(
    hub: LoopbackHub, there: Workplace, published: Path, key: KeyFiles
) -> None:
    hub.push(REPOSITORY, {SIGNATURE_FILE: b"{" + b" " * (256 << 10)})
    requests = len(hub.requests)
    assert_refused(there, key, "is not signed: it has no `model.sig`")
    assert [each for each in hub.requests[requests:] if each.path.endswith(f"/{SIGNATURE_FILE}")] == []
    pulled = there.run("pull", REPOSITORY, "--out", "pulled")
    assert pulled.code == 0
    assert "not part of the bundle: model.sig" in pulled.err


def test_signature_is_reported_as_unchecked_where_no_signer_is_named(
    hub: LoopbackHub, there: Workplace, published: Path
) -> None:
    pulled = there.run("pull", REPOSITORY, "--out", "pulled")
    assert "signed by: not checked, because no signer was named" in pulled.out
    assert there.run("show", "bundle", "--format", "json").data["signatures"] == []
    hub.create("org/unsigned", GOLDEN / "normal")
    assert "signed by: no one" in there.run("pull", "org/unsigned").out


def test_team_requires_its_signers_of_all_that_is_pulled_and_verified(
    hub: LoopbackHub, there: Workplace, published: Path, key: KeyFiles, tmp_path: Path
) -> None:
    signers = tmp_path / "keys" / "signers.toml"
    signers.write_text('meteora_signers = 1\n[[key]]\nname = "release team"\npublic_key = "release.pub"\n')
    team = {"METEORA_SIGNERS": str(signers)}
    pulled = there.run("pull", REPOSITORY, "--out", "pulled", **team)
    assert "signed by: release team (key " in pulled.out
    digests = there.run("verify", "bundle", "--digests-only", "--format", "json", **team)
    assert digests.data["signed_by"]["signer"] == "release team"
    assert re.search(
        r"^signed by +release team \(key ", there.run("verify", REPOSITORY, **team).out, re.MULTILINE
    )
    hub.create("org/unsigned", GOLDEN / "normal")
    for command in (
        ("pull", "org/unsigned"),
        ("verify", "org/unsigned"),
        ("verify", GOLDEN / "normal"),
        ("verify", GOLDEN / "normal", "--digests-only"),
    ):
        refused = there.run(*command, **team)
        assert (refused.code, "is not signed" in refused.err) == (1, True), command


def test_verify_requires_the_signer_that_is_named(
    there: Workplace, published: Path, key: KeyFiles, tmp_path: Path
) -> None:
    command = ("verify", published, "--public-key", key.public, "--format", "json")
    verified = there.run(*command, "--record")
    assert (verified.code, verified.data["signed_by"]["method"]) == (0, "key")
    # The signature was for the record that came with the bundle.
    assert "note: its signature is for the record before" in verified.err
    refused = there.run(*command)
    assert (refused.code, "is for another `verification.json`" in refused.err) == (1, True)
    other = make_key(tmp_path / "keys", "other")
    refused = there.run("verify", REPOSITORY, "--public-key", other.public)
    assert (refused.code, "is signed with the key" in refused.err) == (1, True)
    identity = there.run("verify", REPOSITORY, "--require-signer", "a@b.org@https://issuer.org")
    assert (identity.code, "expected `a@b.org` of `https://issuer.org`" in identity.err) == (1, True)
    assert there.run("verify", published, "--require-signer", "a@b.org").code == 2


def test_certificate_is_required_by_the_identity_in_it(
    hub: LoopbackHub, here: Workplace, there: Workplace, bundle: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    files = authority.issue()
    pushed = here.run("push", bundle, REPOSITORY, "--sign", files.private, "--certificate", files.public)
    assert "signed by: release@example.org (certificate " in pushed.out, pushed.err
    signers = authority.folder / "signers.toml"
    signers.write_text(
        "meteora_signers = 1\n[[certificate]]\n"
        f'identity = "release@example.org"\nroots = "{authority.roots.name}"\n'
    )
    pulled = there.run("pull", REPOSITORY, "--signers", signers)
    assert "signed by: release@example.org (certificate " in pulled.out, pulled.err
    signers.write_text(signers.read_text().replace("release@", "else@"))
    refused = there.run("pull", REPOSITORY, "--out", "again", "--signers", signers)
    assert (refused.code, "expected a certificate of `else@example.org`" in refused.err) == (1, True)


def test_same_push_with_the_same_key_does_nothing(here: Workplace, published: Path, key: KeyFiles) -> None:
    for more in ((), ("--sign", key.private)):
        assert here.run("push", published, REPOSITORY, *more).out.startswith("nothing to do: ")


def test_signature_on_the_hub_goes_only_with_the_files_that_it_covers(
    hub: LoopbackHub, here: Workplace, published: Path
) -> None:
    # A copy without it, of the same bundle; then another bundle.
    assert here.run("push", GOLDEN / "arrow", REPOSITORY).out.startswith("nothing to do: ")
    assert SIGNATURE_FILE in hub.repositories[REPOSITORY].head.files
    assert here.run("push", GOLDEN / "normal", REPOSITORY).code == 0
    assert SIGNATURE_FILE not in hub.repositories[REPOSITORY].head.files


def test_signature_of_an_earlier_record_is_not_pushed(
    here: Workplace, published: Path, key: KeyFiles
) -> None:
    # As `verify --level source --record` writes it where the members' files are.
    record = json.loads((published / VERIFICATION_FILE).read_bytes())
    del record["record_sha256"]
    write_record(published, VerificationRecord.from_value(record | {"notes": ["again"]}, what="record"))
    refused = here.run("push", published, REPOSITORY)
    assert (refused.code, "is for another `verification.json`" in refused.err) == (1, True)
    assert "hint: sign it again with `--sign`, or delete its `model.sig`" in refused.err
    assert here.run("push", published, REPOSITORY, "--sign", key.private).code == 0


def test_card_may_be_edited_after_the_signature(
    hub: LoopbackHub, here: Workplace, there: Workplace, published: Path, key: KeyFiles
) -> None:
    hub.push(REPOSITORY, {CARD_FILE: b"# Ours\n"})
    pulled = there.run("pull", REPOSITORY, "--out", "pulled", "--public-key", key.public)
    assert pulled.code == 0, pulled.err
    assert "warning: the card was changed after the bundle was made" in pulled.err
    assert "signed by: " in pulled.out
    assert here.run("push", published, REPOSITORY).code == 1
    assert here.run("push", published, REPOSITORY, "--overwrite-card").code == 0


def test_pull_into_a_folder_that_has_the_bundle_checks_the_signature_there(
    there: Workplace, published: Path, key: KeyFiles
) -> None:
    command = ("pull", REPOSITORY, "--out", "pulled", "--public-key", key.public)
    assert there.run(*command).code == 0
    again = there.run(*command)
    assert (again.code, again.out.startswith("already there: ")) == (0, True)
    (there.folder / "pulled" / SIGNATURE_FILE).unlink()
    refused = there.run(*command)
    assert (refused.code, "`pulled` is not signed" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run", "--sign", "KEY"], "a dry run signs nothing"),
        (["--certificate", "KEY"], "`--certificate` is that of a key"),
        (["--sign", "missing.key"], "`missing.key` cannot be read"),
    ],
    ids=["dry run", "certificate alone", "missing key"],
)
def test_push_that_cannot_sign_changes_nothing(
    hub: LoopbackHub, here: Workplace, bundle: Path, key: KeyFiles, options: list[str], message: str
) -> None:
    given = [str(key.private) if each == "KEY" else each for each in options]
    refused = here.run("push", bundle, REPOSITORY, *given)
    assert (refused.code, message in refused.err) == (2, True)
    assert not (bundle / SIGNATURE_FILE).exists()
    assert REPOSITORY not in hub.repositories


def test_adapter_is_not_signed(hub: LoopbackHub, here: Workplace, legal: Path, key: KeyFiles) -> None:
    assert here.run("add", legal).code == 0
    refused = here.run("push", "legal", "org/copy", "--sign", key.private)
    assert (refused.code, "is an adapter, and bundles alone are signed" in refused.err) == (2, True)


def test_key_never_leaves_its_file(hub: LoopbackHub, here: Workplace, published: Path, key: KeyFiles) -> None:
    secret = b"".join(key.private.read_bytes().splitlines()[1:-1])
    sent = [file.data for file in hub.repositories[REPOSITORY].head.files.values()]
    assert not [data for data in sent if secret[:40] in data]
    assert list(here.machine.scratch.iterdir()) == []


def test_example_of_the_page_signs_and_requires_the_signature(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    make_key(here.folder, "release")
    shutil.copytree(bundle, here.folder / "bundle")
    done = here.run_python(example_of("docs/signing.md", "example"))
    assert done.returncode == 0, done.stderr
    assert "release.pub" in done.stdout
    assert (here.folder / "our-bundle" / SIGNATURE_FILE).is_file()
