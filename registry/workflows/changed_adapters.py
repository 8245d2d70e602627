"""``validate --since``: the adapters whose files changed since a branch was left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from ...files.git import Repository
from ...files.reading import own_place, real_path
from ...schemas.errors import UsageError
from ...schemas.quotation import escape
from ...schemas.report import Selection
from .validation import FILES_OF_ADAPTERS, find_adapters, is_adapter

# As many as Linux follows.
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Changes:
    """The files below ``root`` that differ from a commit, and every folder that has one of them."""

    root: Path
    commit: str
    files: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def since(cls, repository: Repository, ref: str, *, with_work_tree: bool = True) -> Self:
        """Return what changed since the present branch left another.

        Raises:
            UsageError: the ref names no commit, or the two have no common one.
        """
        commit = repository.merge_base(ref)
        # A folder that is a repository of its own is listed with a slash.
        files = frozenset(
            name.rstrip("/") for name in repository.changes_since(commit, with_work_tree=with_work_tree)
        )
        folders = frozenset(str(parent) for name in files for parent in PurePosixPath(name).parents)
        return cls(real_path(repository.root), commit, files, folders)

    def has(self, path: Path) -> bool:
        """Return whether a file, or anything in a folder, changed; a link counts as what it leads to.

        A folder changes, too, with the files by which git makes its contents from what is committed.
        """
        places = _places(path)
        if any(self._has(place) or self._is_made_anew(place) for place in places):
            return True
        return any(self._has_file(link) for link in _links_to(path))

    def _has_file(self, place: Path) -> bool:
        return place.is_relative_to(self.root) and place.relative_to(self.root).as_posix() in self.files

    def _is_made_anew(self, place: Path) -> bool:
        if not place.is_dir() or not place.is_relative_to(self.root):
            return False
        folder = PurePosixPath(place.relative_to(self.root).as_posix())
        above = (each / ".gitattributes" for each in (folder, *folder.parents))
        return ".lfsconfig" in self.files or any(str(each) in self.files for each in above)

    def _has(self, place: Path) -> bool:
        try:
            name = PurePosixPath(place.relative_to(self.root).as_posix())
        except ValueError:
            return False
        # A changed parent is a link, or a repository of its own at another commit.
        return str(name) in self.folders or any(str(each) in self.files for each in (name, *name.parents))

    def adapters(self, paths: Iterable[Path]) -> list[Path]:
        """Return the adapters below ``paths`` that changes alone tell of, as below a path.

        They have a changed config or changed weights, or a changed link leads to them.
        """
        folders = [folder for folder in self._folders_of_adapters() if is_adapter(folder)]
        folders += self._linked_adapters()
        places = [(path, real_path(path)) for path in paths]
        found = {
            path / folder.relative_to(place)
            for folder in folders
            for path, place in places
            if folder.is_relative_to(place)
        }
        return sorted(found)

    def removed(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """Return the folders below ``paths`` that had an adapter and have none any more."""
        asked = [real_path(path) for path in paths]
        gone = [
            folder
            for folder in self._folders_of_adapters()
            if not is_adapter(folder) and any(folder.is_relative_to(path) for path in asked)
        ]
        return tuple(sorted(folder.relative_to(self.root).as_posix() for folder in gone))

    def _linked_adapters(self) -> list[Path]:
        """Return the adapters that changed links of folders lead to, within the repository."""
        changed = (self.root / name for name in sorted(self.files, reverse=True))
        leads_to = {place: real_path(place) for place in changed if place.is_symlink() and place.is_dir()}
        within = {place: target for place, target in leads_to.items() if target.is_relative_to(self.root)}
        # A folder of adapters is looked through once, however many links lead to it.
        trees = {target: place for place, target in within.items() if not place.is_relative_to(target)}
        return find_present([*filter(is_adapter, within), *trees.values()])

    def _folders_of_adapters(self) -> set[Path]:
        names = map(PurePosixPath, self.files)
        return {self.root / name.parent for name in names if name.name in FILES_OF_ADAPTERS}


def find_present(paths: Sequence[Path]) -> list[Path]:
    """Return the adapters at these paths, none for a folder without any.

    Raises:
        SourceUnreadable: a path does not exist.
    """
    return [each for each in find_adapters(paths) if is_adapter(each) or each.is_file()]


def find_with_changed(paths: Sequence[Path], changes: Changes) -> tuple[list[Path], list[Path]]:
    """Return the adapters at these paths, and those that are found by their changed files alone.

    The latter are in a hidden folder, within another adapter, too deep, or behind a link.

    Raises:
        SourceUnreadable: a path does not exist, and had no changes.
    """
    present = [path for path in paths if path.exists() or not changes.has(path)]
    adapters = find_present(present)
    known = set(map(own_place, adapters))
    return adapters, [each for each in changes.adapters(present) if own_place(each) not in known]


def refuse_left_out(paths: Iterable[Path], changes: Changes, checkout: Repository) -> None:
    """Refuse changes of adapters that a checkout has no files of.

    Raises:
        UsageError: a changed submodule was not checked out, or a sparse checkout lacks a changed adapter.
    """
    asked = [real_path(path) for path in paths]
    for name in checkout.left_out():
        place = changes.root / name
        is_meant = place.name in FILES_OF_ADAPTERS or place.is_dir()
        if name in changes.files and is_meant and any(place.is_relative_to(path) for path in asked):
            raise UsageError(
                f"`{escape(name)}` changed and is not in this checkout, so that it cannot be looked at",
                hint="check out submodules and all folders of the paths, or name other paths",
            )


def select_changed(
    paths: Sequence[Path], ref: str, *, settings: Iterable[Path] = (), checkout: Repository | None = None
) -> tuple[list[Path], Selection]:
    """Return the adapters at these paths that changed since a branch was left, and what was left out.

    The repository is the ``checkout``, whose files are those of its commit, or else the one that the first
    path is in. All adapters are returned if one of the ``settings`` changed: a policy, a baseline or a lock,
    by which even an unchanged adapter may have another answer.

    Raises:
        UsageError: the ref names no commit, a path is outside the repository, or the checkout lacks a change.
        SourceUnreadable: a path does not exist, and had no changes.
    """
    nearest = next(each for each in (paths[0], *paths[0].absolute().parents) if each.is_dir())
    changes = Changes.since(checkout or Repository.find(nearest), ref, with_work_tree=checkout is None)
    for path in paths:
        if not real_path(path).is_relative_to(changes.root):
            raise UsageError(
                f"`{path}` is not in the repository at `{changes.root}`, whose changes are asked for"
            )
    if checkout is not None:
        refuse_left_out(paths, changes, checkout)
    removed = changes.removed(paths)
    adapters, by_change = find_with_changed(paths, changes)
    changed_setting = next((path for path in settings if changes.has(path)), None)
    if changed_setting is not None:
        reason = f"`{changed_setting}` changed"
        everything = Selection(commit=changes.commit, unchanged=0, removed=removed, reason=reason)
        return adapters + by_change, everything
    changed = [each for each in adapters if changes.has(each)]
    unchanged = len(adapters) - len(changed)
    return changed + by_change, Selection(commit=changes.commit, unchanged=unchanged, removed=removed)


def _links_to(path: Path) -> Iterator[Path]:
    """Yield the places of the links that a path is reached by, those that other links lead to as well."""
    place = path.absolute()
    for _ in range(_MAX_LINKS):
        above = (each for each in reversed((place, *place.parents)) if each.is_symlink())
        link = next(above, None)
        if link is None:
            return
        yield own_place(link)
        place = Path(os.path.normpath(link.parent / link.readlink())) / place.relative_to(link)


def _places(path: Path) -> set[Path]:
    """Return a path's own place and, of a folder's links, the places that they lead to."""
    names = (path / name for name in FILES_OF_ADAPTERS)
    return {own_place(path), real_path(path), *(real_path(each) for each in names if each.is_symlink())}
