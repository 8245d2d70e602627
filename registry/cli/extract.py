"""``extract``: a member out of its bundle, or an adapter out of the catalog."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from ...schemas.errors import UsageError
from ...schemas.names import parse_catalog_source
from ..catalog.records import AdapterVersion
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.adapter_copy import copy_adapter
from ..workflows.bundle_folder import find_bundle_folder, gate_is_fitted
from .groups import examples
from .json_output import print_json
from .output import print_gate_remark, print_line, print_remark
from .parameters import bundle_argument, format_option, out_option, pass_registry


@click.command(
    "extract",
    epilog=examples("extract ./bundle legal --out ./legal-again", "extract legal@3 --out ./legal"),
)
@bundle_argument
@click.argument("member", required=False)
@out_option
@format_option
@pass_registry
def command(registry: Registry, bundle: str, member: str | None, *, out: Path, as_json: bool) -> None:
    """Give one member or adapter back as a PEFT adapter's folder.

    With a bundle and one of its members, or with a catalogued adapter alone. Byte for byte.
    """
    if member is None:
        _extract_adapter(registry, bundle, out, as_json=as_json)
    else:
        _extract_member(registry, bundle, member, out, as_json=as_json)


def _extract_adapter(registry: Registry, name: str, out: Path, *, as_json: bool) -> None:
    # A folder of the same name is not meant: it would need no extracting.
    version = registry.catalog.find_any(parse_catalog_source(name))
    if not isinstance(version, AdapterVersion):
        raise UsageError(
            f"`{name}` is not a catalogued adapter", hint="name a member of the bundle as well: BUNDLE MEMBER"
        )
    copy_adapter(registry.store, version, out)
    if as_json:
        print_json({"name": str(version.source), "folder": str(out), "identical": True})
    else:
        print_line(f"extracted: {version.source} in {out}: identical to what was added")


def _extract_member(registry: Registry, bundle: str, member: str, out: Path, *, as_json: bool) -> None:
    require_torch("extracting")
    from ...fuser.extraction import extract_member

    folder = find_bundle_folder(registry, bundle)
    extraction = extract_member(Bundle.open(folder), member, out)
    if as_json:
        print_json(extraction)
    else:
        likeness = "identical to what was fused" if extraction.identical else "not the bytes that were fused"
        print_line(f"extracted: {extraction.name} in {extraction.folder}: {likeness}")
    if extraction.left_out:
        print_remark(
            f"warning: {len(extraction.left_out)} tensors of training state are not in a bundle and were "
            "left out; PEFT names them when it loads the adapter, which computes the same without them"
        )
    elif not extraction.identical:
        print_remark(
            "warning: the bundle was made with a cast that loses precision; the manifest states how much"
        )
    if not gate_is_fitted(folder):
        print_gate_remark()
