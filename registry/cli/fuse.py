"""``fuse``: catalogued adapters into one verified bundle."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import click

from ...files.reading import read_bounded
from ...files.writing import check_writable, whole_file, write_errors
from ...schemas.bundle import NOT_FITTED
from ...schemas.errors import InvalidDocument, UsageError
from ...schemas.gate_choices import InitialGate
from ...schemas.plan import FusePlan, PlannedModule
from ...schemas.recipe import DtypeName, Recipe
from ...schemas.toml import MAX_TOML_BYTES
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.fuse_plan import Prepared, pin_members, prepare_fuse
from .failures import DONE, REFUSED
from .groups import examples
from .json_output import print_json
from .output import (
    describe_bytes,
    print_facts,
    print_gate_remark,
    print_line,
    print_remark,
    print_verified,
)
from .parameters import (
    BaseName,
    base_folder_option,
    complete_name,
    format_option,
    name_base,
    pass_registry,
    settings_of,
    wide_option,
)
from .progress import progress_bar
from .tables import EMPTY, Column, number, print_table

if TYPE_CHECKING:
    from ..workflows.fusion import Fusion


@click.command(
    "fuse",
    epilog=examples(
        "fuse legal medical sports --out bundle",
        "fuse legal@3 medical@champion --out bundle --top-k 1 --dtype bfloat16",
        "fuse legal medical --out bundle --write-recipe bundle.toml",
        "fuse --recipe bundle.toml --out bundle",
        "fuse legal medical --dry-run",
    ),
)
@click.argument("adapters", metavar="[NAME[@VERSION|@ALIAS]]...", nargs=-1, shell_complete=complete_name)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help="A TOML file with the adapters and all options.",
)
@click.option(
    "--write-recipe",
    "recipe_target",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write what was fused as a recipe into a new file, each member with its version.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The new folder. Needed but for --dry-run.")
@click.option("--name", help="What the catalog calls the bundle. Default: made from the folder's name.")
@click.option(
    "--base",
    type=BaseName(),
    metavar="ORG/MODEL|FOLDER",
    help="The base model, where the members disagree or name none.",
)
@base_folder_option
@click.option("--base-revision", help="The base's revision.")
@click.option("--top-k", type=int, help="Adapters for each token. Default: 2, or 1 for a single member.")
@click.option("--temperature", type=float, help="Of the softmax over the chosen adapters. Default: 1.")
@click.option(
    "--dtype",
    type=click.Choice(get_args(DtypeName)),
    help="Element type of the factors. Default: the members' common one, else float32.",
)
@click.option(
    "--gate",
    type=click.Choice(get_args(InitialGate)),
    help="First values of the gates: each adapter's main direction, or random. Default: arrow.",
)
@click.option("--seed", type=int, help="Of the random gates. Default: 0.")
@click.option("--with-experts", is_flag=True, help="Also put each member in as a plain PEFT adapter.")
@click.option(
    "--trust-tensors",
    is_flag=True,
    help="Also take modules that a member's config does not declare, which PEFT would drop.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan and every conflict, ranks in the order of members; write nothing.",
)
@click.option("--modules", is_flag=True, help="With --dry-run: a row for each module, not each kind.")
@wide_option
@format_option
@pass_registry
@click.pass_context
def command(
    context: click.Context,
    registry: Registry,
    /,
    adapters: tuple[str, ...],
    *,
    recipe_file: Path | None,
    recipe_target: Path | None,
    out: Path | None,
    name: str | None,
    with_experts: bool,
    trust_tensors: bool,
    dry_run: bool,
    modules: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fuse catalogued adapters into one routed bundle.

    An adapter is a name in the catalog, or the repository on the Hub that it was added from (`org/name`,
    `org/name@COMMIT`). The bundle picks among them for every token. Ranks, targets, scalings and element
    types may differ. It is written beside its target, verified against the members' own files, and only then
    moved into place and catalogued.
    """
    switches = {"with_experts": with_experts, "trust_tensors": trust_tensors}
    recipe = _make_recipe(adapters, recipe_file, options, switches)
    if recipe.base is not None:
        base = name_base(settings_of(context), recipe.base)
        recipe = recipe.model_copy(update={"base": base})
    if out is None and not dry_run:
        raise UsageError(
            "`--out` is missing: the folder that the bundle becomes", hint="or look with `--dry-run`"
        )
    if dry_run and recipe_target is not None:
        raise UsageError(
            "`--dry-run` writes nothing, found also `--write-recipe`", hint="leave out one of them"
        )
    if recipe_target is not None and out is not None and recipe_target.absolute() == out.absolute():
        raise UsageError(
            f"`--out` and `--write-recipe` both name `{out}`", hint=f"such as `--write-recipe {out}.toml`"
        )
    if not dry_run:
        require_torch("fusing")

    prepared = prepare_fuse(registry, recipe)
    for warning in prepared.plan.warnings:
        print_remark(f"warning: {warning}")
    if dry_run or out is None:
        context.exit(_print_plan(prepared.plan, modules=modules, as_json=as_json))
    from ..workflows.fusion import fuse

    written = None if recipe_target is None else _NewRecipe.of(recipe_target, recipe, prepared)
    with progress_bar() as progress:
        fusion = fuse(registry, prepared, out, name=name, progress=progress)
    if written is not None:
        written.write()
    _print_fusion(fusion, as_json=as_json)
    if written is not None:
        print_remark(f"the recipe is in `{written.path}`")


@dataclass(frozen=True, slots=True)
class _NewRecipe:
    """The file that a recipe becomes when what it describes was fused."""

    path: Path
    data: bytes

    @classmethod
    def of(cls, path: Path, recipe: Recipe, prepared: Prepared) -> Self:
        """Return the file of a recipe with the versions that were found for its members.

        Raises:
            UsageError: something else is there.
            SourceUnreadable: a file cannot be written there.
        """
        new = cls(path, pin_members(recipe, prepared.versions).to_toml().encode("utf-8"))
        check_writable(path)
        if os.path.lexists(path) and not new._is_there():
            raise UsageError(f"`{path}` exists already", hint="name a new file, or move that one away")
        return new

    def write(self) -> None:
        """Write the file whole, unless the same recipe is there."""
        # The same command may be given again, after the first was interrupted.
        if self._is_there():
            return
        with whole_file(self.path, overwrite=False) as file, write_errors(self.path):
            file.write_bytes(self.data)

    def _is_there(self) -> bool:
        return self.path.is_file() and read_bounded(self.path, MAX_TOML_BYTES) == self.data


def _make_recipe(
    adapters: tuple[str, ...], file: Path | None, options: dict[str, Any], switches: dict[str, bool]
) -> Recipe:
    stated = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in options.items()
        if value is not None
    }
    stated |= {key: True for key, is_on in switches.items() if is_on}
    if file is None:
        if not adapters:
            raise UsageError("no adapters to fuse were named", hint="name them, or a file with `--recipe`")
        return Recipe.state(({"adapter": text} for text in adapters), stated)
    if adapters or stated:
        given = ", ".join([*adapters, *(f"--{key.replace('_', '-')}" for key in stated)])
        raise UsageError(
            f"the recipe `{file}` has all options in it, found also {given}", hint="put it into the recipe"
        )

    data = read_bounded(file, MAX_TOML_BYTES)
    try:
        return Recipe.from_toml(data, what=str(file))
    except InvalidDocument as error:
        # A mistake that a person typed is a usage error, in a file as on the command line.
        raise UsageError(error.message, hint=error.hint) from error


def _print_plan(plan: FusePlan, *, modules: bool, as_json: bool) -> int:
    for conflict in plan.conflicts:
        print_remark(f"conflict: {conflict}")
    if as_json:
        print_json(plan)
    else:
        _print_plan_text(plan, modules=modules)
    return REFUSED if plan.conflicts else DONE


def _print_plan_text(plan: FusePlan, *, modules: bool) -> None:
    print_facts(
        [
            ("base", plan.base),
            ("dtype", str(plan.dtype)),
            ("top k", str(plan.top_k)),
            ("temperature", f"{plan.temperature:g}"),
            ("gate", f"{plan.gate}, seed {plan.seed}, not fitted"),
            ("modules", str(len(plan.modules))),
            (
                "size",
                f"{describe_bytes(plan.size_bytes)}, of it padding {describe_bytes(plan.padding_bytes)}",
            ),
        ]
    )
    print_line()
    print_table(
        (
            "MEMBER",
            "ADAPTER",
            number("RANK"),
            number("SCALING"),
            number("MODULES", 1),
            Column("CAST FROM", gives_way=2),
        ),
        [
            (m.name, m.adapter, str(m.rank), f"{m.scaling:g}", str(m.modules), " ".join(m.cast_from) or EMPTY)
            for m in plan.members
        ],
    )
    print_line()
    if modules:
        print_table(("MODULE", *_SIZES), list(map(_module_row, plan.modules)))
    else:
        print_table(
            ("TARGET", number("MODULES"), *_SIZES),
            list(map(_kind_row, kinds_of(plan.modules))),
            total="--modules shows each module",
        )


_SIZES = (
    number("IN", 2),
    number("OUT", 2),
    # One for each member, in the order of the table of members.
    Column("RANKS", gives_way=1),
    number("ROWS", 3),
    number("PADDING", 4),
    number("BYTES", 3),
)


def kinds_of(modules: Iterable[PlannedModule]) -> list[list[PlannedModule]]:
    """Return the modules in groups of one kind: of one name in every layer, with the same shape and ranks."""
    kinds: dict[tuple[object, ...], list[PlannedModule]] = {}
    for module in modules:
        name = module.path.rpartition(".")[2]
        key = (name, module.in_features, module.out_features, module.ranks)
        kinds.setdefault(key, []).append(module)
    return list(kinds.values())


def _kind_row(modules: list[PlannedModule]) -> tuple[str, ...]:
    name = modules[0].path.rpartition(".")[2]
    padding_bytes = sum(module.padding_bytes for module in modules)
    size_bytes = sum(module.size_bytes for module in modules)
    return (name, str(len(modules)), *_size_cells(modules[0], padding_bytes, size_bytes))


def _module_row(module: PlannedModule) -> tuple[str, ...]:
    return (module.path, *_size_cells(module, module.padding_bytes, module.size_bytes))


def _size_cells(module: PlannedModule, padding_bytes: int, size_bytes: int) -> tuple[str, ...]:
    return (
        str(module.in_features),
        str(module.out_features),
        "|".join(str(rank) if rank else EMPTY for rank in module.ranks),
        str(module.rows),
        str(padding_bytes),
        str(size_bytes),
    )


def _print_fusion(fusion: Fusion, *, as_json: bool) -> None:
    record, plan = fusion.record, fusion.plan
    if as_json:
        print_json({"version": fusion.version, "verification": record, "plan": plan})
    else:
        print_line(
            f"fused: {fusion.version.source} in {fusion.folder}: {len(plan.members)} members, "
            f"{len(plan.modules)} modules, {describe_bytes(fusion.version.size_bytes)}"
        )
        print_verified(record)
    for note in record.notes:
        print_remark(f"note: {note}")
    if fusion.version.gate_fitted == NOT_FITTED:
        print_gate_remark()
