"""``show``: everything that the catalog knows about one version."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime

import click

from ...schemas.facts import AdapterFacts, BundleFacts
from ...schemas.names import CatalogSource
from ...schemas.verification import Outcome
from ..catalog.records import (
    AdapterVersion,
    BundleMember,
    BundleVersion,
    Event,
    MeasuredEvaluation,
    Target,
    Verification,
)
from ..face import Registry
from .groups import examples
from .json_output import print_json, to_json
from .output import describe_bytes, describe_share, print_facts, print_line
from .parameters import CatalogSourceType, format_option, pass_registry, wide_option
from .tables import EMPTY, Column, number, print_table

# What a line is called, in the order of the lines: first what a person asks for.
_ADAPTER_LABELS = {
    "source": "adapter",
    "verdict": "verdict",
    "note": "note",
    "owner": "owner",
    "base": "base",
    "rank": "rank",
    "scaling": "scaling",
    "weights_bytes": "size",
    "size_bytes": "in store",
    "dtypes": "dtype",
    "task_type": "task",
    "license": "license",
    "origin": "source",
    "commit": "commit",
    "aliases": "aliases",
    "tags": "tags",
    "versions": "versions",
    "created_at": "added",
}
_BUNDLE_LABELS = {
    "source": "bundle",
    "established": "established here",
    "evaluated": "evaluated here",
    "note": "note",
    "owner": "owner",
    "base": "base",
    "base_revision": "base revision",
    "members": "members",
    "gate": "gate",
    "top_k": "top k",
    "temperature": "temperature",
    "size_bytes": "size",
    "dtype": "dtype",
    "path": "path",
    "aliases": "aliases",
    "tags": "tags",
    "versions": "versions",
    "created_at": "added",
}
# With `--verbose` these follow, and then the facts that are not here, under their own names.
_DETAIL_LABELS = {
    "declared_base": "base declared",
    "base_model": "base model",
    "weights_sha256": "weights sha256",
    "config_sha256": "config sha256",
    "canonical_config_sha256": "canonical config",
    "manifest_sha256": "manifest sha256",
    "peft_version": "PEFT",
}
_IN_ANOTHER_LINE = {"max_rank", "gate_kind", "gate_scope", "gate_fitted"}


@click.command("show", epilog=examples("show summarise", "show summarise@2", "show summarise@champion"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.option("--verbose", is_flag=True, help="Also digests, and everything that is not known.")
@wide_option
@format_option
@pass_registry
def command(registry: Registry, source: CatalogSource, *, verbose: bool, as_json: bool) -> None:
    """Show one adapter or bundle version.

    The latest, unless another is named.
    """
    version = registry.find(source)
    numbers = registry.catalog.versions_of(source.name)
    is_bundle = isinstance(version, BundleVersion)
    signatures = registry.catalog.list_signatures(version.source) if is_bundle else ()
    if as_json:
        own = {"signatures": to_json(signatures)} if is_bundle else {}
        kind = "bundle" if is_bundle else "adapter"
        print_json({"kind": kind, "versions": numbers} | to_json(version) | own)
    elif isinstance(version, BundleVersion):
        _show_bundle(version, numbers, signatures, verbose=verbose)
    else:
        _show_adapter(version, numbers, verbose=verbose)


_EVALUATION_COLUMNS = (
    Column("EVALUATED HERE", gives_way=1),
    *map(number, ("ITEMS", "ROUTED", "MEMBERS", "OF MEMBERS")),
)
_TARGET_COLUMNS = (Column("TARGET"), *map(number, ("LAYERS", "IN", "OUT", "RANK", "SCALING")))


def _show_adapter(version: AdapterVersion, numbers: tuple[int, ...], *, verbose: bool) -> None:
    own = {
        "base": _describe_base(version),
        "versions": _describe(tuple(map(str, numbers))),
        "rank": _describe_rank(version),
        "weights_bytes": describe_bytes(version.weights_bytes),
        "size_bytes": describe_bytes(version.size_bytes),
        "origin": f"{version.origin.kind} {version.origin}{_claim(version)}",
        "license": _describe_license(version),
        "commit": version.origin.commit,
    }
    print_facts(list(_lines(version, AdapterFacts, _ADAPTER_LABELS, own, verbose=verbose)))
    if version.targets:
        print_line()
        print_table(_TARGET_COLUMNS, list(map(_target_row, version.targets)))
    if version.findings:
        print_line()
        for finding in version.findings:
            print_line(finding.describe())


def _show_bundle(
    version: BundleVersion, numbers: tuple[int, ...], signatures: tuple[Event, ...], *, verbose: bool
) -> None:
    own = {
        "established": _established_by(version),
        "evaluated": _describe_evaluation(version.evaluation),
        "members": str(len(version.members)),
        "versions": _describe(tuple(map(str, numbers))),
        "size_bytes": describe_bytes(version.size_bytes),
        "gate": f"{version.gate_kind}, one decision per {version.gate_scope}, {version.gate_fitted}",
    }
    print_facts(list(_lines(version, BundleFacts, _BUNDLE_LABELS, own, verbose=verbose)))
    print_line()
    print_table(
        ("MEMBER", "ADAPTER", "WEIGHTS SHA256"),
        [_member_row(each, verbose=verbose) for each in version.members],
    )
    if version.verifications:
        print_line()
        print_table(
            (Column("RECORDED", gives_way=3), Column("LEVEL", gives_way=2), "OUTCOME", "ESTABLISHED HERE"),
            [
                (f"{each.created_at:%Y-%m-%d %H:%M} UTC", each.level, each.outcome, _established(each))
                for each in version.verifications
            ],
        )
    if len(version.evaluations) > (version.evaluation is not None):
        print_line()
        print_table(_EVALUATION_COLUMNS, list(map(_evaluation_row, version.evaluations)))
    if signatures:
        print_line()
        columns = ("SIGNATURE", Column("AT", gives_way=3), "SIGNED BY", Column("FINGERPRINT", gives_way=2))
        print_table(columns, list(map(_signature_row, signatures)))


def _member_row(member: BundleMember, *, verbose: bool) -> tuple[str, ...]:
    digest = member.weights_sha256 if verbose else member.weights_sha256.short
    return member.name, str(member.adapter or EMPTY), digest


def _signature_row(event: Event) -> tuple[str, ...]:
    details = event.details
    issuer = f", confirmed by {details['issuer']}" if "issuer" in details else ""
    return (
        "signed here" if event.action == "sign" else "checked here",
        f"{event.at:%Y-%m-%d %H:%M} UTC",
        f"{details.get('method', '-')} of {details.get('signer', '-')}{issuer}",
        str(details.get("fingerprint", "-")),
    )


def _describe_evaluation(found: MeasuredEvaluation | None) -> str | None:
    if found is None or found.of_members is None:
        return None
    share = describe_share(found.of_members)
    return f"{share} of its members, {found.items:,} items, {found.created_at:%Y-%m-%d}"


def _evaluation_row(found: MeasuredEvaluation) -> tuple[str, ...]:
    routed, member = (found.summary.mode(mode) for mode in ("routed", "member"))
    return (
        f"{found.created_at:%Y-%m-%d %H:%M} UTC",
        f"{found.items:,}",
        EMPTY if routed is None else describe_share(routed.score),
        EMPTY if member is None else describe_share(member.score),
        EMPTY if found.of_members is None else describe_share(found.of_members),
    )


def _established_by(version: BundleVersion) -> str:
    """Return what the verifications made here establish, the deepest pass of them."""
    found = [each.established for each in version.verifications if each.claimed_by is None]
    deepest: tuple[str, ...] = max(found, key=len, default=())
    return ", ".join(deepest) or "nothing"


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


def _describe_base(version: AdapterVersion) -> str | None:
    is_other = version.declared_base not in (None, version.base)
    return f"{version.base} (its config names {version.declared_base})" if is_other else version.base


def _describe_license(version: AdapterVersion) -> str | None:
    if version.license is None or version.claimed_by is None:
        return version.license
    return f"{version.license}{_claim(version)}"


def _lines(
    version: AdapterVersion | BundleVersion,
    facts: type[AdapterFacts | BundleFacts],
    labels: Mapping[str, str],
    own: Mapping[str, str | None],
    *,
    verbose: bool,
) -> Iterator[tuple[str, str | None]]:
    """Yield label and text of what has a label and is known; ``verbose`` for all other facts too."""
    details = {name: label for name, label in _DETAIL_LABELS.items() if hasattr(version, name)}
    others = {field.name: field.name.replace("_", " ") for field in dataclasses.fields(facts)}
    # In this order; of two labels of one fact the first counts.
    every = {**labels, **details, **others, **details, **labels}
    for name, label in (every if verbose else labels).items():
        if name not in _IN_ANOTHER_LINE:
            text = own[name] if name in own else _describe(getattr(version, name))
            if text or verbose:
                yield label, text


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
