"""``show``: everything that the catalog knows about one version."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime

import click

from ...schemas.facts import AdapterFacts, BundleFacts
from ...schemas.names import CatalogSource
from ...schemas.verification import Outcome
from ..catalog.records import AdapterVersion, BundleVersion, Target, Verification
from ..face import Registry
from .groups import examples
from .json_output import print_json, to_json
from .output import describe_bytes, print_facts, print_line, print_table
from .parameters import CatalogSourceType, format_option, pass_registry

# What a line is called, in the order of the lines. Facts that are not here follow under their own names.
_ADAPTER_LABELS = {
    "source": "adapter",
    "versions": "versions",
    "verdict": "verdict",
    "base": "base",
    "declared_base": "base declared",
    "base_model": "base model",
    "base_revision": "base revision",
    "task_type": "task",
    "license": "license",
    "rank": "rank",
    "scaling": "scaling",
    "dtypes": "dtype",
    "size_bytes": "size",
    "origin": "source",
    "commit": "commit",
    "weights_sha256": "weights sha256",
    "config_sha256": "config sha256",
    "canonical_config_sha256": "canonical config",
    "shape_signature": "shape signature",
    "peft_version": "PEFT",
    "aliases": "aliases",
    "tags": "tags",
    "created_at": "added",
}
_BUNDLE_LABELS = {
    "source": "bundle",
    "versions": "versions",
    "base": "base",
    "base_revision": "base revision",
    "top_k": "top k",
    "temperature": "temperature",
    "gate": "gate",
    "dtype": "dtype",
    "size_bytes": "size",
    "path": "path",
    "manifest_sha256": "manifest sha256",
    "aliases": "aliases",
    "tags": "tags",
    "created_at": "added",
}
_IN_ANOTHER_LINE = {"max_rank", "weights_bytes", "gate_kind", "gate_scope", "gate_fitted"}


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
    own = {
        "versions": _describe(tuple(map(str, numbers))),
        "rank": _describe_rank(version),
        "size_bytes": describe_bytes(version.size_bytes),
        "origin": f"{version.origin.kind} {version.origin}{_claim(version)}",
        "license": _describe_license(version),
        "commit": version.origin.commit,
    }
    print_facts(list(_lines(version, AdapterFacts, _ADAPTER_LABELS, own)))
    if version.targets:
        print_line()
        columns = ("TARGET", "LAYERS", "IN", "OUT", "RANK", "SCALING")
        print_table(columns, [_target_row(target) for target in version.targets])
    if version.findings:
        print_line()
        for finding in version.findings:
            print_line(finding.describe())


def _show_bundle(version: BundleVersion, numbers: tuple[int, ...]) -> None:
    own = {
        "versions": _describe(tuple(map(str, numbers))),
        "size_bytes": describe_bytes(version.size_bytes),
        "gate": f"{version.gate_kind}, one decision per {version.gate_scope}, {version.gate_fitted}",
    }
    print_facts(list(_lines(version, BundleFacts, _BUNDLE_LABELS, own)))
    print_line()
    print_table(
        ("MEMBER", "ADAPTER", "WEIGHTS SHA256"),
        [(each.name, str(each.adapter or "-"), each.weights_sha256) for each in version.members],
    )
    if version.verifications:
        print_line()
        print_table(
            ("RECORDED", "LEVEL", "OUTCOME", "ESTABLISHED HERE"),
            [
                (f"{each.created_at:%Y-%m-%d %H:%M} UTC", each.level, each.outcome, _established(each))
                for each in version.verifications
            ],
        )


def _established(verification: Verification) -> str:
    if verification.claimed_by is not None:
        return f"nothing: claimed by {verification.claimed_by}"
    if verification.outcome is Outcome.PASS and not verification.established:
        return "nothing: the record contradicts itself"
    return ", ".join(verification.established) or "nothing"


def _claim(version: AdapterVersion) -> str:
    if version.claimed_by is not None:
        return f" (claimed by {version.claimed_by})"
    return " (claimed by the path of its folder)" if version.origin.is_claimed else ""


def _describe_license(version: AdapterVersion) -> str | None:
    if version.license is None or version.claimed_by is None:
        return version.license
    return f"{version.license}{_claim(version)}"


def _lines(
    version: AdapterVersion | BundleVersion,
    facts: type[AdapterFacts | BundleFacts],
    labels: Mapping[str, str],
    own: Mapping[str, str | None],
) -> Iterator[tuple[str, str | None]]:
    """Yield label and text of what has a label, then of the other facts under their own names."""
    others = {field.name: field.name.replace("_", " ") for field in dataclasses.fields(facts)}
    for name, label in {**labels, **others, **labels}.items():
        if name not in _IN_ANOTHER_LINE:
            yield label, own[name] if name in own else _describe(getattr(version, name))


def _describe(value: object) -> str | None:
    match value:
        case None:
            return None
        case tuple():
            return ", ".join(value)
        case float():
            return f"{value:g}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M} UTC"
        case _:
            return str(value)


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
