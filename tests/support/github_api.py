"""GitHub's REST API for comments on loopback, with tokens that may write, read, or do nothing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

WRITER, READER = "ghs_TokenThatMayWrite", "ghs_TokenThatMayOnlyRead"
BOT = "github-actions[bot]"
MAX_BODY = 65_536
_LIST = re.compile(r"/repos/org/adapters/issues/(\d+)/comments")
_ONE = re.compile(r"/repos/org/adapters/issues/comments/(\d+)")


@dataclass
class Api:
    """The comments of the pull requests of ``org/adapters``, and every request that was made.

    ``answer`` takes the place of the whole API if it is set.
    """

    comments: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    url: str = ""

    def write(self, body: str, *, author: str = BOT, number: int = 7) -> int:
        """Write a comment as some account, and return its id."""
        made = {"id": 1000 + len(self.comments), "body": body, "user": {"login": author}, "number": number}
        self.comments.append(made)
        return int(made["id"])

    def bodies(self, author: str = BOT) -> list[str]:
        """Return the comments of an account."""
        return [each["body"] for each in self.comments if each["user"]["login"] == author]


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._is_taken():
            return
        found = _LIST.fullmatch(urlsplit(self.path).path)
        if not found or self._token() not in (WRITER, READER):
            self._send(404, {"message": "Not Found"})
            return
        query = parse_qs(urlsplit(self.path).query)
        page, size = int(query["page"][0]), int(query["per_page"][0])
        own = [each for each in self.api.comments if each["number"] == int(found[1])]
        self._send(200, own[(page - 1) * size : page * size])

    def do_POST(self) -> None:
        if self._is_taken():
            return
        found = _LIST.fullmatch(self.path)
        body = self._body()
        if found and self._may_write(body):
            self._send(201, {"id": self.api.write(body["body"], number=int(found[1]))})

    def do_PATCH(self) -> None:
        if self._is_taken():
            return
        found = _ONE.fullmatch(self.path)
        body = self._body()
        if found and self._may_write(body):
            (comment,) = [each for each in self.api.comments if each["id"] == int(found[1])]
            comment["body"] = body["body"]
            self._send(200, comment)

    def _is_taken(self) -> bool:
        self.api.requests.append((self.command, self.path))
        if self.api.answer is not None:
            self.api.answer(self)
            self.close_connection = True
        return self.api.answer is not None

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _may_write(self, body: Any) -> bool:
        if self._token() != WRITER:
            self._send(403, {"message": "Resource not accessible by integration"})
        elif len(body["body"]) > MAX_BODY:
            self._send(422, {"message": "Body is too long (maximum is 65536 characters)"})
        else:
            return True
        return False

    def _token(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def serve_github() -> Iterator[Api]:
    """Yield a running API on a free port of 127.0.0.1."""
    api = Api()

    class BoundHandler(_Handler):
        pass

    BoundHandler.api = api
    server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
