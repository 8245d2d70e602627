"""The process that serves: one socket, uvicorn on it, and a shutdown in order."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..schemas.errors import SourceUnreadable, UsageError
from .app import Service
from .limits import Limits

# Of a header: more than clients send, and with the timeout all that a connection can make the server keep.
_MAX_HEADER_BYTES = 1 << 16
_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 512


def check_host(host: str, *, has_key: bool) -> None:
    """Pass if a server may listen there: without a key, on this machine alone.

    Raises:
        UsageError: others could reach it, and there is no key.
    """
    if has_key or is_loopback(host):
        return
    raise UsageError(
        f"`--host {host}` lets other machines ask, and there is no key",
        hint="name a file with a key by `--api-key-file`, or set METEORA_API_KEY; "
        "behind a proxy that checks who asks, listen on 127.0.0.1",
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any that is free.

    Raises:
        SourceUnreadable: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # The socket's own text repeats the address.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise SourceUnreadable(
            f"cannot listen on `{host}` port {port}: {reason.lower()}",
            hint="choose another with `--host` or `--port`",
        ) from error
    except UnicodeError as error:
        raise UsageError(
            f"`--host {host}` is not the name of a machine: it has a part that is empty or longer than 63 "
            "characters"
        ) from error


def address_of(listening: socket.socket) -> str:
    """Return the URL of a socket that listens."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """A server of one service; a first signal drains it, a second one ends it at once."""

    def __init__(self, service: Service) -> None:
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                service.app(),
                http=_timed_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                # Its warnings are one or two lines for each malformed request, which any client can send.
                log_level="error",
                access_log=False,
                server_header=False,
                limit_concurrency=limits.max_connections,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                # What is left when the service has drained are answers on their way.
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            )
        )
        self._service = service
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests on the sockets until the server is stopped."""
        self._loop = asyncio.get_running_loop()
        await self._service.backend.start()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order at a first signal, and at once at a second."""
        if self._is_stopping:
            self.should_exit = self.force_exit = True
        self.request_stop()

    def request_stop(self) -> None:
        """Let what runs end, and stop; may be called from any thread, and before the server has begun."""
        self._is_stopping = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            await self._service.drain()
        finally:
            self.should_exit = True


def _timed_protocol(limits: Limits) -> type[H11Protocol]:
    """Return the protocol of connections with a limit on the times for which a client keeps it waiting."""

    class TimedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _reader_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Writing pauses whenever the client has not taken all, also before the connection is closed.
            transport.set_write_buffer_limits(high=0)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            self._end_of_waiting()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reader_timer = self.loop.call_later(limits.send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._end_of_waiting()
            super().resume_writing()

        def _end_of_waiting(self) -> None:
            if self._reader_timer is not None:
                self._reader_timer.cancel()
                self._reader_timer = None

        def _watch(self) -> None:
            """Count the time while a header is awaited, or the rest of it, or of a body that no one reads."""
            is_answering = self.cycle is not None and not self.cycle.response_complete
            # Then the time of connections that are kept counts, until the next byte.
            is_quiet = (
                self.cycle is not None
                and self.conn.their_state is h11.IDLE
                and not self.conn.trailing_data[0]
            )
            if is_answering or is_quiet:
                self._unwatch()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(limits.read_seconds, self._give_up)

        def _unwatch(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()

    return TimedProtocol
