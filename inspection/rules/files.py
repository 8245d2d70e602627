"""Rules about the files of an adapter: which there are, and what kind of thing each is."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import escape, quote_name, quote_names
from ..config_file import MAX_CONFIG_BYTES, ConfigFile
from ..folder import INDEX_FILE, PICKLED_WEIGHTS, Folder, Kind
from ..safetensors_file import LFS_START
from .header import looks_like_html
from .rule import CONFIG_FILE, WEIGHTS_FILE, Observation, Observations, rule

_BESIDE_SUFFIXES = frozenset({".py", ".sh", ".so", ".zip", ".tar", ".gz", ".7z", ".exe", ".ipynb"})
_SAVE_AGAIN = "save the adapter with `save_pretrained(..., safe_serialization=True)`"


@rule(
    "MR001",
    Folder,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="without it rank, alpha and base are unknown",
    remedy="point at the folder that `save_pretrained` wrote",
)
def config_is_missing(folder: Folder) -> Observations:
    """There is no adapter config."""
    if CONFIG_FILE in folder.entries:
        return
    if folder.adapters:
        yield Observation(
            f"no config here, but in the subfolders {quote_names(list(folder.adapters))}",
            quote_name(CONFIG_FILE),
            remedy=f"point at one of them, such as the subfolder {quote_name(folder.adapters[0])}",
        )
    else:
        yield Observation("no config", quote_name(CONFIG_FILE))


@rule(
    "MR002",
    Folder,
    Effect.BROKEN,
    why="loaders read regular files only, and a pipe or a device may never end",
    remedy="put the file itself in its place",
)
def file_is_no_file(folder: Folder) -> Observations:
    """Config or weights are not a regular file."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        kind = folder.entries.get(name, Kind.FILE)
        if kind is not Kind.FILE:
            yield Observation(f"a {kind}", "a regular file", file=name)


@rule(
    "MR003",
    Folder,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="there is nothing to load; loaders ask the Hub instead, with a misleading message",
    remedy="add the weights, or point at the folder that holds them",
)
def weights_are_missing(folder: Folder) -> Observations:
    """There are no weights."""
    if _has_any_weights(folder) or (CONFIG_FILE not in folder.entries and folder.adapters):
        return
    others = [name for name in folder.entries if name.endswith(".safetensors")]
    found = f"no weights, but {quote_names(others)}" if others else "no weights"
    yield Observation(found, quote_name(WEIGHTS_FILE))


@rule(
    "MR004",
    Folder,
    Effect.BROKEN,
    why="unpickling runs whatever code the file carries; it is never done here",
    remedy="load the adapter where you trust it, then " + _SAVE_AGAIN,
)
def weights_are_pickled(folder: Folder) -> Observations:
    """The weights are there as a pickle only."""
    pickles = [name for name in PICKLED_WEIGHTS if name in folder.entries]
    if pickles and WEIGHTS_FILE not in folder.entries and INDEX_FILE not in folder.entries:
        pointer = ", and of that the git-lfs pointer only" if pickles[0] in folder.pointers else ""
        yield Observation(f"a pickle{pointer}", quote_name(WEIGHTS_FILE), file=pickles[0])


@rule(
    "MR005",
    Folder,
    Effect.BROKEN,
    file=INDEX_FILE,
    why="PEFT reads one file of weights and finds none",
    remedy="load all shards with safetensors and save them as one `adapter_model.safetensors`",
)
def weights_are_sharded(folder: Folder) -> Observations:
    """The weights are spread over several files."""
    if INDEX_FILE in folder.entries and WEIGHTS_FILE not in folder.entries:
        yield Observation(f"an index of {len(folder.shards)} files", quote_name(WEIGHTS_FILE))


@rule(
    "MR006",
    Folder,
    Effect.BROKEN,
    file=INDEX_FILE,
    why="a loader that follows it opens files that have nothing to do with the adapter",
    remedy="write plain file names of this folder into the index",
)
def index_leaves_folder(folder: Folder) -> Observations:
    """The index of a sharded file points outside the folder."""
    for shard in folder.shards:
        parts = PurePosixPath(shard.replace("\\", "/"))
        if parts.is_absolute() or len(parts.parts) != 1 or ".." in parts.parts or ":" in shard:
            yield Observation(quote_name(shard), "the name of a file in this folder", field="weight_map")


@rule(
    "MR007",
    Folder,
    Severity.NOTE,
    why="loaders choose one silently, and not all choose the same",
    remedy="remove the pickle",
)
def weights_are_there_twice(folder: Folder) -> Observations:
    """The weights are there as a pickle too."""
    pickles = [name for name in PICKLED_WEIGHTS if name in folder.entries]
    if pickles and WEIGHTS_FILE in folder.entries:
        yield Observation(f"{quote_names(pickles)} beside the safetensors file", "one file", file=pickles[0])


@rule(
    "MR008",
    Folder,
    Severity.NOTE,
    why="nothing of it is ever run, unpacked, fetched or followed here",
    remedy="nothing needs doing; remove it if it does not belong to the adapter",
)
def things_lie_beside(folder: Folder) -> Observations:
    """Code, archives or links lie beside the adapter."""
    beside = [
        name
        for name, kind in folder.entries.items()
        if name not in (CONFIG_FILE, WEIGHTS_FILE)
        and (kind in (Kind.LINK, Kind.OTHER) or Path(name).suffix.lower() in _BESIDE_SUFFIXES)
    ]
    if beside:
        yield Observation(quote_names(beside), "config, weights and card")


@rule(
    "MR009",
    Folder,
    Severity.NOTE,
    why="only the adapter in the folder itself is looked at",
    remedy="inspect the others by their own paths",
)
def other_adapters_lie_below(folder: Folder) -> Observations:
    """Subfolders hold adapters of their own."""
    if CONFIG_FILE in folder.entries and folder.adapters:
        yield Observation(quote_names(list(folder.adapters)), "one adapter")


@rule(
    "MR011",
    ConfigFile,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="the config itself is not here; JSON parsers answer with an error about the first character",
    remedy="run `git lfs pull` in the clone, or download the file again from the Hub",
)
def config_is_stand_in(config: ConfigFile) -> Observations:
    """A git-lfs pointer or a web page is in place of the config."""
    if config.data.startswith(LFS_START):
        yield Observation("a git-lfs pointer", "a JSON object")
    elif looks_like_html(config.data[:512]):
        yield Observation("an HTML page", "a JSON object")


@rule(
    "MR012",
    ConfigFile,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="no adapter needs such a config; parsing it would only cost time and memory",
    remedy="restore the config that `save_pretrained` wrote",
)
def config_is_too_large(config: ConfigFile) -> Observations:
    """The config is too large to be one."""
    if config.is_too_large:
        yield Observation(f"more than {MAX_CONFIG_BYTES} bytes", f"at most {MAX_CONFIG_BYTES}")


@rule(
    "MR013",
    ConfigFile,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="loaders stop with a raw traceback, or silently take the last of two values",
    remedy="restore the config that `save_pretrained` wrote",
)
def config_is_no_json(config: ConfigFile) -> Observations:
    """The config is not JSON."""
    stands_in = config.data.startswith(LFS_START) or looks_like_html(config.data[:512])
    if config.problem is not None and not config.is_too_large and not stands_in:
        yield Observation(escape(config.problem, limit=300), "JSON in UTF-8, each key once")


@rule(
    "MR014",
    ConfigFile,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="a config is an object with named fields",
    remedy="restore the config that `save_pretrained` wrote",
)
def config_is_no_object(config: ConfigFile) -> Observations:
    """The config is JSON, but not an object."""
    if config.problem is None and not isinstance(config.value, dict):
        yield Observation(f"a JSON {type(config.value).__name__}", "a JSON object")


@rule(
    "MR015",
    ConfigFile,
    Severity.NOTE,
    file=CONFIG_FILE,
    why="PEFT cannot read a config that begins with one; the digest is over the bytes as they are",
    remedy="nothing needs doing here; save the file as UTF-8 without a mark for other loaders",
)
def config_has_byte_order_mark(config: ConfigFile) -> Observations:
    """The config begins with a byte order mark."""
    if config.data.startswith(b"\xef\xbb\xbf"):
        yield Observation("a byte order mark", "UTF-8 without one")


def _has_any_weights(folder: Folder) -> bool:
    return any(name in folder.entries for name in (WEIGHTS_FILE, INDEX_FILE, *PICKLED_WEIGHTS))
