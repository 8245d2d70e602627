"""``verify``: is this bundle what it says, and does it compute what its members do?"""

from __future__ import annotations

import click

from ...schemas.errors import UsageError
from ...schemas.names import HubSource, parse_source
from ...schemas.verification import Level, Outcome, VerificationRecord
from ..dependencies import require_torch
from ..home import Home
from .failures import DONE, INCONCLUSIVE, REFUSED
from .fuse import GATE_NOT_FITTED
from .output import print_facts, print_json, print_line, print_remark, print_table
from .parameters import examples, format_option, pass_home
from .progress import step_bar

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
    "--record", "keep_record", is_flag=True, help="Write the outcome into the bundle's verification.json."
)
@format_option
@pass_home
@click.pass_context
def command(
    context: click.Context, home: Home, bundle: str, *, level: str, keep_record: bool, as_json: bool
) -> None:
    """Check a bundle: digests, structure, padding, and the kernel against a float64 reference.

    Exit code 0 if it passes, 1 if it fails, 3 if something that the level asks for could not be looked
    at, such as a member's own files. A bundle on the Hub is fetched, held against its manifest and its
    record, verified, and not kept.
    """
    require_torch("verifying")
    source = parse_source(bundle)
    if isinstance(source, HubSource):
        if keep_record:
            raise UsageError("`--record` goes with a bundle on this machine", hint="pull it first")
        context.exit(EXIT_CODES[_verify_on_hub(home, source, Level(level), as_json=as_json).outcome])
    from ..catalog.catalog import Catalog
    from ..workflows.verify import find_bundle_folder, gate_is_fitted, verify

    with Catalog.open(home) as catalog:
        folder = find_bundle_folder(catalog, bundle)
        with step_bar() as advance:
            record = verify(
                catalog, home.store, folder, level=Level(level), keep_record=keep_record, advance=advance
            )
    _show(record, as_json=as_json)
    if not gate_is_fitted(folder):
        print_remark(f"note: {GATE_NOT_FITTED}")
    context.exit(EXIT_CODES[record.outcome])


def _verify_on_hub(home: Home, source: HubSource, level: Level, *, as_json: bool) -> VerificationRecord:
    from ..hub.client import Hub
    from ..workflows.pull import fetched_bundle, verify_fetched
    from ..workflows.verify import gate_is_fitted

    with step_bar() as advance, fetched_bundle(Hub(), source, advance=advance) as folder:
        record = verify_fetched(home.store, folder, level=level, advance=advance)
        is_fitted = gate_is_fitted(folder)
    _show(record, as_json=as_json)
    if not is_fitted:
        print_remark(f"note: {GATE_NOT_FITTED}")
    return record


def _show(record: VerificationRecord, *, as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        _print_record(record)


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
