"""Rules about adapters that are to be fused into one bundle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations, product

from ...schemas.base_name import group_by_base, is_local_path
from ...schemas.finding import Effect, Severity, Verdict
from ...schemas.quotation import quote_name, quote_names
from ..companions import Companions
from .rule import Observation, Observations, rule

NEAR_DUPLICATE_COSINE = 0.99


@rule(
    "MR601",
    Companions,
    Effect.NOT_FUSABLE,
    why="one bundle runs on one base, where a module has one shape",
    remedy="fuse only adapters of the same base",
)
def module_shapes_disagree(companions: Companions) -> Observations:
    """The adapters disagree about a module's shape."""
    for path, shapes in companions.shapes():
        if len(shapes) > 1:
            said = "; ".join(
                f"{i} in, {o} out in {quote_names(who)}" for (i, o), who in sorted(shapes.items())
            )
            yield Observation(f"{quote_name(path)}: {said}", "one shape")


@rule(
    "MR602",
    Companions,
    Effect.NOT_FUSABLE,
    why="equal shapes do not make equal bases: an adapter on another base is silently wrong",
    remedy="state the base that all of them fit with `--base`, or leave out those of another",
)
def bases_disagree(companions: Companions) -> Observations:
    """The adapters declare different bases, or none that others know."""
    if companions.stated_base is not None:
        return
    groups = group_by_base(companions.bases.items())
    if len(groups) > 1:
        found = "; ".join(f"{quote_name(base)} in {quote_names(who)}" for base, who in sorted(groups.items()))
        yield Observation(found, "one base")
    elif not groups:
        yield Observation("no base", "one base")
    elif is_local_path(base := next(iter(groups))):
        yield Observation(f"the path {quote_name(base)}", "a Hub id such as `org/name`")


@rule(
    "MR603",
    Companions,
    Effect.NOT_FUSABLE,
    why="a bundle holds only members whose arithmetic its format can express",
    remedy="leave the adapter out, or mend what its own findings name",
)
def member_is_not_fusable(companions: Companions) -> Observations:
    """An adapter cannot be fused by itself."""
    for name, inspection in companions.members.items():
        verdict = Verdict.of(inspection.findings, trust_tensors=companions.trust_tensors)
        if not verdict.fusable:
            yield Observation(f"{quote_name(name)} is {verdict}", "sound, fusable", file=name)


@rule(
    "MR604",
    Companions,
    Severity.NOTE,
    why="a bundle has one dtype; without a common one it is float32",
    remedy="nothing needs doing; choose another with `--dtype` when fusing",
)
def dtypes_disagree(companions: Companions) -> Observations:
    """The adapters are stored in different dtypes."""
    dtypes: dict[str, list[str]] = defaultdict(list)
    for name, inspection in companions.members.items():
        if inspection.inventory:
            dtypes[" and ".join(inspection.inventory.dtypes)].append(name)
    if len(dtypes) > 1:
        said = "; ".join(f"{dtype} in {quote_names(who)}" for dtype, who in sorted(dtypes.items()))
        yield Observation(said, "one dtype")


@rule(
    "MR605",
    Companions,
    Severity.WARN,
    why="adapters of one base usually share modules; paths that never meet are often of two models",
    remedy="compare each with the base (`--base FOLDER`)",
)
def adapters_share_no_module(companions: Companions) -> Observations:
    """Two adapters have no module in common."""
    for (one, own), (other, others) in combinations(companions.paths().items(), 2):
        if not own & others:
            first, second = quote_name(min(own)), quote_name(min(others))
            found = f"{first} in {quote_name(one)}, {second} in {quote_name(other)}"
            yield Observation(found, "a module in common", reason=f"{one} {other}")


@rule(
    "MR606",
    Companions,
    Severity.WARN,
    why="the gate cannot tell equal members apart, and each takes its share of the memory",
    remedy="leave one of them out",
)
def adapters_are_equal(companions: Companions) -> Observations:
    """Two adapters have the same weights under different configs."""
    for by_config in _names_by_content(companions):
        names = [equal[0] for equal in by_config.values()]
        if len(names) > 1:
            yield Observation(quote_names(names), "different weights", reason=names[0])


def _names_by_content(companions: Companions) -> Iterable[dict[str | None, list[str]]]:
    """Return, for each weights file, the names of the adapters that have it, by their configs' digests."""
    found: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, inspection in companions.members.items():
        if inspection.weights_sha256:
            found[inspection.weights_sha256][inspection.canonical_config_sha256].append(name)
    return found.values()


@rule(
    "MR607",
    Companions,
    Severity.WARN,
    why="members that do almost the same leave the gate nothing to choose by",
    remedy="leave one of them out, such as the earlier checkpoint",
)
def adapters_are_nearly_equal(companions: Companions) -> Observations:
    """Two adapters change the base in almost the same way."""
    for (one, other), cosine in sorted(companions.alike.items()):
        equal = companions.members[one].weights_sha256 == companions.members[other].weights_sha256
        if cosine > NEAR_DUPLICATE_COSINE and not equal:
            found = f"a cosine of {cosine:.4f} between {quote_name(one)} and {quote_name(other)}"
            yield Observation(found, f"at most {NEAR_DUPLICATE_COSINE}", reason=f"{one} {other}")


@rule(
    "MR608",
    Companions,
    Effect.NOT_FUSABLE,
    why="the gate scores equal members alike, so their tokens would be split between them at random",
    remedy="leave one of them out",
)
def adapters_have_one_content(companions: Companions) -> Observations:
    """Two adapters have the same weights and the same config."""
    for by_config in _names_by_content(companions):
        for config, names in by_config.items():
            if config and len(names) > 1:
                yield Observation(quote_names(names), "different adapters", reason=names[0])


@rule(
    "MR609",
    Companions,
    Effect.NOT_FUSABLE,
    why="a model with an output layer has every module under a longer path, and a bundle is for one class",
    remedy="fuse only adapters that were trained on one class of model",
)
def classes_disagree(companions: Companions) -> Observations:
    """One adapter was trained on a model without an output layer, another on one with it."""
    paths = companions.paths()
    bodies = [name for name in paths if name in companions.headless]
    for one, other in product(bodies, [name for name in paths if name not in companions.headless]):
        if not paths[one] & paths[other]:
            found = f"{quote_name(one)} without an output layer, {quote_name(other)} with one"
            yield Observation(found, "one class of model")
            return
