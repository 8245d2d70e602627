"""``verify``: check that a bundle agrees with its manifest and computes what its members compute."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from ...bundle.documents import check_documents
from ...bundle.files import check_card
from ...bundle.signature import has_signature
from ...bundle.signers import Signers, signers_of_environment
from ...schemas.errors import UsageError
from ...schemas.names import HubSource, parse_source
from ...schemas.verification import Level, Outcome, VerificationRecord
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.base_place import place_base
from ..workflows.bundle_folder import find_bundle_folder, require_signer
from .failures import DONE, INCONCLUSIVE, REFUSED
from .groups import examples
from .json_output import print_json, to_json
from .output import (
    describe_established,
    describe_rest,
    describe_signer,
    print_facts,
    print_gate_remark,
    print_line,
    print_remark,
)
from .parameters import (
    BaseName,
    base_folder_option,
    complete_name_or_folder,
    format_option,
    pass_registry,
    signer_options,
)
from .progress import progress_bar
from .tables import Column, number, print_table

EXIT_CODES = {Outcome.PASS: DONE, Outcome.FAIL: REFUSED, Outcome.INCONCLUSIVE: INCONCLUSIVE}


@click.command(
    "verify",
    epilog=examples("verify ./bundle", "verify bundle@2 --level source", "verify org/our-bundle@v2"),
)
@click.argument(
    "bundle",
    metavar="FOLDER|NAME[@VERSION|@ALIAS]|ORG/NAME[@REVISION]",
    shell_complete=complete_name_or_folder,
)
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    default=Level.INTEGRITY.value,
    show_default=True,
    help="integrity checks the bundle by itself; source also compares it with the members' own files.",
)
@click.option(
    "--digests-only",
    is_flag=True,
    help="Check digests, names and shapes and stop: needs no torch, and proves nothing of the numbers.",
)
@click.option(
    "--refetch",
    is_flag=True,
    help="With level source: fetch the members from the origins on the Hub that the bundle names.",
)
@click.option(
    "--record", "keep_record", is_flag=True, help="Write the outcome into the bundle's verification.json."
)
@click.option(
    "--base",
    type=BaseName(),
    metavar="ORG/MODEL|FOLDER",
    help="The base model, used where the bundle states that the base renamed modules.",
)
@base_folder_option
@signer_options
@format_option
@pass_registry
@click.pass_context
def command(
    context: click.Context,
    registry: Registry,
    bundle: str,
    *,
    level: str,
    digests_only: bool,
    base: str | None,
    base_folder: Path | None,
    refetch: bool,
    keep_record: bool,
    signers: Signers | None,
    as_json: bool,
) -> None:
    """Check a bundle: its files, its structure, and its arithmetic.

    Looks at digests, structure, padding, and the kernel against a float64 reference. Exit code 0 if it
    passes, 1 if it fails, 3 if something that the level asks for could not be looked at, such as a member's
    own files. Files that came out of a bundle are not witnesses of it; --refetch fetches the members from
    the origins that the bundle names. A bundle on the Hub is fetched, compared with its manifest and
    its record, verified, and not kept. Where a signer is named, by an option or in METEORA_SIGNERS, the
    signature is checked first.
    """
    if digests_only:
        _require_alone(context)
        context.exit(_check_digests(registry, bundle, signers, as_json=as_json))
    require_torch("verifying")
    from ..workflows.bundle_verification import verify

    place = place_base(base, base_folder)
    with progress_bar() as progress:
        verified = verify(
            registry,
            bundle,
            level=Level(level),
            place=place,
            refetch=refetch,
            keep_record=keep_record,
            signers=signers,
            progress=progress,
        )
    signer = describe_signer(verified.signed_by, has_signature=verified.has_signature)
    if as_json:
        record = verified.record
        print_json(
            to_json(record)
            | {
                "established": record.established,
                "not_established": record.not_established,
                "signed_by": to_json(verified.signed_by),
            }
        )
    else:
        _print_record(verified.record, signer)
    if keep_record and verified.has_signature:
        print_remark("note: its signature is for the record before; sign it again with `push --sign`")
    if not verified.gate_fitted:
        print_gate_remark()
    context.exit(EXIT_CODES[verified.record.outcome])


def _require_alone(context: click.Context) -> None:
    """Refuse options that ask for what `--digests-only` does not look at."""
    for name in ("level", "keep_record", "base", "base_folder", "refetch"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--record" if name == "keep_record" else f"--{name.replace('_', '-')}"
            raise UsageError(f"`{option}` does not go with `--digests-only`", hint="leave one out")


def _check_digests(registry: Registry, text: str, signers: Signers | None, *, as_json: bool) -> int:
    """Check what needs no torch, print it, and return the exit code."""
    if isinstance(parse_source(text), HubSource):
        raise UsageError("`--digests-only` goes with a bundle on this machine", hint="pull it first")
    bundle = Bundle(find_bundle_folder(registry, text))
    accepted = signers_of_environment() if signers is None else signers
    signed_by = require_signer(bundle.folder, accepted, f"`{bundle.folder}`")
    problems = check_documents(bundle)
    notes = [] if problems else check_card(bundle.folder, bundle.manifest)
    if as_json:
        print_json(
            {
                "manifest_sha256": bundle.manifest_sha256,
                "problems": problems,
                "notes": notes,
                "signed_by": signed_by,
            }
        )
    else:
        print_facts(
            [
                ("digests", "do not agree" if problems else "agree"),
                ("manifest sha256", bundle.manifest_sha256),
                ("signed by", describe_signer(signed_by, has_signature=has_signature(bundle.folder))),
                ("not looked at", "the numbers: `verify` without `--digests-only` computes with them"),
            ]
        )
        for problem in problems:
            print_line(f"problem: {problem}")
        for note in notes:
            print_line(f"note: {note}")
    return REFUSED if problems else DONE


def _print_record(record: VerificationRecord, signer: str) -> None:
    print_facts(
        [
            ("outcome", str(record.outcome)),
            ("level", str(record.level)),
            ("established here", describe_established(record)),
            ("not established", describe_rest(record)),
            ("manifest sha256", record.manifest_sha256),
            ("modules", str(len(record.modules))),
            ("signed by", signer),
        ]
    )
    if record.backends_run:
        print_line()
        print_table(
            (
                "BACKEND",
                Column("DEVICE", gives_way=1),
                "COMPUTED IN",
                number("MODULES", 2),
                number("LARGEST ERROR"),
                number("TOLERANCE"),
            ),
            [
                (
                    run.backend,
                    run.device,
                    run.compute_dtype,
                    str(run.modules),
                    "not finite" if run.max_error is None else f"{run.max_error:.1e}",
                    f"{run.tolerance:g}",
                )
                for run in record.backends_run
            ],
        )
    for skipped in record.backends_not_run:
        print_line(f"not run: {skipped.backend}: {skipped.reason}")
    for problem in record.problems:
        print_line(f"problem: {problem}")
    for gap in record.unchecked:
        print_line(f"not checked: {gap}")
    for note in record.notes:
        print_line(f"note: {note}")
