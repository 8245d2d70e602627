"""Files at a URL, through fsspec alone: put whole, read, listed, deleted; every fault as one of our errors.

Object stores show an object when all of it has arrived. Anything else gets the bytes under a temporary
name, which is then renamed. Credentials are the libraries' own affair: they find them in their
environment, a URL that holds some is refused, and no message repeats what could be one.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Any

from ...files.digests import CHUNK_BYTES
from ...files.scratch import incoming_name
from ...files.writing import flush_folder, flush_open
from ...schemas.errors import MeteoraError, MissingDependency, StoreUnavailable, UsageError
from ..secrets import hide_secrets, mask_url, remember_url
from .blob import READ_ONLY

INCOMING = "incoming"
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"})
_EXTRAS = frozenset({"s3", "gs"})
_READ_AHEAD_BYTES = 8 << 20
_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<rest>.+)", re.DOTALL)
_PASSWORD = re.compile(r"[^/@]*:.*@", re.DOTALL)
_EXAMPLE = "such as `s3://bucket/adapters` or `file:///shared/adapters`"
_MAX_REASON = 300


def parse_store_url(text: str) -> str:
    """Return a store's URL in one spelling; the path of a folder means the folder.

    Raises:
        UsageError: not a URL, one of several parts, or one that holds a password.
    """
    remember_url(text)
    if text.startswith(("/", "~")):
        return _folder_url(text)
    found = _URL.fullmatch(text)
    if found is None:
        raise UsageError(f"the store `{mask_url(text)}` is not a URL", hint=_EXAMPLE)
    if _PASSWORD.match(found["rest"]):
        raise UsageError(
            f"the store's `{found['protocol']}` URL holds a password",
            hint="leave it out; the library finds credentials in its own environment",
        )
    if "::" in text or "?" in text or "#" in text:
        raise UsageError(f"the store `{mask_url(text)}` is more than a place", hint=_EXAMPLE)
    return text.rstrip("/")


def _folder_url(text: str) -> str:
    try:
        return Path(text).expanduser().absolute().as_uri()
    # Two errors of one cause: no home is known for `~`, or for the user behind it.
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"the store `{text}` cannot be found: there is no home of that name",
            hint="name a folder by its absolute path, such as `/shared/adapters`",
        ) from error


class Remote:
    """Files below a URL, by names such as ``sha256/ab/cdef``.

    Nothing is opened before the first use. Several threads may use it at once.
    """

    def __init__(self, url: str) -> None:
        self.url = parse_store_url(url)
        self._protocol = self.url.partition("://")[0]

    def __str__(self) -> str:
        return mask_url(self.url)

    def url_of(self, name: str) -> str:
        """Return the address of a file, for messages."""
        return f"{self}/{name}"

    def require_there(self) -> None:
        """Pass if the store can be listed, however little is in it.

        Elsewhere an empty listing and a bucket that does not exist are not told apart.

        Raises:
            StoreUnavailable: its folder or bucket does not exist, cannot be reached, or may not be listed.
            UsageError, MissingDependency: nothing here can open such a URL.
        """
        with self._faults("list", ""):
            try:
                self._files.ls(self._path(""))
            except FileNotFoundError:
                if self._protocol in _OBJECT_STORES:
                    self._require_bucket()

    def size_of(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it is not there."""
        with self._faults("look at", name):
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def age_seconds(self, name: str) -> float:
        """Return how long ago a file was written, by the store's clock and ours; 0 if it is not there."""
        with self._faults("look at", name):
            try:
                modified = self._files.modified(self._path(name))
            except FileNotFoundError:
                return 0.0
        zoned = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
        return time.time() - float(zoned.timestamp())

    def put(self, source: Path, name: str) -> None:
        """Put a file there, over any that is there; it is seen whole or not at all."""
        with self._faults("write", name):
            if self._protocol in _OBJECT_STORES:
                self._files.put_file(str(source), self._path(name))
                return
            temporary = self._path(f"{INCOMING}/{incoming_name()}")
            for path in (temporary, self._path(name)):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                self._files.put_file(str(source), temporary)
                self._flush(Path(temporary))
                self._files.mv(temporary, self._path(name))
            except BaseException:
                with suppress(Exception):
                    self._files.rm_file(temporary)
                raise
            self._flush(Path(self._path(name)).parent)

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file, 1 MiB at a time."""
        with (
            self._faults("read", name),
            self._files.open(
                self._path(name), "rb", block_size=_READ_AHEAD_BYTES, cache_type="readahead"
            ) as file,
        ):
            while chunk := file.read(CHUNK_BYTES):
                yield bytes(chunk)

    def list_names(self, folder: str) -> list[tuple[str, int]]:
        """Return the last parts of the names below a folder, sorted, with sizes; a folder has size 0."""
        with self._faults("list", folder):
            try:
                entries = self._files.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
            return sorted(
                (str(entry["name"]).rstrip("/").rpartition("/")[2], int(entry["size"] or 0))
                for entry in entries
            )

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._faults("delete", name), suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def move(self, name: str, target: str) -> None:
        """Give a file another name."""
        with self._faults("move", name):
            if self._protocol not in _OBJECT_STORES:
                self._files.makedirs(self._path(target).rpartition("/")[0], exist_ok=True)
            self._files.mv(self._path(name), self._path(target))

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        # It has no types: everything behind this door is ``Any``.
        import fsspec  # type: ignore[import-untyped]

        try:
            fsspec.get_filesystem_class(self._protocol)
        except ValueError as error:
            raise UsageError(f"a store cannot be kept at `{self}`", hint=_EXAMPLE) from error
        except ImportError as error:
            raise MissingDependency(
                f"a store at `{self._protocol}://` needs a package that is not installed",
                extra=self._protocol if self._protocol in _EXTRAS else None,
                hint=f"install the fsspec package for `{self._protocol}`",
            ) from error
        options: dict[str, Any] = {"use_listings_cache": False}
        with self._faults("open", ""):
            files, root = fsspec.core.url_to_fs(self.url, **options)
        return files, str(root).rstrip("/")

    @property
    def _files(self) -> Any:
        return self._opened[0]

    def _path(self, name: str) -> str:
        root = self._opened[1]
        # A share that is not mounted must not be taken for an empty store.
        if self._is_folder and not Path(root).is_dir():
            raise StoreUnavailable(f"the store `{self}` is not there", hint="mount it, or create the folder")
        return f"{root}/{name}"

    def _require_bucket(self) -> None:
        # A user who may list only the store's own part of it was answered before.
        with suppress(PermissionError):
            self._files.ls(self._opened[1].partition("/")[0])

    @property
    def _is_folder(self) -> bool:
        return self._protocol in ("file", "local")

    def _flush(self, path: Path) -> None:
        if not self._is_folder:
            return
        if path.is_dir():
            flush_folder(path)
            return
        with path.open("rb") as file:
            os.fchmod(file.fileno(), READ_ONLY)
            flush_open(file.fileno())

    @contextmanager
    def _faults(self, action: str, name: str) -> Iterator[None]:
        """Turn what the libraries raise into ``StoreUnavailable``."""
        what = f"`{self.url_of(name)}`"
        try:
            yield
        except MeteoraError:
            raise
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"cannot {action} {what}: {_reason(error)}",
                hint="check that the bucket or folder of the store exists",
            ) from error
        except PermissionError as error:
            raise StoreUnavailable(
                f"not permitted to {action} {what}: {_reason(error)}",
                hint=f"check the credentials that the library for `{self._protocol}` finds, and their rights",
            ) from error
        except TimeoutError as error:
            raise StoreUnavailable(
                f"cannot {action} {what}: the store did not answer in time", hint="try again later"
            ) from error
        # Every backend has exceptions of its own, and some derive from nothing but Exception.
        except Exception as error:
            raise StoreUnavailable(
                f"cannot {action} {what}: {_reason(error)}",
                hint="check the URL, the connection and the credentials",
            ) from error


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0]
    return hide_secrets(text)[:_MAX_REASON] or type(error).__name__
