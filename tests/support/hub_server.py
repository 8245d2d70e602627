"""The Hub of ``hub`` on loopback: what huggingface_hub asks of huggingface.co, answered over real HTTP.

Ranges, redirects to signed addresses on another port for large files, LFS uploads, commits, tags, pull
requests. ``hub_wire`` adds every fault that the state asks for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from support.hub import READ_TOKEN, SIGNATURE, TOKEN, Commit, File, LoopbackHub, Repository
from support.hub_wire import FaultyHandler, Refusal


@contextmanager
def serve() -> Iterator[LoopbackHub]:
    """Yield a running server on a free port of 127.0.0.1."""
    hub = LoopbackHub()

    class BoundHandler(_Handler):
        state = hub

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler) for _ in range(2)]
    # Large files are at another address, as on the real Hub: no token may be sent there.
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        for fault in hub.faults:
            fault.release.set()
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(FaultyHandler):
    def answer(self) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, split.path)
            if found and self.command in method:
                getattr(self, name)(*map(unquote, found.groups()))
                return
        raise Refusal(404, message=f"the test Hub does not serve {self.command} {self.path}")

    def _token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token is not None and token not in (TOKEN, READ_TOKEN):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return token

    def _repository(self, name: str, *, content: bool = True, write: bool = False) -> Repository:
        token = self._token()
        repository = self.state.repositories.get(name)
        if repository is None or (repository.private and token != TOKEN):
            raise Refusal(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if write and token != TOKEN:
            raise Refusal(403, message="this token may not write here")
        if content and repository.gated and token not in repository.readers:
            raise Refusal(401 if token is None else 403, "GatedRepo", f"Access to model {name} is restricted")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def whoami(self) -> None:
        token = self._token()
        if token is None:
            raise Refusal(401, message="Invalid username or password.")
        self._json({"type": "user", "name": "tester", "auth": {"accessToken": {"role": "write"}}})

    def create_repository(self) -> None:
        if self._token() != TOKEN:
            raise Refusal(403, message="this token may not create repositories")
        wanted = json.loads(self._body)
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        with self.state.lock:
            if name in self.state.repositories:
                self._json({"error": "You already created this model repo", "url": self.state.url}, 409)
                return
            self.state.create(name, private=wanted.get("visibility") == "private")
        self._json({"url": f"{self.state.url}/{name}", "name": name, "id": name})

    def validate_yaml(self) -> None:
        problems = _problems_of_card(json.loads(self._body)["content"])
        errors = [{"message": problem} for problem in problems]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def list_models(self) -> None:
        wanted = set(self.query.get("filter", []))
        found = [
            {"id": each.name, "modelId": each.name, "tags": each.meta, "private": each.private}
            for each in self.state.repositories.values()
            if wanted <= set(each.meta) and not each.private
        ]
        limit = int(self.query.get("limit", ["1000"])[0])
        self._json(found[:limit])

    def collection(self, slug: str) -> None:
        names = self.state.collections.get(slug)
        if names is None:
            raise Refusal(404, message="Collection not found")
        items = [
            {"_id": f"{i:024x}", "id": name, "type": "model", "position": i} for i, name in enumerate(names)
        ]
        self._json(
            {
                "slug": slug,
                "title": slug,
                "owner": {"name": "org"},
                "items": items,
                "lastUpdated": "2026-01-01T00:00:00.000Z",
                "position": 0,
                "private": False,
                "theme": "blue",
                "upvotes": 0,
            }
        )

    def model_info(self, name: str, revision: str = "main") -> None:
        repository = self._repository(name, content=False)
        commit = self._commit(repository, revision)
        self._json(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit.oid,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "tags": repository.meta,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def tree(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        entries = [_tree_entry(path, file) for path, file in sorted(commit.files.items())]
        start = int(self.query.get("cursor", ["0"])[0])
        page, headers = entries[start : start + 1000], {}
        if start + 1000 < len(entries):
            path = urlsplit(self.path).path
            more = f"{self.state.url}{path}?recursive=true&expand=false&cursor={start + 1000}"
            headers["Link"] = f'<{more}>; rel="next"'
        self._json(page, headers=headers)

    def paths_info(self, name: str, revision: str) -> None:
        commit = self._commit(self._repository(name), revision)
        form = parse_qs(self._body.decode())
        wanted = form["paths"] if "paths" in form else json.loads(self._body)["paths"]
        self._json([_tree_entry(path, commit.files[path]) for path in wanted if path in commit.files])

    def refs(self, name: str) -> None:
        repository = self._repository(name, content=False)

        def entries(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [
                {"name": ref, "ref": f"{prefix}{ref}", "targetCommit": oid}
                for ref, oid in sorted(refs.items())
            ]

        branches = {ref: oid for ref, oid in repository.refs.items() if not ref.startswith("refs/")}
        self._json(
            {
                "branches": entries(branches, "refs/heads/"),
                "tags": entries(repository.tags, "refs/tags/"),
                "converts": [],
            }
        )

    def preupload(self, name: str, revision: str) -> None:
        is_proposal = "create_pr" in self.query
        repository = self._repository(name, write=not is_proposal)
        commit = self._commit(repository, revision)
        answers = []
        for file in json.loads(self._body)["files"]:
            path, known = file["path"], commit.files.get(file["path"])
            mode = "lfs" if path.endswith(".safetensors") or file["size"] > 10 << 20 else "regular"
            answers.append(
                {
                    "path": path,
                    "uploadMode": mode,
                    "shouldIgnore": False,
                    "oid": known.git_oid if known else None,
                }
            )
        self._json({"files": answers})

    def lfs_batch(self, name: str) -> None:
        self._repository(name)
        objects = []
        for each in json.loads(self._body)["objects"]:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.state.large:
                href = f"{self.state.storage_url}/storage/{each['oid']}?X-Signature={SIGNATURE}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def store_large(self, sha256: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != sha256:
            raise Refusal(400, message="the content does not have this digest")
        self.state.large[sha256] = self._body
        self._send(b"")

    def serve_large(self, sha256: str) -> None:
        for repository in list(self.state.repositories.values()):
            for commit in list(repository.commits.values()):
                for file in commit.files.values():
                    if file.is_large and file.sha256 == sha256:
                        self._send_file(file, {})
                        return
        raise Refusal(404, message="no such object")

    def commit(self, name: str, revision: str) -> None:
        is_proposal = "create_pr" in self.query
        repository = self._repository(name, write=not is_proposal)
        lines = [json.loads(line) for line in self._body.splitlines()]
        header, changes = lines[0]["value"], {}
        for line in lines[1:]:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "file":
                changes[path] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.state.large:
                    raise Refusal(422, message=f"the object {value['oid']} was not uploaded")
                changes[path] = File(self.state.large[value["oid"]], True)
            else:
                changes[path] = None
        with self.state.lock:
            head = self._commit(repository, revision)
            if header.get("parentCommit") not in (None, head.oid) and not is_proposal:
                raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
            number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
            ref = f"refs/pr/{number}" if is_proposal else revision
            made = repository.commit(header["summary"], changes, parent=head.oid, ref=ref)
        answer = {
            "success": True,
            "commitOid": made.oid,
            "commitUrl": f"{self.state.url}/{name}/commit/{made.oid}",
            "hookOutput": "",
        }
        if is_proposal:
            answer["pullRequestUrl"] = f"{self.state.url}/{name}/discussions/{number}"
        self._json(answer)

    def tag(self, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        commit, tag = self._commit(repository, revision), json.loads(self._body)["tag"]
        if tag in repository.tags:
            raise Refusal(409, message=f"Tag {tag} already exists")
        repository.tags[tag] = commit.oid
        self._json({})

    def branch(self, name: str, branch: str) -> None:
        repository = self._repository(name, write=True)
        wanted = json.loads(self._body or b"{}").get("startingPoint", "main")
        repository.refs[branch] = self._commit(repository, wanted).oid
        self._json({})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        if file.is_large:
            headers |= {
                "X-Linked-ETag": f'"{file.etag}"',
                "X-Linked-Size": str(len(file.data)),
                "Location": f"{self.state.storage_url}/storage/{file.sha256}?X-Signature={SIGNATURE}",
            }
            self._send(b"", 302, headers)
            return
        self._send_file(file, headers)

    def _send_file(self, file: File, headers: dict[str, str]) -> None:
        headers = headers | {"ETag": f'"{file.etag}"'}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            self._send(b"" if self.command == "HEAD" else file.data, 200, headers, size=len(file.data))
            return
        begin, end = int(found[1]), min(int(found[2] or 1 << 60), len(file.data) - 1)
        if begin >= len(file.data):
            self._send(b"", 416, {"Content-Range": f"bytes */{len(file.data)}"})
            return
        headers |= {"Content-Range": f"bytes {begin}-{end}/{len(file.data)}"}
        self._send(file.data[begin : end + 1], 206, headers)


def _tree_entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(file.data),
        "oid": file.git_oid,
    }
    if file.is_large:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
    return entry


# What the real one knows that the tests use; it refuses any other.
_LICENSES = {"apache-2.0", "mit", "cc-by-nc-4.0", "gpl-3.0", "llama3.1", "unknown", "other"}


def _problems_of_card(text: str) -> list[str]:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not found:
        return []
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"the front matter is not YAML: {error}"]
    problems = []
    if "license" in front and front["license"] not in _LICENSES:
        problems.append(f'"license" must be one of {sorted(_LICENSES)}')
    if front.get("license") == "other" and not re.fullmatch(r"[a-z0-9.-]+", front.get("license_name", "")):
        problems.append('"license_name" is required with "license: other"')
    bases = front.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            problems.append(f'"base_model" {base} is not a repository')
    return problems


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create_repository"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", r"/api/models", "list_models"),
    ("GET", r"/api/collections/(.+)", "collection"),
    ("GET", rf"/api/models/{_NAME}", "model_info"),
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", "model_info"),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", "tree"),
    ("POST", rf"/api/models/{_NAME}/paths-info/([^/]+)", "paths_info"),
    ("GET", rf"/api/models/{_NAME}/refs", "refs"),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/storage/([0-9a-f]+)", "store_large"),
    (("GET", "HEAD"), r"/storage/([0-9a-f]+)", "serve_large"),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", "commit"),
    ("POST", rf"/api/models/{_NAME}/tag/([^/]+)", "tag"),
    ("POST", rf"/api/models/{_NAME}/branch/([^/]+)", "branch"),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
)
