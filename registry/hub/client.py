"""The Hub as the workflows see it: commits, lists of files, beginnings of files, downloads, commits of ours.

Everything goes through huggingface_hub, so the token, the cache, offline mode and a mirror are those
of every other tool on the machine (HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT). What it does not
try again itself is tried again here, for as long as the server asks.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_url,
    is_offline_mode,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported at run time only
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
)
from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

from ... import __version__
from ...files.reading import open_regular
from ...schemas.errors import HubNotFound, HubUnavailable
from ...schemas.names import is_repository
from .answers import MAX_PAUSE_SECONDS, check_commit, expect_file, expect_json, guard_client
from .foreign_errors import (
    BUSY,
    FOREIGN_ERRORS,
    SecretFilter,
    Subject,
    asked_pause_seconds,
    is_transient,
    status_of,
    translate,
)
from .listing import Listing, RemoteFile, read_cached_file, read_entry
from .rate import AnswerRefused

MAX_FILES = 10_000
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 1.0
_BAR_DELAY_SECONDS = 1.0

_LIBRARY = "meteora-registry"

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Located(NamedTuple):
    """A repository under its present name, at a commit."""

    repository: str
    commit: str


class Hub:
    """The Hub that HF_ENDPOINT names, as the user whose token is in the usual place."""

    def __init__(self) -> None:
        guard_client()
        self._api = HfApi(library_name=_LIBRARY, library_version=__version__)
        # Its bars for uploads do not ask whether there is a terminal.
        if not sys.stderr.isatty():
            disable_progress_bars()
        for handler in logging.getLogger("huggingface_hub").handlers:
            handler.addFilter(SecretFilter())

    @property
    def is_offline(self) -> bool:
        """Whether nothing may be asked: only what the cache has is there."""
        return bool(is_offline_mode())

    def resolve(self, repository: str, revision: str | None = None) -> str:
        """Return the commit that a branch, a tag or a commit names; by default the main branch.

        Raises:
            HubRefused, HubUnavailable: as ``locate``.
        """
        return self.locate(repository, revision).commit

    def locate(self, repository: str, revision: str | None = None) -> Located:
        """Return the present name of a repository, and the commit that a branch, a tag or a commit names.

        Offline these are the name as it is given, and the cache's last answer.

        Raises:
            HubRefused: the repository or the revision does not exist, or may not be read.
            HubUnavailable: the Hub did not answer, or offline the cache has no answer.
        """
        subject = Subject(repository, revision)
        if not self.is_offline:
            # First, because `resolve_revision` answers from the cache when the Hub fails.
            repository = self._ask(
                lambda: _check_repository(self._api.model_info(repository, revision=revision).id), subject
            )
        commit = self._ask(
            lambda: check_commit(
                # A string of a class of its own, which the pattern takes as one.
                self._api.resolve_revision(
                    repository, revision=revision, local_files_only=self.is_offline
                ).resolved
            ),
            subject,
        )
        return Located(repository, commit)

    def list_files(self, repository: str, commit: str) -> Listing:
        """Return every file of a repository at a commit; offline those that the cache has.

        Raises:
            HubRefused, HubUnavailable: as ``resolve``; also for more than 10 000 files.
        """
        subject = Subject(repository, commit)
        if self.is_offline:
            files = tuple(self._cached_files(repository, commit))
            if not files:
                raise HubUnavailable(
                    f"{subject} is not in the local cache, and offline mode is on",
                    hint="unset HF_HUB_OFFLINE",
                )
            return Listing(repository, commit, files)

        def read() -> Listing:
            entries = list(
                islice(self._api.list_repo_tree(repository, recursive=True, revision=commit), MAX_FILES + 1)
            )
            if len(entries) > MAX_FILES:
                raise HubUnavailable(
                    f"{subject} has more than {MAX_FILES} files and folders, too many for adapters"
                )
            files = tuple(read_entry(entry) for entry in entries if isinstance(entry, RepoFile))
            if len({file.path for file in files}) < len(files):
                raise AnswerRefused("it lists a path more than once")
            return Listing(repository, commit, files)

        # Every page is tried again by huggingface_hub itself.
        return self._ask(read, subject, attempts=1)

    def read_start(self, listing: Listing, file: RemoteFile, count: int, *, skip: int = 0) -> bytes:
        """Read at most ``count`` bytes of a file from ``skip`` on, by a range request or from the cache."""
        end = min(skip + count, file.size_bytes)
        if end <= skip:
            return b""
        if self.is_offline:
            with open_regular(self.download(listing, file), follows_links=True) as cached:
                cached.seek(skip)
                return cached.read(end - skip)

        url = hf_hub_url(listing.repository, file.path, revision=listing.commit)
        headers = {"Range": f"bytes={skip}-{end - 1}"}

        def read() -> bytes:
            answer = http_backoff(
                "GET",
                url,
                # The token may have changed since the last attempt.
                headers=headers | build_hf_headers(library_name=_LIBRARY, library_version=__version__),
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
            hf_raise_for_status(answer)
            # A server that knows no ranges sends the file from its beginning.
            data = answer.content if answer.status_code == 206 else answer.content[skip:]
            if len(data) != end - skip:
                raise AnswerRefused(f"it has {len(data)} bytes of a file, expected {end - skip}")
            return data

        return self._ask(
            read,
            Subject(listing.repository, listing.commit),
            expect=lambda: expect_file(listing.commit, file.size_bytes),
            # It is tried again by huggingface_hub itself.
            attempts=1,
        )

    def download(self, listing: Listing, file: RemoteFile, *, cache: Path | None = None) -> Path:
        """Return the file in huggingface_hub's cache, fetched if missing; its bytes are not checked yet.

        A connection that breaks is taken up where it broke.
        """
        return Path(
            self._ask(
                lambda: self._api.hf_hub_download(
                    listing.repository,
                    file.path,
                    revision=listing.commit,
                    cache_dir=cache,
                    tqdm_class=_bar_named(file.name),
                ),
                Subject(listing.repository, listing.commit),
                expect=lambda: expect_file(listing.commit, file.size_bytes),
            )
        )

    def forget(self, cached: Path) -> None:
        """Take a file with wrong bytes out of the cache, so that the next run fetches it anew."""
        blob = cached.parent / cached.readlink() if cached.is_symlink() else None
        cached.unlink(missing_ok=True)
        if blob is not None:
            blob.unlink(missing_ok=True)

    def find_adapters(self, base: str, *, limit: int) -> tuple[str, ...]:
        """Return repositories that are marked as PEFT adapters of a base, the most downloaded first."""
        filters = ["peft", f"base_model:adapter:{base}"]
        return self._ask(
            lambda: tuple(
                _check_repository(model.id)
                for model in self._api.list_models(filter=filters, sort="downloads", limit=limit)
            ),
            Subject(base),
        )

    def list_collection(self, slug: str) -> tuple[str, ...]:
        """Return the model repositories of a collection, in its order."""
        return self._ask(
            lambda: tuple(
                _check_repository(item.item_id)
                for item in self._api.get_collection(slug).items
                if item.item_type == "model"
            ),
            Subject(slug),
        )

    def find_repository(self, repository: str) -> tuple[str, bool] | None:
        """Return the main branch's commit and whether the repository is private; None if none is visible."""

        def read() -> tuple[str, bool]:
            info = self._api.model_info(repository)
            return check_commit(info.sha), bool(info.private)

        try:
            return self._ask(read, Subject(repository))
        except HubNotFound:
            return None

    def create_repository(self, repository: str, *, private: bool) -> None:
        """Create a repository that is not there yet; one that is stays as it is."""
        self._ask(
            lambda: self._api.create_repo(repository, private=private, exist_ok=True), Subject(repository)
        )

    def commit(
        self,
        repository: str,
        *,
        add: dict[str, Path],
        delete: Iterable[str],
        parent: str,
        message: str,
        as_pull_request: bool,
    ) -> tuple[str, str | None]:
        """Make one commit on the main branch, or a pull request; return its id and the request's address.

        It is repeated only when the Hub was too busy to look at it: after any other failure it is unknown
        whether the commit was made.

        Raises:
            HubConflict: the main branch is no longer at ``parent``.
            HubRefused, HubUnavailable: the Hub refused, or its answer did not come.
        """
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, str(source)) for path, source in sorted(add.items())
        ]
        operations += [CommitOperationDelete(path, is_folder=False) for path in sorted(delete)]

        def commit() -> tuple[str, str | None]:
            made = self._api.create_commit(
                repository,
                operations,
                commit_message=message,
                parent_commit=parent,
                create_pr=as_pull_request,
            )
            return check_commit(made.oid), made.pr_url

        with _quiet_warnings():
            return self._ask(commit, Subject(repository), may_repeat=lambda error: status_of(error) == BUSY)

    def list_tags(self, repository: str) -> dict[str, str]:
        """Return the tags of a repository and their commits."""
        return self._ask(
            lambda: {
                tag.name: check_commit(tag.target_commit) for tag in self._api.list_repo_refs(repository).tags
            },
            Subject(repository),
        )

    def tag(self, repository: str, tag: str, commit: str) -> None:
        """Set a tag; an existing tag of that name is not moved."""
        self._ask(
            lambda: self._api.create_tag(repository, tag=tag, revision=commit, exist_ok=True),
            Subject(repository, commit),
        )

    def _cached_files(self, repository: str, commit: str) -> Iterator[RemoteFile]:
        folder = "models--" + repository.replace("/", "--")
        snapshot = Path(constants.HF_HUB_CACHE) / folder / "snapshots" / commit
        for path in sorted(snapshot.rglob("*")):
            if path.is_file():
                yield read_cached_file(snapshot, path)

    def _ask(
        self,
        call: Callable[[], T],
        subject: Subject,
        *,
        expect: Callable[[], AbstractContextManager[None]] = expect_json,
        may_repeat: Callable[[BaseException], bool] = is_transient,
        attempts: int = _ATTEMPTS,
    ) -> T:
        for attempt in range(1, attempts + 1):
            try:
                with expect():
                    return call()
            except FOREIGN_ERRORS as error:
                pause = _pause_before_next(error, attempt) if may_repeat(error) else None
                if attempt == attempts or pause is None:
                    raise translate(error, subject) from error
                reason = "is busy (429)" if status_of(error) == BUSY else "did not answer as it should"
                _logger.warning("the Hub %s; asking again in %.0f seconds", reason, pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def _bar_named(name: str) -> type[tqdm]:
    """Return a bar for one download, shown once that has lasted a second.

    Left to itself the library may label it with the end of a storage address, signature and all.
    """

    class NamedBar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options |= {"desc": name, "delay": _BAR_DELAY_SECONDS, "leave": False}
            # The library states no types for its own bar.
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    return NamedBar


def _pause_before_next(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt; None if the server asks for too many."""
    asked = asked_pause_seconds(error)
    if asked is None:
        return float(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    return asked if asked <= MAX_PAUSE_SECONDS else None


def _check_repository(name: object) -> str:
    if not isinstance(name, str) or not is_repository(name):
        raise AnswerRefused(f"it has `{str(name)[:80]}` as a repository, expected `org/name`")
    return name


@contextmanager
def _quiet_warnings() -> Iterator[None]:
    # The Hub's remarks on a model card, such as an empty front matter, come as Python warnings.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
