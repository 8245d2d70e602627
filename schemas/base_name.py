"""The name of a base model: what counts as one base, and which name it has today.

An adapter's config names its base as the trainer wrote it: a Hub id in any case, an id that the Hub has since
renamed, an address copied from a browser, or a snapshot in some machine's Hub cache. All of these are one
base here. A quantised copy is another base: it has the same shapes and other weights. Nothing is opened or
looked up; what a user states beyond this is the catalog's to remember.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAX_CHARACTERS = 4096
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"{_PART}(/{_PART})?")
_LOCAL_START = re.compile(r"[./~\\]|[A-Za-z]:[\\/]|file:")
_ADDRESS = re.compile(
    rf"(hf://(models/)?|https?://(www\.)?(huggingface\.co|hf\.co|hf-mirror\.com)/(models/)?)"
    rf"(?P<id>{_PART}(/{_PART})?)(@[^/]*)?(/(tree|blob|resolve)/.*)?/?",
    re.IGNORECASE,
)
_CACHE = re.compile(
    rf"(.*[/\\])?models--(?P<id>{_PART}(--{_PART})?)([/\\]snapshots[/\\](?P<commit>[0-9a-f]{{40}}))?[/\\]?",
    re.DOTALL,
)
_QUANTISED = re.compile(
    r".*[-_.](bnb[-_.]?[48]bit|[48]bit|gptq|awq|gguf|exl2|int[48]|fp8|w4a16|quantized)([-_.].*)?",
    re.IGNORECASE,
)
# Models from before the Hub had organisations.
_PRESENT_NAMES = {
    "albert-base-v2": "albert/albert-base-v2",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
    "bert-base-multilingual-uncased": "google-bert/bert-base-multilingual-uncased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-large-cased": "google-bert/bert-large-cased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "camembert-base": "almanach/camembert-base",
    "distilbert-base-cased": "distilbert/distilbert-base-cased",
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "distilgpt2": "distilbert/distilgpt2",
    "distilroberta-base": "distilbert/distilroberta-base",
    "gpt2": "openai-community/gpt2",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-xl": "openai-community/gpt2-xl",
    "openai-gpt": "openai-community/openai-gpt",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "t5-11b": "google-t5/t5-11b",
    "t5-3b": "google-t5/t5-3b",
    "t5-base": "google-t5/t5-base",
    "t5-large": "google-t5/t5-large",
    "t5-small": "google-t5/t5-small",
    "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
    "xlm-roberta-large": "FacebookAI/xlm-roberta-large",
    "xlnet-base-cased": "xlnet/xlnet-base-cased",
    "xlnet-large-cased": "xlnet/xlnet-large-cased",
}
# Beginnings of names: an organisation that moved, and a family that lost a part of its name.
_PRESENT_STARTS = {"THUDM/": "zai-org/", "meta-llama/Meta-Llama-3.1-": "meta-llama/Llama-3.1-"}


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """A repository by a path in a Hub cache; ``commit`` is None for the repository's own folder."""

    name: str
    commit: str | None


def parse_cache_path(path: str) -> CachedRepository | None:
    """Return the repository that a path in a Hub cache belongs to; None for any other text.

    The path is that of the repository's folder or of a snapshot; a folder inside a snapshot is not the
    repository. The path proves nothing about what is there: such a folder is easily made by hand.
    """
    found = _CACHE.fullmatch(path[:_MAX_CHARACTERS])
    if found is None:
        return None
    name = found["id"].replace("--", "/")
    return CachedRepository(name, found["commit"]) if _HUB_ID.fullmatch(name) else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder in a Hub cache: the repository at a commit, its own folder there, and the path below it."""

    repository: str
    commit: str
    root: Path
    inside: str

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.commit}" + (f"/{self.inside}" if self.inside else "")


def find_snapshot(folder: Path) -> Snapshot | None:
    """Return the snapshot of a Hub cache that an absolute path is in; None for any other path."""
    for each in (folder, *folder.parents):
        cached = parse_cache_path(str(each))
        if cached is not None and cached.commit is not None:
            inside = folder.relative_to(each).as_posix()
            return Snapshot(cached.name, cached.commit, each.parent.parent, "" if inside == "." else inside)
    return None


def present_name(name: str) -> str:
    """Return the name that a base has on the Hub today, or ``name`` itself for a path."""
    written = _hub_id_in(name)
    if written is None:
        return name
    folded = written.casefold()
    if folded in _PRESENT_NAMES:
        return _PRESENT_NAMES[folded]
    for old, new in _PRESENT_STARTS.items():
        if folded.startswith(old.casefold()):
            return new + written[len(old) :]
    return written


def base_key(name: str) -> str:
    """Return a text that is equal for two names of one base; it is for comparing, not for showing."""
    return present_name(name).casefold()


def is_same_base(one: str, other: str) -> bool:
    """Return whether two names are of one base."""
    return base_key(one) == base_key(other)


def is_other_base(one: str | None, other: str | None) -> bool:
    """Return whether two names are known to be of different bases: a path or no name proves nothing."""
    if not one or not other or not is_hub_id(one) or not is_hub_id(other):
        return False
    return not is_same_base(one, other)


def names_of(name: str) -> tuple[str, ...]:
    """Return the name of today and the old names of a base, without regard to case."""
    key = base_key(name)
    present = present_name(name)
    old = [each for each, new in _PRESENT_NAMES.items() if new.casefold() == key]
    old += [
        each + present[len(new) :] for each, new in _PRESENT_STARTS.items() if key.startswith(new.casefold())
    ]
    return (present, *old)


def is_hub_id(name: str) -> bool:
    """Return whether a base's name, however it is written, is that of a repository on the Hub."""
    return _hub_id_in(name) is not None


def is_local_path(name: str) -> bool:
    """Return whether a base's name is a path on some machine, which means nothing on another one."""
    if not name.strip() or is_hub_id(name):
        return False
    return bool(_LOCAL_START.match(name)) or "\\" in name or "/" in name


def is_quantised_copy(name: str) -> bool:
    """Return whether a base's name is that of a quantised copy."""
    return not is_local_path(name) and _QUANTISED.fullmatch(present_name(name)[:512]) is not None


def group_by_base(named: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Return the adapters of each base, from pairs of an adapter and its base, by the base's present name.

    Adapters that name none are left out.
    """
    groups: dict[str, tuple[str, list[str]]] = {}
    for adapter, base in named:
        if base:
            groups.setdefault(base_key(base), (present_name(base), []))[1].append(adapter)
    return dict(groups.values())


def common_hub_name(names: Iterable[str | None]) -> str | None:
    """Return the base on the Hub that all names are of which are not paths; None for none or several."""
    hub_names = {base_key(name): present_name(name) for name in names if name and is_hub_id(name)}
    return next(iter(hub_names.values())) if len(hub_names) == 1 else None


def _hub_id_in(text: str) -> str | None:
    stripped = text[:_MAX_CHARACTERS].strip()
    if (cached := parse_cache_path(stripped)) is not None:
        return cached.name
    if (address := _ADDRESS.fullmatch(stripped)) is not None:
        return address["id"]
    return stripped if _HUB_ID.fullmatch(stripped) else None
