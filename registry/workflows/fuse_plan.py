"""The plan of a fuse: its members opened and the plan made of them. Nothing is written; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files.digests import hash_file
from ...fuser.fuse_member import Member, MemberFiles
from ...fuser.planning import choose_base, make_plan
from ...inspection.adapter import Inspection, inspect_files
from ...inspection.base_facts import BaseFacts
from ...inspection.comparison import compare_with_base, module_paths
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.digest import Digest
from ...schemas.errors import AdapterRefused, StoreDamaged, UsageError
from ...schemas.manifest import Manifest, Origin
from ...schemas.names import MEMBER_MARK, parse_catalog_source, parse_repository
from ...schemas.plan import FusePlan
from ...schemas.recipe import Recipe
from ...schemas.trained_on import TrainedOn
from ..catalog.records import AdapterVersion
from ..store import Store
from ..workspace import Workspace
from .base_facts import linear_modules, read_base_facts, read_cached_facts
from .base_place import BasePlace, place_base


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
    versions = tuple(find_adapter(workspace, entry.adapter) for entry in recipe.members)
    members = tuple(
        open_member(workspace.store, version, name=entry.name)
        for version, entry in zip(versions, recipe.members, strict=True)
    )
    return plan_members(members, recipe, place, versions=versions)


def find_adapter(workspace: Workspace, adapter: str) -> AdapterVersion:
    """Return the catalogued version that a member of a recipe names, by its name or by where it is from."""
    if "/" not in adapter:
        return workspace.catalog.find(parse_catalog_source(adapter))
    if adapter.startswith((".", "/", "~")):
        raise UsageError(
            f"`{adapter[:200]}` is a folder, expected a catalogued adapter such as `legal@2`",
            hint=f"add it first: `meteora-registry add {adapter[:200]}`",
        )
    return workspace.catalog.find_from_hub(parse_repository(adapter))


def pin_members(recipe: Recipe, versions: Sequence[AdapterVersion]) -> Recipe:
    """Return a recipe that names the very versions that were found for its members."""
    members = [
        member.model_copy(update={"adapter": _pinned(member.adapter, version)})
        for member, version in zip(recipe.members, versions, strict=True)
    ]
    return recipe.model_copy(update={"members": tuple(members)})


def _pinned(adapter: str, version: AdapterVersion) -> str:
    # A member that is named by where it is from stays so: its name may be another in the next catalog.
    return version.origin.location.removeprefix("hf://") if "/" in adapter else str(version.source)


def plan_members(
    members: Sequence[Member], recipe: Recipe, place: BasePlace, *, versions: Sequence[AdapterVersion] = ()
) -> Prepared:
    """Make the plan for opened members, on the base in its ``place``.

    ``versions`` are the members' in the catalog, where they have any.

    Raises:
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    named = recipe.model_copy(update={"base": place.name_for(member.base for member in members)})
    folder, facts = _look_at_base(named, place, members)
    if facts is None:
        return Prepared(tuple(versions), tuple(members), make_plan(members, named), {}, None)
    judged = _judge(members, facts, folder)
    plan = make_plan(judged, named, base_modules=linear_modules(facts))
    return Prepared(tuple(versions), tuple(judged), plan, facts.present, folder)


def _judge(members: Sequence[Member], facts: BaseFacts, folder: Path | None) -> list[Member]:
    """Judge each member by the rules of ``validate --base``, so that both refuse the same adapters.

    Each on the class that it was trained on itself, where that is not the class of all.
    """
    of_kind = {TrainedOn.common(member.trained_on for member in members): facts}
    judged = []
    for member in members:
        if member.trained_on not in of_kind and folder is not None:
            own = read_base_facts(folder, facts.name, module_paths(member), member.trained_on)
            of_kind[member.trained_on] = own
        found = of_kind.get(member.trained_on, facts)
        judged.append(dataclasses.replace(member, findings=compare_with_base(member, member.findings, found)))
    return judged


def _look_at_base(
    recipe: Recipe, place: BasePlace, members: Sequence[Member]
) -> tuple[Path | None, BaseFacts | None]:
    """Return where the base's config is, and its facts; None for both where it is not at hand."""
    paths = {path for member in members for path in module_paths(member)}
    trained_on = TrainedOn.common(member.trained_on for member in members)
    name, _ = choose_base(members, recipe)
    if place.folder is not None:
        return place.folder, read_base_facts(place.folder, name or place.folder.name, paths, trained_on)
    return read_cached_facts(name, recipe.base_revision, paths, trained_on)


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

    The origin that the bundle names is the bundle's claim, which a new one must not repeat as a fact.
    """
    return version.origin if version.claimed_by is None else _bundle_as_origin(version.claimed_by)


def _bundle_as_origin(bundle: str) -> Origin:
    commit = bundle.partition("@")[2]
    return Origin(kind="hub", location=f"hf://{bundle}", commit=commit or None)


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

    Files that came out of a bundle are marked as such, unless the same were also had from elsewhere, or the
    manifest names that bundle as their origin. What is in the store alone may be another catalog's, and come
    from anywhere.
    """
    found, store = {}, workspace.store
    for member in manifest.members:
        claims = workspace.catalog.find_claims(member.weights_sha256, member.config_sha256)
        config_path = store.find(member.config_sha256) if claims else None
        weights_path = store.find(member.weights_sha256) if config_path else None
        if config_path and weights_path:
            known = any(each is None or member.origin == _bundle_as_origin(each) for each in claims)
            came_from = None if known else f"the bundle `{claims[0]}`"
            found[member.name] = MemberFiles(config_path, weights_path, came_from)
    return found


def _path_of(store: Store, version: AdapterVersion, name: str) -> Path:
    return store.path_of(version.file(name).sha256)
