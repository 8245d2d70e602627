"""A Hub in memory: repositories with commits, branches, tags and pull requests, and faults on demand.

``hub_server`` serves it over HTTP.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from support.patience import PATIENCE_SECONDS

TOKEN = "hf_" + "KnownTokenOfTheTests0123456789abcd"
READ_TOKEN = "hf_" + "AnotherTokenThatMayOnlyRead0123456"
SIGNATURE = "SignatureOfAStorageAddress"


@dataclass(frozen=True)
class File:
    """A file of a commit; ``data`` are its bytes, ``is_large`` whether LFS keeps it."""

    data: bytes
    is_large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        data = f"oid sha256:{self.sha256}".encode() if self.is_large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: dict[str, File]


@dataclass
class Repository:
    """A repository: its commits, and what branches, tags and pull requests point at."""

    name: str
    generation: int
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    meta: list[str] = field(default_factory=list)

    def commit(self, title: str, changes: dict[str, File | None], *, parent: str | None, ref: str) -> Commit:
        """Return a new commit on a ref; None deletes a file."""
        files = dict(self.commits[parent].files) if parent else {}
        for path, file in changes.items():
            if file is None:
                files.pop(path, None)
            else:
                files[path] = file
        seed = f"{self.generation} {self.name} {parent} {title} {len(self.commits)}".encode()
        made = Commit(hashlib.sha1(seed).hexdigest(), title, files)
        self.commits[made.oid] = made
        self.refs[ref] = made.oid
        return made

    def resolve(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag, a pull request or an id names."""
        oid = self.refs.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """A fault of the next ``times`` requests that match.

    ``action`` is one of ``status``, ``cut`` (after ``after_bytes``), ``wrong_body``, ``hold`` (until
    released), ``slow`` (a second's rest in the middle of the body), ``lost`` (done, and answered with
    ``status``), ``call`` (something happens first), ``raw`` (``write`` has the connection, which is then
    closed).
    """

    method: str
    pattern: str
    action: str = "status"
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "a fault of the test"}'
    times: int = 1
    after_bytes: int = 0
    skip: int = 0
    do: Callable[[], None] = lambda: None
    write: Callable[[Any], None] = lambda file: None
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    """One request that was made: what came and when, and how many bytes went over the wire both ways."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    bytes_in: int
    bytes_out: int
    at: float


class LoopbackHub:
    """The server's state; ``url`` is the value of HF_ENDPOINT, ``storage_url`` the address of large files."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, list[str]] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._requests: list[Request] = []
        self._at_work = 0
        self._idle = threading.Condition(self.lock)
        self.url = ""
        self.storage_url = ""
        self.generation = 0

    def create(self, name: str, files: dict[str, bytes] | Path | None = None, **facts: Any) -> Repository:
        """Return a repository with these files on its main branch, and git's usual .gitattributes."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
        repository = Repository(name, self.generation, **facts)
        attributes = {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)}
        repository.commit("initial commit", attributes, parent=None, ref="main")
        self.repositories[name] = repository
        if files:
            self.push(name, files)
        return repository

    def push(self, name: str, files: dict[str, bytes | None], title: str = "upload") -> str:
        """Make a commit on main as another user, and return its id."""
        with self.lock:
            repository = self.repositories[name]
            changes = {path: None if data is None else make_file(path, data) for path, data in files.items()}
            return repository.commit(title, changes, parent=repository.refs["main"], ref="main").oid

    def fault(self, method: str, pattern: str, **facts: Any) -> Fault:
        """Make something go wrong; the pattern is searched in the path."""
        fault = Fault(method, pattern, **facts)
        with self.lock:
            self.faults.append(fault)
        return fault

    def forget(self) -> None:
        """Begin anew: no repositories, no faults, no requests; later commits get other ids."""
        with self.lock:
            self.repositories.clear()
            self.collections.clear()
            self.large.clear()
            self.faults.clear()
            self.requests.clear()
            self.generation += 1

    @property
    def requests(self) -> list[Request]:
        """The requests so far, in the order of their arrival, those that are held left out.

        A client may go on before the server has written down what it answered.
        """
        with self._idle:
            assert self._idle.wait_for(lambda: not self._at_work, PATIENCE_SECONDS)
            self._requests.sort(key=lambda request: request.at)
            return self._requests

    def record(self, request: Request) -> None:
        """Write a request down that was answered."""
        with self.lock:
            self._requests.append(request)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as being answered within the block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wait_for(self, release: threading.Event) -> None:
        """Hold a request, which is not being answered meanwhile."""
        self._count(-1)
        try:
            release.wait(PATIENCE_SECONDS)
        finally:
            self._count(1)

    def _count(self, change: int) -> None:
        with self._idle:
            self._at_work += change
            self._idle.notify_all()

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    if fault.times == 0:
                        self.faults.remove(fault)
                    return fault
        return None

    @property
    def bytes_over_the_wire(self) -> int:
        return sum(request.bytes_in + request.bytes_out for request in self.requests)


def make_file(path: str, data: bytes) -> File:
    """Return a file as the Hub would keep it."""
    return File(data, path.endswith((".safetensors", ".bin")) or len(data) > 10 << 20)
