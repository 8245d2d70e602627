"""The plan of a fuse: its members opened and the plan made of them. Nothing is written; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files.digests import hash_file
from ...fuser.fuse_member import Member, MemberFiles
from ...fuser.planning import BaseModules, choose_base, make_plan
from ...inspection.adapter import Inspection, inspect_files
from ...inspection.base_facts import LINEAR_KINDS
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.digest import Digest
from ...schemas.errors import AdapterRefused, MissingDependency, SourceUnreadable, StoreDamaged, UsageError
from ...schemas.manifest import Manifest
from ...schemas.names import parse_catalog_source
from ...schemas.plan import FusePlan
from ...schemas.recipe import Recipe
from ...schemas.trained_on import TrainedOn
from ..catalog.records import AdapterVersion
from ..dependencies import require_torch
from ..store import Store
from ..workspace import Workspace
from .base_place import BasePlace, find_cached, place_base


@dataclass(frozen=True, slots=True)
class Prepared:
    """Members that were opened, their versions in the catalog, and the plan made of them.

    ``renamed`` is what the base calls module paths of old adapters, and ``base_folder`` where its config is,
    where the base was at hand.
    """

    versions: tuple[AdapterVersion, ...]
    members: tuple[Member, ...]
    plan: FusePlan
    renamed: Mapping[str, str]
    base_folder: Path | None

    @property
    def trained_on(self) -> TrainedOn:
        """The model that the members were trained on, where they agree."""
        return TrainedOn.common(member.trained_on for member in self.members)

    @property
    def sources(self) -> dict[str, MemberFiles]:
        """The members' own files, by member name."""
        return {each.name: MemberFiles(each.config_path, each.weights_path) for each in self.members}


def prepare_fuse(workspace: Workspace, recipe: Recipe) -> Prepared:
    """Open the members of a recipe and make the plan; nothing is written.

    Where the base's config is at hand, in the recipe's folder or in the local Hub cache, every module is
    looked up there.

    Raises:
        UsageError: a member's name or the base is malformed.
        NotInCatalog: a member is not catalogued.
        StoreDamaged: a member's bytes are missing or changed.
        AdapterRefused: a member has no LoRA factors.
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    place = place_base(recipe.base, recipe.base_folder)
    versions = tuple(workspace.catalog.find(parse_catalog_source(entry.adapter)) for entry in recipe.members)
    members = tuple(
        open_member(workspace.store, version, name=entry.name)
        for version, entry in zip(versions, recipe.members, strict=True)
    )
    return plan_members(members, recipe, place, versions=versions)


def plan_members(
    members: Sequence[Member], recipe: Recipe, place: BasePlace, *, versions: Sequence[AdapterVersion] = ()
) -> Prepared:
    """Make the plan for opened members, on the base in its ``place``.

    ``versions`` are the members' in the catalog, where they have any.

    Raises:
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    named = recipe.model_copy(update={"base": place.name_for(member.base for member in members)})
    folder, base_modules = _look_at_base(named, place, members)
    plan = make_plan(members, named, base_modules=base_modules)
    renamed = base_modules.renamed if base_modules else {}
    return Prepared(tuple(versions), tuple(members), plan, renamed, folder)


def _look_at_base(
    recipe: Recipe, place: BasePlace, members: Sequence[Member]
) -> tuple[Path | None, BaseModules | None]:
    """Return where the base's config is, and its modules; None for both where it is not at hand."""
    paths = sorted({module.path for member in members for module in member.inventory.modules})
    trained_on = TrainedOn.common(member.trained_on for member in members)
    if place.folder is not None:
        return place.folder, read_base_modules(place.folder, paths, trained_on)
    name, _ = choose_base(members, recipe)
    return read_cached_modules(name, recipe.base_revision, paths, trained_on)


def read_cached_modules(
    name: str | None, revision: str | None, paths: Iterable[str], trained_on: TrainedOn
) -> tuple[Path | None, BaseModules | None]:
    """Return the folder and the modules of a base in the local Hub cache.

    Both are None where it is not there or cannot be read: the cache was not asked for.
    """
    folder = find_cached(name, revision) if name else None
    if folder is None:
        return None, None
    try:
        require_torch("looking at a base model")
        return folder, read_base_modules(folder, paths, trained_on)
    except (UsageError, SourceUnreadable, MissingDependency):
        return None, None


def read_base_modules(folder: Path, paths: Iterable[str], trained_on: TrainedOn) -> BaseModules:
    """Return the base's modules, and the present names of those of ``paths`` that it renamed.

    The base is of the class that adapters were ``trained_on``.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
        MissingDependency: transformers is not installed.
    """
    from ...runtime.base_modules import module_shapes, read_base, resolve_paths

    base = read_base(folder, trained_on)
    shapes = {
        path: (shape.in_features, shape.out_features)
        for path, shape in module_shapes(base).items()
        if shape.kind in LINEAR_KINDS
    }
    return BaseModules(shapes=shapes, renamed=resolve_paths(paths, base))


def open_member(store: Store, version: AdapterVersion, *, name: str | None = None) -> Member:
    """Open a catalogued adapter version as a member called ``name``, by default as it is catalogued.

    Both files are read whole and compared with the digests in the catalog.

    Raises:
        StoreDamaged: its bytes are missing or changed.
        AdapterRefused: it has no LoRA factors whose ranks and scalings can be worked out.
    """
    if version.rank is None:
        raise AdapterRefused(f"`{version.source}` is {version.verdict}", findings=version.findings)
    config_path, weights_path = (_path_of(store, version, file) for file in (CONFIG_FILE, WEIGHTS_FILE))
    inspection = inspect_files(config_path, weights_path)
    _check_digests(
        version, {config_path: version.config_sha256, weights_path: version.weights_sha256}, inspection
    )
    described = f"`{version.source}` is {inspection.verdict}"
    return Member.of(
        inspection.require_sound(described).require_factors(described),
        name=name or version.name,
        adapter=str(version.source),
        config_path=config_path,
        weights_path=weights_path,
        origin=version.origin,
        license=version.license,
        # What this catalog calls the base, whichever way the adapter spells it.
        base=version.base_model or version.base,
        spelled_base=version.base,
    )


def _check_digests(version: AdapterVersion, expected: Mapping[Path, Digest], inspection: Inspection) -> None:
    facts = inspection.facts
    # The files of a sound adapter could be read when it was catalogued; unreadable now means changed.
    found = (facts.config_sha256, facts.weights_sha256) if facts else map(hash_file, expected)
    for (path, wanted), digest in zip(expected.items(), found, strict=True):
        if digest != wanted:
            raise StoreDamaged(
                f"the blob `{path}` was changed: its bytes have the digest `{digest}`",
                hint=f"add `{version.name}` again from its source, which mends it",
            )


def stored_sources(store: Store, manifest: Manifest) -> dict[str, MemberFiles]:
    """Return the own files of those members of a bundle whose bytes this store has, by member name."""
    found = {}
    for member in manifest.members:
        config_path = store.find(member.config_sha256)
        weights_path = store.find(member.weights_sha256) if config_path else None
        if config_path and weights_path:
            found[member.name] = MemberFiles(config_path, weights_path)
    return found


def _path_of(store: Store, version: AdapterVersion, name: str) -> Path:
    return store.path_of(version.file(name).sha256)
