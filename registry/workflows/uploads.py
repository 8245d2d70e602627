"""Uploads: the files of a bundle or of a catalogued adapter, checked so that they may be published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...bundle import Bundle
from ...bundle.card_sections import EVALUATION, EXAMPLES, render_examples, with_section, without_section
from ...bundle.documents import check_documents
from ...bundle.files import check_card, check_listed
from ...bundle.signature import check_covers, has_signature, read_covered, read_signature
from ...files.progress import Bytes, Progress, Step, silent
from ...files.reading import read_bounded
from ...fuser.licenses import combine_licenses
from ...schemas.base_name import present_name
from ...schemas.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    MAX_CARD_BYTES,
    SIGNATURE_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
)
from ...schemas.card_examples import MAX_EXAMPLES_BYTES, Example, parse_examples
from ...schemas.digest import Digest
from ...schemas.errors import BundleRefused, DataRefused, StoreDamaged, way_to_install
from ...schemas.manifest import Manifest
from ...schemas.names import below, check_file_name, is_repository
from ...schemas.signers import SignedBy, SigningKey
from ...schemas.verification import Level
from ..catalog.records import AdapterVersion, MeasuredEvaluation, find_leading
from ..dependencies import has_torch
from ..hub.listing import FileDigests, digest_file
from ..store import Store
from ..workspace import Workspace
from .additions import TEXT_FILES
from .bundle_folder import require_source_record
from .evaluation_section import write_model_index, write_section

_SHOWN_PROBLEMS = 5
_VERIFY = "run `meteora-registry verify {folder} --level source --record` where the members' files are"


@dataclass(frozen=True, slots=True)
class Upload:
    """The content of a repository after the push: ``files`` by their paths there, with their digests.

    A repository with other files than ``replaces`` belongs to something else, unless the upload
    ``holds_bundle`` and the repository has a bundle. ``signed_by`` is who signs it in this push.
    """

    title: str
    tag: str
    files: Mapping[str, Path]
    digests: Mapping[str, FileDigests]
    replaces: frozenset[str]
    holds_bundle: bool
    signed_by: SignedBy | None = None

    def size_of(self, paths: Iterable[str]) -> int:
        """Return the total size in bytes of some of its files."""
        return sum(self.digests[path].size_bytes for path in paths)


def read_examples(path: Path) -> tuple[Example, ...]:
    """Return the examples of a file for a bundle's card.

    Raises:
        SourceUnreadable: it cannot be read, or is too large.
        DataRefused, InvalidDocument: a line has another shape.
    """
    return parse_examples(read_bounded(path, MAX_EXAMPLES_BYTES), str(path))


def bundle_upload(
    folder: Path,
    *,
    scratch: Path | None = None,
    workspace: Workspace | None = None,
    examples: Sequence[Example] = (),
    overwrite_card: bool = False,
    sign: SigningKey | None = None,
    progress: Progress = silent,
) -> Upload:
    """Return the files of a bundle that has a record of level `source` and is intact.

    Args:
        folder: the bundle.
        scratch: an empty folder that is kept until the push is done; without one the card stays as it is.
        workspace: its catalog may have an evaluation, which is added to the card; where torch is not
            installed, it must have a verification of this manifest that was made here.
        examples: of its publisher, for the card.
        overwrite_card: publish the card as it is, if it was changed.
        sign: who signs it, once it was found intact; the signature stays in the folder.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused: its record is not that of a verification of this bundle that passed at level `source`,
            a file differs from the manifest, the bundle is not intact, or its signature is for other files.
        AdapterRefused: a member is broken.
        InvalidDocument: the manifest or the record is damaged.
        SourceUnreadable: a file cannot be read.
        DataRefused: there are examples, and no card.
    """
    bundle = Bundle(folder)
    manifest, manifest_sha256 = bundle.manifest, bundle.manifest_sha256
    require_source_record(bundle, f"`{folder}`", hint=_VERIFY.format(folder=folder))
    listed = {*manifest.files, MANIFEST_FILE, VERIFICATION_FILE}
    if problems := check_listed(manifest):
        raise BundleRefused(f"`{folder}`: {problems[0]}", hint="fuse the bundle again")
    if (folder / CARD_FILE).is_file():
        listed.add(CARD_FILE)
    elif overwrite_card:
        listed.discard(CARD_FILE)
    files = {name: below(folder, name) for name in sorted(listed)}
    if missing := [name for name, path in files.items() if not path.is_file() or path.is_symlink()]:
        raise BundleRefused(f"`{folder}` lacks `{missing[0]}`, which its manifest lists")
    digests = _digest_files(files, progress)
    _compare_with_manifest(folder, manifest, digests, overwrite_card=overwrite_card)
    _require_intact(bundle, workspace, progress)
    signed_by = None if sign is None else _sign(folder, sign)
    if has_signature(folder):
        _check_signature_is_for(folder)
        files[SIGNATURE_FILE] = below(folder, SIGNATURE_FILE)
        digests[SIGNATURE_FILE] = digest_file(files[SIGNATURE_FILE])
    if scratch is not None and CARD_FILE in files:
        evaluation = _find_evaluation(workspace, manifest_sha256)
        card = _published_card(
            files[CARD_FILE], scratch, examples, evaluation, keep_evaluation=overwrite_card
        )
        files[CARD_FILE], digests[CARD_FILE] = card, digest_file(card)
    elif examples:
        raise DataRefused(f"the bundle has no `{CARD_FILE}` to put examples on")
    names = ", ".join(member.name for member in manifest.members)
    return Upload(
        title=f"MeteoRA bundle {manifest_sha256.short} of {names}"[:200],
        tag=f"meteora-{manifest_sha256.short}",
        files=files,
        digests=digests,
        replaces=frozenset(),
        holds_bundle=True,
        signed_by=signed_by,
    )


def _published_card(
    card: Path,
    scratch: Path,
    examples: Sequence[Example],
    evaluation: MeasuredEvaluation | None,
    *,
    keep_evaluation: bool,
) -> Path:
    """Return the card with these examples, and what was measured here in place of others' evaluations."""
    data = read_bounded(card, MAX_CARD_BYTES)
    written = with_section(data, EXAMPLES, render_examples(examples)) if examples else data
    if evaluation is not None:
        front_matter = write_model_index(evaluation.summary)
        written = with_section(written, EVALUATION, write_section(evaluation), front_matter=front_matter)
    elif not keep_evaluation:
        written = without_section(written, EVALUATION)
    if written == data:
        return card
    path = scratch / CARD_FILE
    path.write_bytes(written)
    return path


def _find_evaluation(workspace: Workspace | None, manifest_sha256: Digest) -> MeasuredEvaluation | None:
    if workspace is None or (workspace.home.catalog_url is None and not workspace.home.catalog_file.exists()):
        return None
    return find_leading(workspace.catalog.find_evaluations(manifest_sha256))


def _sign(folder: Path, by: SigningKey) -> SignedBy:
    from ...bundle.signing import sign_bundle

    return sign_bundle(folder, by)


def _check_signature_is_for(folder: Path) -> None:
    """Check that a signature in a bundle's folder states its files; whose it is, those who pull decide."""
    what = f"`{folder}`"
    try:
        check_covers(read_signature(folder, what), read_covered(folder, what), what)
    except BundleRefused as error:
        error.hint = f"sign it again with `--sign`, or delete its `{SIGNATURE_FILE}`"
        raise


def _require_intact(bundle: Bundle, workspace: Workspace | None, progress: Progress) -> None:
    """Check that the bundle is intact: with torch here and now, without it by what this catalog found.

    With torch the members are inspected, too, as `pull` does: it would refuse a broken one.
    """
    can_compute = has_torch()
    if can_compute:
        from ...fuser.verifier import verify_bundle

        record = verify_bundle(bundle.folder, level=Level.INTEGRITY, progress=progress)
        problems = [*record.problems, *record.unchecked]
    else:
        problems = check_documents(bundle)
    if problems:
        raise BundleRefused(
            f"`{bundle.folder}` is not intact: {'; '.join(problems[:_SHOWN_PROBLEMS])}",
            hint="see all of it with `meteora-registry verify`",
        )
    if can_compute:
        from .bundle_members import refuse_broken_members

        refuse_broken_members(bundle, bundle.members)
    elif not (workspace and workspace.catalog.is_verified(bundle.manifest_sha256)):
        raise BundleRefused(
            f"the numbers of `{bundle.folder}` were never verified in this catalog, and computing with them "
            "needs torch, which is not installed",
            hint=f"{way_to_install('runtime')}, or push from where the bundle was verified",
        )


def adapter_upload(
    store: Store, version: AdapterVersion, scratch: Path, *, progress: Progress = silent
) -> Upload:
    """Return the files of a catalogued adapter; a short card is written into ``scratch`` if it has none.

    Raises:
        StoreDamaged: its bytes are missing or changed.
        InvalidDocument: the catalog has a file under a name that no file of an adapter can have.
    """
    files = {}
    for file in version.files:
        # A name of its own, because progress and messages show it; the blob's is its digest. Others may
        # write to the database, so the name is checked again where a link is made under it.
        files[file.name] = below(scratch, check_file_name(file.name))
        files[file.name].symlink_to(store.path_of(file.sha256))
    if CARD_FILE not in files:
        files[CARD_FILE] = scratch / CARD_FILE
        files[CARD_FILE].write_text(_card_of(version), encoding="utf-8", newline="\n")
    digests = _digest_files(files, progress)
    for file in version.files:
        if digests[file.name].sha256 != file.sha256:
            raise StoreDamaged(
                f"the blob of `{file.name}` of `{version.source}` was changed",
                hint="add the adapter again from its source",
            )
    content = Digest.of_bytes(f"{version.weights_sha256} {version.canonical_config_sha256}".encode())
    return Upload(
        title=f"LoRA adapter {version.source}",
        tag=f"meteora-{content.short}",
        files=files,
        digests=digests,
        replaces=frozenset({CONFIG_FILE, WEIGHTS_FILE, *TEXT_FILES}),
        holds_bundle=False,
    )


def _compare_with_manifest(
    folder: Path, manifest: Manifest, digests: Mapping[str, FileDigests], *, overwrite_card: bool
) -> None:
    if not overwrite_card and (changes := check_card(folder, manifest)):
        raise BundleRefused(
            f"`{folder}`: {changes[0]}; nothing was pushed",
            hint="`--overwrite-card` publishes it as it is",
        )
    for name, listed in manifest.files.items():
        if name != CARD_FILE and digests[name].sha256 != listed.sha256:
            raise BundleRefused(
                f"`{name}` in `{folder}` was changed: it has the digest `{digests[name].sha256}`, "
                f"the manifest lists `{listed.sha256}`",
                hint="fuse the bundle again",
            )


def _digest_files(files: Mapping[str, Path], progress: Progress = silent) -> dict[str, FileDigests]:
    """Return the digests of local files, by the same keys."""
    step = Step("hashing", Bytes(sum(path.stat().st_size for path in files.values())), progress)
    return {name: digest_file(path, step) for name, path in files.items()}


def _card_of(version: AdapterVersion) -> str:
    facts: dict[str, object] = {"library_name": "peft", "tags": ["lora"]}
    base = version.base_model or version.base
    if base is not None and is_repository(present_name(base)):
        facts |= {"base_model": present_name(base), "base_model_relation": "adapter"}
    combined = combine_licenses([version.license])
    facts["license"] = combined.identifier
    if combined.name is not None:
        facts["license_name"] = combined.name
    rank = "unknown" if version.max_rank is None else version.max_rank
    return (
        f"---\n{yaml.safe_dump(facts, allow_unicode=False)}---\n\n# {version.name}\n\n"
        f"A LoRA adapter of rank {rank}, {version.weights_bytes} bytes, weights `{version.weights_sha256}`.\n"
    )
