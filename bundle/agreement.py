"""The agreement of a bundle's parts: its config and tensors with its members as the manifest quotes them.

Each function returns or yields the problems it found, in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..inspection.config import TASK_TYPES
from ..inspection.keys import TensorKind
from ..schemas.errors import MeteoraError
from ..schemas.inventory import Dtype, lossy_dtypes
from ..schemas.quotation import quote
from ..schemas.trained_on import agreed, common_mapping
from .member import QuotedMember
from .opened import Bundle


def check_members(bundle: Bundle) -> list[str]:
    """Check that the bundle has what its members have, as the manifest quotes their configs and headers.

    Both ways: every tensor of a member is a factor in a module of the bundle, with the rank, scaling and
    shape that its own files give; and the bundle's config names no member, rank or loss beyond those.
    """
    indices = range(len(bundle.config.members))
    members = check_names(bundle) or [problem for index in indices for problem in check_member(bundle, index)]
    # What the members state is read from configs that were just found to be readable.
    return [*_check_task(bundle), *(members or _check_trained_on(bundle))]


def _check_task(bundle: Bundle) -> Iterator[str]:
    """Check that PEFT knows the task type, which it refuses a whole config for."""
    task_type = bundle.config.task_type
    if task_type is not None and task_type not in TASK_TYPES:
        yield (
            f"the task type of the config is {quote(task_type)}, which PEFT refuses; expected "
            f"{' or '.join(sorted(TASK_TYPES))}"
        )


def _check_trained_on(bundle: Bundle) -> Iterator[str]:
    """Check that the config names the kind of model that the members were trained on, by their own configs.

    PEFT chooses a class by the task, and imports the library that the mapping names.
    """
    stated = [(member.config.text("task_type"), member.config.value) for member in bundle.members]
    task = agreed(task for task, _ in stated)
    if bundle.config.task_type != task:
        found = _named(bundle.config.task_type)
        yield f"the task type of the config is {found}, its members make it {_named(task)}"
    mapping = common_mapping((task, value.get("auto_mapping")) for task, value in stated)
    # Bundles from before the mapping was carried have none.
    if bundle.config.auto_mapping not in (None, mapping):
        yield "the config has an `auto_mapping` that its members do not have"


def _named(task: str | None) -> str:
    return quote(task) if task else "none"


def check_names(bundle: Bundle) -> list[str]:
    """Check that config and manifest name the same members in the same order."""
    found = tuple(member.name for member in bundle.members)
    if found == bundle.config.names:
        return []
    return [f"the config has the members {list(bundle.config.names)}, the manifest {list(found)}"]


def check_member(bundle: Bundle, index: int) -> list[str]:
    """Check one member of a bundle whose config and manifest name the same members."""
    member = bundle.members[index]
    try:
        _ = member.inventory
    except MeteoraError as error:
        return [f"the files of member `{member.name}` as the manifest quotes them: {error}"]
    return [
        *check_renaming(member),
        *_check_carried(member),
        *_check_cast(bundle, member),
        *_compare_member(bundle, index, member),
    ]


def check_renaming(member: QuotedMember) -> Iterator[str]:
    """Check that the renaming takes own modules to other names, and no two to one."""
    renamed, own = member.entry.renamed_modules, set(member.inventory.by_path)
    for path in sorted(set(renamed) - own):
        yield f"the manifest renames `{path}`, which member `{member.name}` does not have"
    for path in sorted(own & set(renamed.values())):
        yield f"the manifest renames a module of `{member.name}` to `{path}`, which it has already"
    if len(member.modules) < len(own):
        yield f"the manifest renames two modules of `{member.name}` to one name"


def _check_carried(member: QuotedMember) -> Iterator[str]:
    """Check that a member has no tensor that changes its output and that a bundle cannot hold."""
    for kind, entries in member.tensors.others.items():
        # The forward pass does not use it: what a training run keeps for its next step.
        if kind is not TensorKind.TRAINING_STATE:
            yield (
                f"member `{member.name}` has {len(entries)} tensors that the bundle does not have "
                f"({kind}), the first `{entries[0].name}`"
            )


def _check_cast(bundle: Bundle, member: QuotedMember) -> Iterator[str]:
    cast, lost = member.entry.cast, lossy_dtypes(member.inventory.dtypes, bundle.dtype)
    recorded = cast.source if cast else ()
    if recorded != lost:
        yield (
            f"the manifest states that `{member.name}` was cast from {_listed(recorded)}, "
            f"its own header and the bundle's {bundle.dtype} make it {_listed(lost)}"
        )
    elif cast and cast.target is not bundle.dtype:
        yield (
            f"the manifest states that `{member.name}` was cast to {cast.target}, "
            f"the bundle has {bundle.dtype}"
        )


def _listed(dtypes: Sequence[Dtype]) -> str:
    return ", ".join(dtypes) or "nothing"


def _compare_member(bundle: Bundle, index: int, member: QuotedMember) -> Iterator[str]:
    own, layouts = member.modules, bundle.config.layouts
    for path in sorted(set(own) - set(layouts)):
        yield f"member `{member.name}` has factors for `{path}`, which the bundle does not have"
    for path, layout in layouts.items():
        module, rank = own.get(path), layout.ranks[index]
        if module is None:
            if rank:
                yield f"`{path}`: `{member.name}` has rank {rank}, its own files have none"
            continue
        if rank != module.rank:
            yield f"`{path}`: `{member.name}` has rank {rank}, its own files give {module.rank}"
        if layout.scalings[index] != module.scaling:
            yield (
                f"`{path}`: `{member.name}` has scaling {layout.scalings[index]}, "
                f"its own config gives {module.scaling}"
            )
        in_features, out_features = bundle.shapes[path]
        if (in_features, out_features) != (module.in_features, module.out_features):
            yield (
                f"`{path}` is {in_features} -> {out_features}, "
                f"`{member.name}` has {module.in_features} -> {module.out_features}"
            )
