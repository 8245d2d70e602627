"""Connections that refuse a server which sends too slowly, or headers without end.

The check is on the network stream because a server can be slow anywhere: in the status line, in the
headers, in a body that is read at once or in pieces. Timeouts do not help, since every byte starts them anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from ssl import SSLContext
from time import monotonic
from typing import Any

import httpcore2

# An average over a window, so that a line which stalls for some seconds is not refused. Only waiting for
# bytes counts: neither what is done with them nor the time until the first byte of an answer, for which
# there is a timeout.
MIN_BYTES_PER_SECOND = 4096
WINDOW_SECONDS = 30.0
# The library allows 100 kB of headers, but any number of provisional answers (1xx) before them.
MAX_HEADER_BYTES = 512 << 10


class AnswerRefused(ValueError):
    """An answer of the Hub breaks a bound or is malformed; the text states how, without its subject."""


class AnswerTooSlow(AnswerRefused):
    """The bytes of an answer came more slowly than the minimum rate."""


class RateMeter:
    """The average rate of one answer, over consecutive windows of waiting."""

    def __init__(self) -> None:
        self._waited_seconds = 0.0
        self._received_bytes = 0

    def add(self, waited_seconds: float, received_bytes: int) -> None:
        """Count bytes and the time that was spent waiting for them.

        Raises:
            AnswerTooSlow: the window is over, and the average in it was below the minimum.
        """
        self._waited_seconds += waited_seconds
        self._received_bytes += received_bytes
        if self._waited_seconds < WINDOW_SECONDS:
            return
        if self._received_bytes < MIN_BYTES_PER_SECOND * self._waited_seconds:
            raise AnswerTooSlow(
                f"less than {MIN_BYTES_PER_SECOND} bytes a second over {WINDOW_SECONDS:g} seconds"
            )
        self._waited_seconds, self._received_bytes = 0.0, 0


class MeteredStream(httpcore2.NetworkStream):
    """A connection of which every answer has to keep the minimum rate; a write starts the next answer."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self._meter: RateMeter | None = None
        self._header_bytes: int | None = 0

    def end_headers(self) -> None:
        """Note that the headers of the present answer are complete."""
        self._header_bytes = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is, as the wrapped stream does."""
        started = monotonic()
        data = self._stream.read(max_bytes, timeout)
        if self._meter is None:
            self._meter = RateMeter()
        else:
            self._meter.add(monotonic() - started, len(data))
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                raise AnswerRefused(f"it has more than {MAX_HEADER_BYTES} bytes of headers")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write, as the wrapped stream does."""
        self._meter, self._header_bytes = None, 0
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Close the wrapped stream."""
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Return the encrypted stream, which is metered, too."""
        return MeteredStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return what the wrapped stream knows."""
        return self._stream.get_extra_info(info)


class MeteredBackend(httpcore2.SyncBackend):
    """Opens metered connections."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect, as the base class does."""
        return MeteredStream(super().connect_tcp(host, port, timeout, local_address, socket_options))
