"""``verify``: is this bundle what it says, and does it compute what its members do?"""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from ...bundle.documents import check_documents
from ...files.reading import real_path
from ...schemas.errors import UsageError
from ...schemas.names import HubSource, Source, parse_source
from ...schemas.verification import Level, Outcome, VerificationRecord
from ..catalog.catalog import Catalog
from ..dependencies import require_torch
from ..home import Home
from ..store import Store
from ..workflows.find_bundle import find_bundle_folder, gate_is_fitted
from .bundle_text import print_gate_remark
from .failures import DONE, INCONCLUSIVE, REFUSED
from .groups import examples
from .json_output import print_json
from .note import note_in_catalog
from .output import print_facts, print_line, print_table
from .parameters import format_option, pass_home
from .progress import progress_bar

EXIT_CODES = {Outcome.PASS: DONE, Outcome.FAIL: REFUSED, Outcome.INCONCLUSIVE: INCONCLUSIVE}


@click.command(
    "verify",
    epilog=examples("verify ./bundle", "verify bundle@2 --level source", "verify org/our-bundle@v2"),
)
@click.argument("bundle", metavar="FOLDER|NAME[@VERSION|@ALIAS]|ORG/NAME[@REVISION]")
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    default=Level.INTEGRITY.value,
    show_default=True,
    help="integrity looks at the bundle alone; source also at the members' own files.",
)
@click.option(
    "--digests-only",
    is_flag=True,
    help="Check digests, names and shapes and stop: needs no torch, and proves nothing of the numbers.",
)
@click.option(
    "--record", "keep_record", is_flag=True, help="Write the outcome into the bundle's verification.json."
)
@click.option(
    "--base",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder of the base model, asked where the bundle says that the base renamed modules.",
)
@format_option
@pass_home
@click.pass_context
def command(
    context: click.Context,
    home: Home,
    bundle: str,
    *,
    level: str,
    digests_only: bool,
    base: Path | None,
    keep_record: bool,
    as_json: bool,
) -> None:
    """Check a bundle: its files, its structure, and its arithmetic.

    Looks at digests, structure, padding, and the kernel against a float64 reference. Exit code 0 if it
    passes, 1 if it fails, 3 if something that the level asks for could not be looked at, such as a member's
    own files. A bundle on the Hub is fetched, held against its manifest and its record, verified, and not
    kept.
    """
    source = parse_source(bundle)
    if digests_only:
        _require_alone(context)
        context.exit(_check_digests(home, source, bundle, as_json=as_json))
    require_torch("verifying")
    if isinstance(source, HubSource):
        if keep_record:
            raise UsageError("`--record` goes with a bundle on this machine", hint="pull it first")
        found = _verify_on_hub(home, source, Level(level), base, as_json=as_json)
        context.exit(EXIT_CODES[found.outcome])
    from ..workflows.verify import verify

    folder = find_bundle_folder(lambda: Catalog.open(home), bundle)
    with progress_bar() as progress:
        record = verify(
            _store_for(home, level),
            folder,
            level=Level(level),
            base=base,
            keep_record=keep_record,
            progress=progress,
        )
    note_in_catalog(home, lambda catalog: catalog.record_verification(record, real_path(folder)))
    _show(record, folder, as_json=as_json)
    context.exit(EXIT_CODES[record.outcome])


def _require_alone(context: click.Context) -> None:
    """Refuse options that ask for what `--digests-only` does not look at."""
    for name in ("level", "keep_record", "base"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--record" if name == "keep_record" else f"--{name}"
            raise UsageError(f"`{option}` does not go with `--digests-only`", hint="leave one out")


def _check_digests(home: Home, source: Source, text: str, *, as_json: bool) -> int:
    """Check what needs no torch, print it, and return the exit code."""
    if isinstance(source, HubSource):
        raise UsageError("`--digests-only` goes with a bundle on this machine", hint="pull it first")
    bundle = Bundle(find_bundle_folder(lambda: Catalog.open(home), text))
    problems = check_documents(bundle)
    if as_json:
        print_json({"manifest_sha256": bundle.manifest_sha256, "problems": problems})
    else:
        print_facts(
            [
                ("digests", "do not agree" if problems else "agree"),
                ("manifest sha256", bundle.manifest_sha256),
                ("not looked at", "the numbers: `verify` without `--digests-only` computes with them"),
            ]
        )
        for problem in problems:
            print_line(f"problem: {problem}")
    return REFUSED if problems else DONE


def _store_for(home: Home, level: str) -> Store | None:
    """Return the store with the members' own files; at level `integrity` none is needed, nor a home."""
    return home.store if level == Level.SOURCE else None


def _verify_on_hub(
    home: Home, source: HubSource, level: Level, base: Path | None, *, as_json: bool
) -> VerificationRecord:
    from ..hub.client import Hub
    from ..workflows.pull import fetched_bundle
    from ..workflows.verify import verify

    with progress_bar() as progress, fetched_bundle(Hub(), source, progress=progress) as folder:
        record = verify(_store_for(home, level), folder, level=level, base=base, progress=progress)
        _show(record, folder, as_json=as_json)
    return record


def _show(record: VerificationRecord, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        _print_record(record)
    if not gate_is_fitted(folder):
        print_gate_remark()


def _print_record(record: VerificationRecord) -> None:
    print_facts(
        [
            ("outcome", str(record.outcome)),
            ("level", str(record.level)),
            ("manifest sha256", record.manifest_sha256),
            ("modules", str(len(record.modules))),
        ]
    )
    if record.backends_run:
        print_line()
        print_table(
            ("BACKEND", "DEVICE", "COMPUTED IN", "MODULES", "LARGEST ERROR", "TOLERANCE"),
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
