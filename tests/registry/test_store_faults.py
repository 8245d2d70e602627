"""Messages for a store at a URL that cannot be used: refused addresses, missing rights, failing services."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meteora_registry.registry.store import Remote, RemoteStore
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import MeteoraError, MissingDependency, StoreUnavailable, UsageError
from support import warm
from support.patience import PATIENCE_SECONDS
from support.s3_server import s3_environment
from support.users import as_ordinary_user

CONTENT = b"the bytes" * 300_000
DIGEST = Digest.of_bytes(CONTENT)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("bucket", UsageError, "the store `bucket` is not a URL"),
        ("s3://key:secret@bucket/x", UsageError, "the store's `s3` URL holds a password"),
        (
            "https://host/x?signature=secret",
            UsageError,
            "the store `https://host/x?signature=***` is more than a place",
        ),
        ("simplecache::s3://bucket", UsageError, "the store `simplecache::s3://bucket` is not a URL"),
        ("nothing://x", UsageError, "a store cannot be kept at `nothing://x`"),
        (
            "abfs://bucket/x",
            MissingDependency,
            "a store at `abfs://` needs a package that is not installed",
        ),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused(text: str, kind: type[MeteoraError], message: str) -> None:
    with pytest.raises(kind) as caught:
        Remote(text).size_of("x")
    assert caught.value.message == message
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_a_path_means_the_folder(tmp_path: Path) -> None:
    assert Remote(str(tmp_path)).url == tmp_path.as_uri()


def test_a_shared_folder_that_may_not_be_written_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    # Not below pytest's own folder, into which another user may not look.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "share").mkdir()
        (folder / "source").write_bytes(CONTENT)
        store = RemoteStore((folder / "share").as_uri(), folder / "cache")
        # Once, so that everything is imported.
        assert store.size_of(DIGEST) is None
        with as_ordinary_user(), pytest.raises(StoreUnavailable) as caught:
            store.send(DIGEST, folder / "source")
        assert str(caught.value) == (
            f"not permitted to write `{store}/sha256/{DIGEST[:2]}/{DIGEST[2:]}`: Permission denied"
        )
        assert list((folder / "share").iterdir()) == []


class _Service(BaseHTTPRequestHandler):
    """An S3 service with the fault that ``fault`` names."""

    fault = ""
    waiting = threading.Event()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.fault:
            case "forbidden":
                body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                self.send_response(403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
            case "silent":
                self.waiting.wait(PATIENCE_SECONDS)
            case "cut off":
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(CONTENT[:1000])
        self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def faulty_service(fault: str) -> Iterator[str]:
    handler = type("Handler", (_Service,), {"fault": fault, "waiting": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            handler.waiting.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("gone", ': Could not connect to the endpoint URL: "http://127.0.0.1:'),
        ("forbidden", "error: not permitted to "),
        ("silent", ": Read timeout on endpoint URL: "),
        ("cut off", "error: cannot read `s3://adapters/x/sha256/"),
    ],
)
def test_a_service_that_fails_is_said_without_secrets_and_leaves_nothing(
    fault: str, expected: str, tmp_path: Path
) -> None:
    service = faulty_service(fault) if fault != "gone" else nullcontext("http://127.0.0.1:9")
    with service as address:
        # A service that answers may take its time on a busy machine.
        seconds = 1 if fault == "silent" else PATIENCE_SECONDS
        options = {"config_kwargs": {"read_timeout": seconds, "retries": {"max_attempts": 0}}}
        environment = os.environ | s3_environment(address) | {"FSSPEC_S3": json.dumps(options)}
        program = (
            "import sys\nfrom pathlib import Path\nimport s3fs\n"
            "s3fs.S3FileSystem.retries = 1\n"
            "from meteora_registry.registry.cli.failures import report_failure\n"
            "from meteora_registry.registry.store import RemoteStore\n"
            "store = RemoteStore('s3://adapters/x', Path(sys.argv[1]))\n"
            "try:\n    store.path_of(sys.argv[2])\nexcept Exception as error:\n"
            "    sys.exit(report_failure(error))\n"
        )
        done = warm.run(
            [sys.executable, "-c", program, str(tmp_path / "cache"), DIGEST],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert done.stderr.splitlines()[1].startswith("hint: ")
    assert "secret" not in done.stderr
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"] == []
