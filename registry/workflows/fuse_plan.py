"""The plan of a fuse: its members opened and the plan made of them. Nothing is written; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files.digests import hash_file
from ...fuser.fuse_member import Member, MemberFiles
from ...fuser.planning import BaseModules, make_plan
from ...inspection.adapter import Inspection, inspect_files
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.digest import Digest
from ...schemas.errors import AdapterRefused, StoreDamaged
from ...schemas.manifest import Manifest, Origin
from ...schemas.names import MEMBER_MARK, parse_catalog_source
from ...schemas.plan import FusePlan
from ...schemas.recipe import Recipe
from ..catalog.records import AdapterVersion
from ..store import Store
from ..workspace import Workspace
from .additions import check_base


@dataclass(frozen=True, slots=True)
class Prepared:
    """Members that were opened, their versions in the catalog, and the plan made of them.

    ``renamed`` is what the base calls module paths of old adapters, where the base was at hand.
    """

    versions: tuple[AdapterVersion, ...]
    members: tuple[Member, ...]
    plan: FusePlan
    renamed: Mapping[str, str]

    @property
    def sources(self) -> dict[str, MemberFiles]:
        """The members' own files, by member name."""
        return {each.name: MemberFiles(each.config_path, each.weights_path) for each in self.members}


def prepare_fuse(workspace: Workspace, recipe: Recipe) -> Prepared:
    """Open the members of a recipe and make the plan; nothing is written.

    Where the recipe's base is a folder of this machine, every module is looked up there.

    Raises:
        UsageError: a member's name or the base is malformed.
        NotInCatalog: a member is not catalogued.
        StoreDamaged: a member's bytes are missing or changed.
        AdapterRefused: a member has no LoRA factors.
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    if recipe.base is not None:
        check_base(recipe.base)
    versions = tuple(workspace.catalog.find(parse_catalog_source(entry.adapter)) for entry in recipe.members)
    members = tuple(
        open_member(workspace.store, version, name=entry.name)
        for version, entry in zip(versions, recipe.members, strict=True)
    )
    return plan_members(members, recipe, versions=versions)


def plan_members(
    members: Sequence[Member], recipe: Recipe, *, versions: Sequence[AdapterVersion] = ()
) -> Prepared:
    """Make the plan for opened members; ``versions`` are theirs in the catalog, where they have any.

    Raises:
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    base_modules = _look_at_base(recipe, members)
    plan = make_plan(members, recipe, base_modules=base_modules)
    renamed = base_modules.renamed if base_modules else {}
    return Prepared(tuple(versions), tuple(members), plan, renamed)


def _look_at_base(recipe: Recipe, members: Sequence[Member]) -> BaseModules | None:
    if recipe.base is None or not Path(recipe.base).is_dir():
        return None
    paths = {module.path for member in members for module in member.inventory.modules}
    return read_base_modules(Path(recipe.base), sorted(paths))


def read_base_modules(folder: Path, paths: Iterable[str]) -> BaseModules:
    """Return the base's modules, and the present names of those of ``paths`` that it renamed.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
        MissingDependency: transformers is not installed.
    """
    from ...runtime.base_modules import module_shapes, read_base, resolve_paths

    base = read_base(folder)
    shapes = {path: (shape.in_features, shape.out_features) for path, shape in module_shapes(base).items()}
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
        # Of a member of a pulled bundle, the name that it has there.
        name=name or version.name.rpartition(MEMBER_MARK)[2],
        adapter=str(version.source),
        config_path=config_path,
        weights_path=weights_path,
        origin=known_origin(version),
        license=version.license,
        # What this catalog calls the base, whichever way the adapter spells it.
        base=version.base_model or version.base,
        spelled_base=version.base,
    )


def known_origin(version: AdapterVersion) -> Origin:
    """Return where this catalog had an adapter from: if it came out of a bundle, that bundle.

    Where the bundle says that it came from is the bundle's claim, which a new one must not repeat as a fact.
    """
    if version.claimed_by is None:
        return version.origin
    commit = version.claimed_by.partition("@")[2]
    return Origin(kind="hub", location=f"hf://{version.claimed_by}", commit=commit or None)


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


def stored_sources(workspace: Workspace, manifest: Manifest) -> dict[str, MemberFiles]:
    """Return the own files of those members of a bundle that the catalog has, by member name.

    Files that came out of a bundle are marked as such, unless the same were also had from elsewhere. What is
    in the store alone may be another catalog's, and come from anywhere.
    """
    found, store = {}, workspace.store
    for member in manifest.members:
        claims = workspace.catalog.find_claims(member.weights_sha256, member.config_sha256)
        config_path = store.find(member.config_sha256) if claims else None
        weights_path = store.find(member.weights_sha256) if config_path else None
        if config_path and weights_path:
            came_from = None if None in claims else f"the bundle `{claims[0]}`"
            found[member.name] = MemberFiles(config_path, weights_path, came_from)
    return found


def _path_of(store: Store, version: AdapterVersion, name: str) -> Path:
    return store.path_of(version.file(name).sha256)
