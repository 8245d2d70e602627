"""Names of adapters, bundles, versions, files and sources, and how a SOURCE on the command line is read.

A name that comes from outside, in a document, a database or an answer of the Hub, has one of the types
here. A folder is joined with one by ``below``, which checks it again, so that no name leads out of it.

A SOURCE is a folder if it starts with ``.`` or ``/`` or exists; ``hf://...``, ``org/name`` or an address of
the Hub is a repository there; otherwise it names something in the catalog: ``name``, ``name@3`` or
``name@alias``. The members of a pulled bundle are ``bundle:member``, so that none of them takes a name that a
person may choose.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, StringConstraints

from .base_name import find_snapshot
from .errors import InvalidDocument, UsageError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

MAX_NAME_CHARACTERS = 96
# In no name, no path of a bundle and no repository.
MEMBER_MARK = ":"
# Names the plain base where a member is expected.
PLAIN_BASE = "base"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,95}$"
_NAME = re.compile(NAME_PATTERN)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# A revision is one part, but for those that the Hub keeps of pull requests and conversions. A slash in any
# other is written `%2F`, as in the Hub's own addresses.
_HUB_SOURCE = re.compile(
    r"(?P<repository>[^/@]*/[^/@]*)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<folder>.*))?"
)
_ADDRESS = re.compile(
    r"(?P<repository>[^/?#]+/[^/?#]+)"
    r"(/(?P<view>tree|blob|resolve|raw|commit)/(?P<revision>refs/(pr|convert)/[^/?#]+|[^/?#]+)(/(?P<path>[^?#]*))?)?"
    r"/?([?#].*)?"
)
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
# Names that tools give to folders, which say nothing of what is inside.
_SAYS_NOTHING = re.compile(
    r"(checkpoint[-_]?\d*|checkpoints|(final|last|best)([-_](adapter|checkpoint|lora|model))?|(lora[-_])?adapters?"
    r"|(adapter[-_])?(model|weights)|lora|peft|outputs?|results?|default)",
    re.IGNORECASE,
)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MAX_FILE_NAME_CHARACTERS = 255
_FILE_NAME = re.compile(_PART)
# A file of a bundle, by its path inside the folder: no absolute path, no `..`, no hidden part.
RelativePath = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART})*$", max_length=512)]


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hub; ``revision`` is a branch, a tag or a commit."""

    repository: str
    revision: str | None = None
    subfolder: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogSource:
    """Something catalogued: its latest version, one version, or what an alias points at."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        selector = self.version if self.version is not None else self.alias
        return self.name if selector is None else f"{self.name}@{selector}"


Source = FolderSource | HubSource | CatalogSource


def check_name(text: str, *, what: str = "name") -> str:
    """Return ``text`` itself, if it may name an adapter, a bundle, a tag or an alias.

    Raises:
        UsageError: any other text.
    """
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"`{text[:120]}` is not a valid {what}: expected 1 to 96 of `a-z 0-9 . _ -`, "
            "the first a letter or a digit",
            hint=f"such as `{suggest_name(text)}`",
        )
    return text


def member_entry(bundle: str, member: str) -> str:
    """Return what the catalog calls a member of a pulled bundle.

    Raises:
        UsageError: the two names together are too long for the catalog.
    """
    name = f"{bundle}{MEMBER_MARK}{member}"
    if len(name) > MAX_NAME_CHARACTERS:
        raise UsageError(
            f"`{name}` has {len(name)} characters, expected at most {MAX_NAME_CHARACTERS}",
            hint="choose a shorter name for the bundle",
        )
    return name


def check_entry(text: str) -> str:
    """Return ``text`` itself, if it may be an entry of the catalog: a name, or ``bundle:member``.

    Raises:
        UsageError: any other text.
    """
    bundle, mark, member = text.partition(MEMBER_MARK)
    # A URL is refused as a whole: a part of it is not known for one, and could show its password.
    if not mark or member.startswith("//"):
        return check_name(text)
    return member_entry(check_name(bundle, what="bundle"), check_name(member, what="member name"))


def is_repository(text: str) -> bool:
    """Return whether ``text`` may name a repository on the Hub: ``org/name``."""
    return _REPOSITORY.fullmatch(text) is not None


def check_file_name(text: str) -> str:
    """Return ``text``, if it may name a file of an adapter: one part, neither hidden nor a path.

    Raises:
        InvalidDocument: any other text.
    """
    if len(text) > MAX_FILE_NAME_CHARACTERS or not _FILE_NAME.fullmatch(text):
        raise InvalidDocument(
            f"{text[:120]!r} cannot name a file of an adapter, expected 1 to {MAX_FILE_NAME_CHARACTERS} of "
            "`A-Z a-z 0-9 . _ -`, the first a letter or a digit"
        )
    return text


def check_folder_path(text: str) -> str:
    """Return ``text``, if it may be where a bundle was written: an absolute path without ``..``.

    Raises:
        InvalidDocument: any other text.
    """
    if not text.startswith("/") or ".." in text.split("/") or "\0" in text:
        raise InvalidDocument(f"{text[:200]!r} is not an absolute path without `..`")
    return text


def check_inside(path: str) -> str:
    """Return ``path``, if joined with a folder it leads to something below that folder.

    Raises:
        InvalidDocument: it is empty or absolute, or has a part that is empty, ``.`` or ``..``.
    """
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidDocument(f"{path[:200]!r} is not a path inside a folder")
    return path


def _check_local(path: str) -> str:
    # pydantic reports a ValueError of its own with the place in the document.
    return path if path == "." else check_inside(path)


# Any file or folder below a folder, or ``.`` for that folder itself.
LocalPath = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_check_local)]


def below(folder: Path, path: str) -> Path:
    """Return the place of ``path`` below ``folder``; links that are there already are not looked at.

    Raises:
        InvalidDocument: it leads out of the folder, or is the folder itself.
    """
    return folder / check_inside(path)


def check_repository(text: str) -> str:
    """Return ``text`` itself, if it may name a repository on the Hub: ``org/name``.

    Raises:
        UsageError: any other text.
    """
    if not is_repository(text):
        raise UsageError(f"`{text[:200]}` is not a Hub repository, expected `org/name`")
    return text


def check_alias(text: str) -> str:
    """Return ``text`` itself, if it may be an alias: a name, but not a number, which would name a version.

    Raises:
        UsageError: any other text.
    """
    if text.isdigit():
        raise UsageError(f"the alias `{text[:120]}` is a number, which names a version", hint="use a word")
    return check_name(text, what="alias")


def suggest_name(text: str) -> str:
    """Return the nearest valid name to any text: lower case, other characters replaced by ``-``."""
    cleaned = re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:96].strip("-._")
    return cleaned or "adapter"


def name_of_folder(folder: Path) -> str:
    """Return what an adapter in a folder is called by default.

    It is the name of the nearest folder around it that is not one that tools give, such as ``checkpoint-500``
    or ``adapter``; of a snapshot in a Hub cache, the name of its repository.
    """
    place = Path(os.path.realpath(folder))
    if (snapshot := find_snapshot(place)) is not None:
        parts = (snapshot.repository.rpartition("/")[2], snapshot.inside.replace("/", "-"))
        return suggest_name("-".join(parts))
    named = (each.name for each in (place, *place.parents) if each.name)
    return suggest_name(next((name for name in named if not _SAYS_NOTHING.fullmatch(name)), place.name))


def folder_of_adapter(path: Path) -> Path:
    """Return the folder of an adapter that is named by its weights, or by a config beside its weights."""
    is_weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth")
    is_config = path.name == ADAPTER_CONFIG and (path.parent / ADAPTER_WEIGHTS).is_file()
    return path.parent if (is_weights or is_config) and path.is_file() else path


def parse_catalog_source(text: str) -> CatalogSource:
    """Return ``name``, ``name@3`` or ``name@alias``; the name may be ``bundle:member``.

    Raises:
        UsageError: the name or the selector is malformed.
    """
    name, at, selector = text.partition("@")
    check_entry(name)
    if not at:
        return CatalogSource(name)
    if _VERSION.fullmatch(selector):
        return CatalogSource(name, version=int(selector))
    return CatalogSource(name, alias=check_alias(selector))


def parse_source(text: str) -> Source:
    """Return the folder, repository or catalogued name that a SOURCE on the command line means.

    Raises:
        UsageError: it is none of folder, Hub repository and catalogued name.
    """
    # A member of a bundle called `hf` has no slash, and a repository has one.
    if text.startswith("hf:") and "/" in text:
        return parse_repository(text)
    if (address := _parse_address(text)) is not None:
        return address
    if text.startswith((".", "/")) or _exists(text):
        return FolderSource(folder_of_adapter(Path(text)))
    if "/" in text:
        return _parse_hub(text)
    return parse_catalog_source(text)


def parse_path_or_source(source: str | os.PathLike[str] | Source) -> Source:
    """Return what a SOURCE means; a path always means a folder, and what is parsed already stays as it is.

    Raises:
        UsageError: as ``parse_source``.
    """
    if isinstance(source, str):
        return parse_source(source)
    return source if isinstance(source, Source) else FolderSource(folder_of_adapter(Path(source)))


def parse_repository(text: str) -> HubSource:
    """Return the repository on the Hub that a text names, with or without ``hf://``, or by its address.

    Raises:
        UsageError: it names none.
    """
    return _parse_address(text) or _parse_hub(text.removeprefix("hf:").removeprefix("//"))


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except OSError:
        # A name too long for the file system is not a folder.
        return False


def _parse_hub(text: str) -> HubSource:
    found = _HUB_SOURCE.fullmatch(text)
    if found is None or not _REPOSITORY.fullmatch(found["repository"]):
        raise UsageError(
            f"`{text[:200]}` is neither an existing folder nor a Hub repository such as `org/name`",
            hint="write a folder as `./folder`",
        )
    revision = found["revision"] and unquote(found["revision"])
    return HubSource(found["repository"], revision, found["folder"] or None)


def _parse_address(text: str) -> HubSource | None:
    """Return the repository that an address from a browser shows; None for any other text."""
    if not text.startswith(("http://", "https://", *(f"{host}/" for host in _HUB_HOSTS))):
        return None
    mirror = (os.environ.get("HF_ENDPOINT") or "").rstrip("/")
    if mirror and text.startswith(f"{mirror}/"):
        place = text.removeprefix(f"{mirror}/")
    else:
        host, _, place = text.removeprefix("https://").removeprefix("http://").partition("/")
        if host not in _HUB_HOSTS:
            raise UsageError(
                f"`{text[:200]}` is not an address of the Hub", hint="name a repository such as `org/name`"
            )
    found = _ADDRESS.fullmatch(place.removeprefix("models/"))
    if found is None or not is_repository(found["repository"]):
        raise UsageError(
            f"`{text[:200]}` is not the address of a model repository",
            hint="such as `https://huggingface.co/org/name/tree/main`",
        )
    path = unquote(found["path"] or "").strip("/")
    # A page of a file, and not of a folder, shows a file of the adapter.
    folder = path if found["view"] == "tree" else path.rpartition("/")[0]
    return HubSource(found["repository"], found["revision"] and unquote(found["revision"]), folder or None)
