"""A hostile Hub: where nothing may be written, and where no token may go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from meteora_registry.files.digests import hash_file
from meteora_registry.registry.hub.answers import is_hub
from support.hub import LoopbackHub
from support.hub_commands import Result, Workplace
from support.hub_hostile import COMMIT, answer_with, describe, entry
from support.small_adapters import make_adapter

TAGS = ["peft", "base_model:adapter:org/base"]
AS_COMMIT = "as a commit, expected 40 lower-case hexadecimal digits"


def paths_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_plain(result: Result) -> None:
    assert "Traceback" not in result.err
    assert "a defect of" not in result.err


COMMANDS = {
    "add": ("add", "org/legal"),
    "add all": ("add", "org/legal", "--all"),
    "pull": ("pull", "org/legal", "--out", "bundle", "--name", "bundle"),
    "verify": ("verify", "org/legal"),
    "refresh": ("refresh",),
    "push": ("push", "legal", "org/legal"),
    "push a dry run": ("push", "legal", "org/legal", "--dry-run"),
    "search": ("search-hub", "--base", "org/base"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_in_place_of_a_commit_writes_nothing(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path, name: str
) -> None:
    hub.repositories["org/legal"].meta[:] = TAGS
    assert here.run("add", "org/legal").code == 0
    victim = tmp_path / "victim" / "authorized_keys"
    before = paths_below(here.machine.hub_home)
    answer_with("GET", "^/api/models/org/legal(/revision/.*)?$", describe(sha=str(victim)))(hub)
    result = here.run(*COMMANDS[name])
    assert result.code == (0 if name == "search" else 1), result.err
    assert f"it has `{victim}` {AS_COMMIT}"[:60] in (result.out if name == "search" else result.err)
    assert_plain(result)
    assert not victim.parent.exists()
    assert paths_below(here.machine.hub_home) == before


@pytest.mark.parametrize("header", ["X-Repo-Commit", "ETag", "X-Linked-ETag"])
@pytest.mark.parametrize("status", [200, 404], ids=["found", "missing"])
def test_a_path_in_a_header_writes_nothing(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path, header: str, status: int
) -> None:
    victim = tmp_path / "victim" / "file"
    before = paths_below(here.machine.hub_home)
    headers = {"X-Repo-Commit": hub.repositories["org/legal"].head.oid, "ETag": COMMIT}
    headers |= {header: str(victim)} | ({"X-Error-Code": "EntryNotFound"} if status == 404 else {})
    hub.fault("HEAD", "/resolve/", status=status, headers=headers, times=99)
    result = here.run("add", "org/legal")
    assert result.code == 1
    assert_plain(result)
    assert not victim.parent.exists()
    new = {path for path in paths_below(here.machine.hub_home) - before if "/refs" not in path}
    # What huggingface_hub remembers of a file that is missing, below the commit that was asked for.
    assert not [path for path in new if ".no_exist" not in path and not path.endswith("models--org--legal")]


def test_a_commit_from_the_cache_is_checked_too(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path
) -> None:
    assert here.run("add", "org/legal").code == 0
    ref = here.machine.hub_home / "hub/models--org--legal/refs/main"
    ref.write_text("../../../..")
    result = here.run_alone("add", "org/legal", HF_HUB_OFFLINE="1")
    assert result.code == 1
    assert f"it has `../../../..` {AS_COMMIT}" in result.err


def test_a_blob_of_the_cache_with_a_foreign_name_is_read_without_its_digest(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    assert here.run("add", "org/legal").code == 0
    folder = here.machine.hub_home / "hub/models--org--legal"
    commit = (folder / "refs/main").read_text()
    config = folder / "snapshots" / commit / "adapter_config.json"
    blob = config.resolve()
    blob.rename(blob.with_name("x" * 64))
    config.unlink()
    config.symlink_to(f"../../blobs/{'x' * 64}")
    again = here.run_alone("add", "org/legal", "--name", "again", HF_HUB_OFFLINE="1")
    assert (again.code, again.out) == (0, "added: again@1 (sound, fusable)\n")


def hosts_with_token(hub: LoopbackHub) -> set[str]:
    return {request.headers["host"] for request in hub.requests if "authorization" in request.headers}


def _next_page(hub: LoopbackHub) -> None:
    link = {"Link": f'<{hub.storage_url}/api/models/org/legal/tree/main>; rel="next"'}
    hub.fault("GET", "/tree/", status=200, body=b"[]", headers=link)


def _redirect(method: str, pattern: str, target: str) -> Callable[[LoopbackHub], None]:
    def arrange(hub: LoopbackHub) -> None:
        hub.fault(method, pattern, status=307, headers={"Location": f"{hub.storage_url}{target}"}, times=99)

    return arrange


def _refresh_xet_elsewhere(hub: LoopbackHub) -> None:
    commit = hub.repositories["org/legal"].head
    weights = commit.files["adapter_model.safetensors"]
    headers = {
        "X-Repo-Commit": commit.oid,
        "X-Linked-ETag": weights.sha256,
        "X-Linked-Size": str(len(weights.data)),
        "X-Xet-Hash": "d" * 64,
        "Link": f'<{hub.storage_url}/xet>; rel="xet-auth"',
        "Location": f"{hub.storage_url}/storage/{weights.sha256}",
    }
    hub.fault("HEAD", "/resolve/.*safetensors", status=302, headers=headers, times=99)


LEAKS = {
    "the next page of a list": _next_page,
    "a redirected answer": _redirect("GET", "^/api/models/org/legal$", "/api/models/org/legal/revision/main"),
    "a redirected file": _redirect("GET", "^/org/legal/resolve/", "/storage/0"),
    "a redirected description of a file": _redirect("HEAD", "^/org/legal/resolve/", "/storage/0"),
    "a place to refresh Xet tokens": _refresh_xet_elsewhere,
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_token_is_sent_to_the_hub_only(hub: LoopbackHub, here: Workplace, legal: Path, name: str) -> None:
    LEAKS[name](hub)
    # As it is for people, who do not turn Xet off.
    assert_plain(here.run_alone("add", "org/legal", HF_HUB_DISABLE_XET="0"))
    hosts = {request.headers["host"] for request in hub.requests}
    assert urlsplit(hub.storage_url).netloc in hosts
    assert hosts_with_token(hub) == {urlsplit(hub.url).netloc}


def test_the_token_is_not_sent_to_a_place_that_verifies_uploads(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    weights = make_adapter(tmp_path / "one") / "adapter_model.safetensors"
    assert here.run("add", tmp_path / "one").code == 0
    digest, size = hash_file(weights), weights.stat().st_size
    actions = {
        "upload": {"href": f"{hub.storage_url}/storage/{digest}"},
        "verify": {"href": f"{hub.storage_url}/verify"},
    }
    value = {"objects": [{"oid": digest, "size": size, "actions": actions}]}
    answer_with("POST", "/info/lfs/objects/batch", value)(hub)
    assert_plain(here.run("push", "one", "org/mine"))
    assert [request.path for request in hub.requests if request.path == "/verify"]
    assert hosts_with_token(hub) == {urlsplit(hub.url).netloc}


@pytest.mark.parametrize(
    ("endpoint", "url", "expected"),
    [
        ("https://hub.example", "https://hub.example/api", True),
        ("https://hub.example", "https://hub.example:443/api", True),
        ("https://hub.example/mirror", "https://hub.example/else", True),
        ("http://hub.example", "https://hub.example/api", True),
        ("https://hub.example", "http://hub.example/api", False),
        ("https://hub.example", "https://hub.example:8443/api", False),
        ("http://hub.example:8080", "https://hub.example/api", False),
        ("http://hub.example", "https://hub.example:8443/api", False),
        ("https://hub.example", "https://huggingface.co/api", False),
        ("https://hub.example", "https://hub.example.evil.example/api", False),
        ("https://hub.example", "https://hub.example@evil.example/api", False),
    ],
)
def test_the_hub_is_known_by_scheme_host_and_port(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, url: str, expected: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    assert is_hub(httpx2.URL(url)) is expected


def test_a_search_shows_weights_that_are_too_large_as_a_problem(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    hub.repositories["org/legal"].meta[:] = TAGS
    files = [entry(), entry(path="adapter_model.safetensors", size=1 << 49)]
    answer_with("GET", "/tree/", files)(hub)
    result = here.run("search-hub", "--base", "org/base", "--format", "json")
    assert result.code == 0
    assert f"has {1 << 49} bytes, the limit is 5000000000" in result.data[0]["problem"]


WRONG_ANSWERS = {
    "a search that finds a path": (
        "GET",
        "^/api/models\\?",
        [{"id": "../../x"}],
        ("search-hub", "--base", "org/base"),
        "it has `../../x` as a repository, expected `org/name`",
    ),
    "a tag at a path": (
        "GET",
        "/refs$",
        {"branches": [], "converts": [], "tags": [{"name": "v1", "ref": "v1", "targetCommit": "../x"}]},
        ("push", "legal", "org/mine", "--tag", "v1"),
        f"it has `../x` {AS_COMMIT}",
    ),
    "a commit made that is a path": (
        "POST",
        "/commit/",
        {"commitOid": "../x", "commitUrl": "http://x/y"},
        ("push", "legal", "org/mine"),
        f"it has `../x` {AS_COMMIT}",
    ),
    "a commit made without an id": (
        "POST",
        "/commit/",
        {},
        ("push", "legal", "org/mine"),
        "cannot be understood: KeyError",
    ),
    "uploads that were not asked for": (
        "POST",
        "/info/lfs/objects/batch",
        {"objects": [{"oid": "e" * 64, "size": 1, "actions": {"upload": {"href": "http://x"}}}]},
        ("push", "legal", "org/mine"),
        "cannot be understood: ",
    ),
    "a list of upload modes": (
        "POST",
        "/preupload/",
        [],
        ("push", "legal", "org/mine"),
        "cannot be understood: AttributeError",
    ),
    "a list in place of a repository": (
        "GET",
        "^/api/models/org/legal$",
        [],
        ("add", "org/legal"),
        "cannot be understood: TypeError",
    ),
    "a text in place of a repository": (
        "GET",
        "^/api/models/org/legal$",
        "none",
        ("pull", "org/legal"),
        "cannot be understood: TypeError",
    ),
    "a bundle's file outside of it": (
        "GET",
        "/tree/",
        [entry(path="../adapter_config.json")],
        ("pull", "org/legal"),
        "it lists `../adapter_config.json`, expected a path within the repository",
    ),
    "a collection with a path": (
        "GET",
        "/api/collections/",
        {
            "slug": "org/ours-0123456789abcdef01234567",
            "title": "x",
            "owner": {"name": "org"},
            "items": [{"_id": "0", "id": "/etc", "type": "model", "position": 0}],
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": False,
            "theme": "blue",
            "upvotes": 0,
        },
        ("add", "--collection", "org/ours-0123456789abcdef01234567"),
        "it has `/etc` as a repository, expected `org/name`",
    ),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_a_malformed_answer_is_refused_in_a_sentence(
    hub: LoopbackHub, here: Workplace, legal: Path, name: str
) -> None:
    method, pattern, value, command, message = WRONG_ANSWERS[name]
    if command[0] == "push":
        assert here.run("add", legal).code == 0
    answer_with(method, pattern, value)(hub)
    result = here.run(*command)
    assert result.code in (1, 2)
    assert message in result.err
    assert_plain(result)


def test_a_download_that_starts_again_and_again_comes_to_an_end(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    # A repository of its own: the machine's cache has what other tests downloaded.
    hub.create("org/restarted", make_adapter(tmp_path / "restarted", rank=1 << 14, seed=304))
    weights = hub.repositories["org/restarted"].head.files["adapter_model.safetensors"].data

    def send_most(file: object) -> None:
        file.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(weights))  # type: ignore[attr-defined]
        file.write(weights[:-1])  # type: ignore[attr-defined]

    hub.fault("GET", "^/storage/", action="raw", write=send_most, skip=1, times=999)
    result = here.run("add", "org/restarted")
    assert result.code == 1
    assert "was refused: it declares " in result.err
    here.assert_whole()


def test_a_warning_of_the_hub_cannot_act_on_the_terminal(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    warning = {"X-HF-Warning": "topic; \x1b[2Jgone"}
    hub.fault("GET", "^/api/models/org/legal$", status=503, headers=warning)
    result = here.run_alone("add", "org/legal")
    assert result.code == 0
    assert r"\x1b[2Jgone" in result.err
    assert "\x1b" not in result.err
