"""``show``: everything that the catalog knows about one version."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ...schemas.names import CatalogSource
from ..catalog.records import AdapterVersion, BundleVersion, Target
from ..face import Registry
from .groups import examples
from .json_output import print_json, to_json
from .output import describe_bytes, print_facts, print_line, print_table
from .parameters import CatalogSourceType, format_option, pass_registry


@click.command("show", epilog=examples("show summarise", "show summarise@2", "show summarise@champion"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@format_option
@pass_registry
def command(registry: Registry, source: CatalogSource, *, as_json: bool) -> None:
    """Show one adapter or bundle version.

    The latest, unless another is named.
    """
    version = registry.find(source)
    numbers = registry.catalog.versions_of(source.name)
    if as_json:
        kind = "bundle" if isinstance(version, BundleVersion) else "adapter"
        print_json({"kind": kind, "versions": numbers} | to_json(version))
    elif isinstance(version, BundleVersion):
        _show_bundle(version, numbers)
    else:
        _show_adapter(version, numbers)


def _show_adapter(version: AdapterVersion, numbers: tuple[int, ...]) -> None:
    print_facts(
        [
            ("adapter", str(version.source)),
            ("versions", _join(map(str, numbers))),
            ("verdict", str(version.verdict)),
            ("base", version.base),
            ("base declared", version.declared_base),
            ("base model", version.base_model),
            ("base revision", version.base_revision),
            ("task", version.task_type),
            ("license", version.license),
            ("rank", _describe_rank(version)),
            ("scaling", None if version.scaling is None else f"{version.scaling:g}"),
            ("dtype", _join(version.dtypes)),
            ("size", describe_bytes(version.size_bytes)),
            ("source", f"{version.origin.kind} {version.origin}"),
            ("commit", version.origin.commit),
            ("weights sha256", version.weights_sha256),
            ("config sha256", version.config_sha256),
            ("canonical config", version.canonical_config_sha256),
            ("shape signature", version.shape_signature),
            ("PEFT", version.peft_version),
            ("aliases", _join(version.aliases)),
            ("tags", _join(version.tags)),
            ("added", f"{version.created_at:%Y-%m-%d %H:%M} UTC"),
        ]
    )
    if version.targets:
        print_line()
        columns = ("TARGET", "LAYERS", "IN", "OUT", "RANK", "SCALING")
        print_table(columns, [_target_row(target) for target in version.targets])
    if version.findings:
        print_line()
        for finding in version.findings:
            print_line(finding.describe())


def _show_bundle(version: BundleVersion, numbers: tuple[int, ...]) -> None:
    print_facts(
        [
            ("bundle", str(version.source)),
            ("versions", _join(map(str, numbers))),
            ("base", version.base),
            ("base revision", version.base_revision),
            ("top k", str(version.top_k)),
            ("temperature", f"{version.temperature:g}"),
            ("gate", f"{version.gate_kind}, one decision per {version.gate_scope}, {version.gate_fitted}"),
            ("dtype", version.dtype),
            ("size", describe_bytes(version.size_bytes)),
            ("path", str(version.path)),
            ("manifest sha256", version.manifest_sha256),
            ("aliases", _join(version.aliases)),
            ("tags", _join(version.tags)),
            ("added", f"{version.created_at:%Y-%m-%d %H:%M} UTC"),
        ]
    )
    print_line()
    print_table(
        ("MEMBER", "ADAPTER", "WEIGHTS SHA256"),
        [(each.name, str(each.adapter or "-"), each.weights_sha256) for each in version.members],
    )
    if version.verifications:
        print_line()
        print_table(
            ("VERIFIED", "LEVEL", "OUTCOME"),
            [(f"{v.created_at:%Y-%m-%d %H:%M} UTC", v.level, v.outcome) for v in version.verifications],
        )


def _describe_rank(version: AdapterVersion) -> str | None:
    if version.rank is None:
        return None
    more = f", at most {version.max_rank}" if version.max_rank != version.rank else ""
    return f"{version.rank}{more}"


def _target_row(target: Target) -> tuple[str, ...]:
    return (
        target.kind,
        str(target.layers),
        str(target.in_features),
        str(target.out_features),
        _range(str(target.min_rank), str(target.max_rank)),
        _range(f"{target.min_scaling:g}", f"{target.max_scaling:g}"),
    )


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _join(words: Iterable[str]) -> str:
    return ", ".join(words)
