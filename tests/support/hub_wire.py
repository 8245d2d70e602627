"""The wire of the Hub on loopback: a request read, answered and written down, with the fault asked for.

What is answered is ``hub_server``'s matter.
"""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.hub import LoopbackHub, Request

_CHUNK_BYTES = 16 << 10


class _Counting:
    """A socket's file that counts its bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.count = 0

    def take(self) -> int:
        """Return the bytes since this was last asked."""
        count, self.count = self.count, 0
        return count

    def write(self, data: bytes) -> Any:
        self.count += len(data)
        return self._file.write(data)

    def readline(self, *arguments: Any) -> bytes:
        line: bytes = self._file.readline(*arguments)
        self.count += len(line)
        return line

    def read(self, *arguments: Any) -> bytes:
        data: bytes = self._file.read(*arguments)
        self.count += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Refusal(Exception):
    """A refusal, with the Hub's own code for the reason."""

    def __init__(self, status: int, code: str | None = None, message: str = "refused") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class FaultyHandler(BaseHTTPRequestHandler):
    """A handler; a subclass's ``answer`` serves a request that is not cut off."""

    state: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._received, self._sent = _Counting(self.rfile), _Counting(self.wfile)
        self.rfile: Any = self._received
        self.wfile: Any = self._sent

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        began = time.monotonic()
        with self.state.answering():
            self._handle_request(began)

    def _handle_request(self, began: float) -> None:
        self._status = 0
        self._body = self._read_body()
        self.fault = self.state.take_fault(self.command, self.path)
        try:
            self._answer_with_fault()
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | (
                {"X-Error-Code": refusal.code} if refusal.code else {}
            )
            self._send(json.dumps({"error": refusal.message}).encode(), refusal.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.state.lock:
                self.state.record(
                    Request(
                        self.command,
                        self.path,
                        {key.lower(): value for key, value in self.headers.items()},
                        self._status,
                        self._received.take(),
                        self._sent.take(),
                        began,
                    )
                )

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer_with_fault(self) -> None:
        fault = self.fault
        if fault is not None:
            fault.reached.set()
            if fault.action == "status":
                self._send(fault.body, fault.status, fault.headers)
                return
            if fault.action == "raw":
                self.close_connection = True
                fault.write(self.wfile)
                return
            if fault.action == "hold":
                self.state.wait_for(fault.release)
            if fault.action == "call":
                fault.do()
        self.answer()

    def answer(self) -> None:
        """Send what was asked for, or raise ``Refusal``."""
        raise NotImplementedError

    def _send(
        self,
        body: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        *,
        size: int | None = None,
    ) -> None:
        if self.fault is not None and self.fault.action == "lost" and status < 400:
            status, body, headers = self.fault.status, self.fault.body, self.fault.headers
        self._status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.action == "cut":
            self.wfile.write(body[: self.fault.after_bytes])
            self.wfile.flush()
            self.close_connection = True
            return
        if self.fault is not None and self.fault.action == "wrong_body":
            body = bytes([body[0] ^ 0xFF]) + body[1:]
        for begin in range(0, len(body), _CHUNK_BYTES):
            if (
                self.fault is not None
                and self.fault.action == "slow"
                and begin <= len(body) // 2 < begin + _CHUNK_BYTES
            ):
                time.sleep(1.2)
            self.wfile.write(body[begin : begin + _CHUNK_BYTES])

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))
