"""A socket between a client and a PostgreSQL server that can lose a connection at a chosen moment."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from support.patience import PATIENCE_SECONDS

_SOCKET_NAME = ".s.PGSQL.5432"


class Proxy:
    """Passes bytes on, until the client sends what ``lose_at`` names.

    Attributes:
        url: where the client finds it.
        lose_before, lose_after: a statement before which, or after which, the connection is lost, once;
            in the second case the server has answered, and the answer never gets to the client.
        refuse: how many further connections are closed as soon as they are made.
        connections: how many were made.
    """

    def __init__(self, server: URL, folder: Path) -> None:
        self.url = server.set(query={"host": str(folder)})
        self.lose_before: bytes | None = None
        self.lose_after: bytes | None = None
        self.refuse = 0
        self.connections = 0
        self._target = str(Path(str(server.query["host"])) / _SOCKET_NAME)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / _SOCKET_NAME))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                if self.refuse:
                    self.refuse -= 1
                    client.close()
                else:
                    threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            is_muted, answered = threading.Event(), threading.Event()
            back = threading.Thread(target=_pump, args=(server, client, is_muted, answered), daemon=True)
            back.start()
            with suppress(OSError):
                while (data := client.recv(1 << 16)) and self._pass_on(data, server, is_muted, answered):
                    pass
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join()

    def _pass_on(
        self, data: bytes, server: socket.socket, is_muted: threading.Event, answered: threading.Event
    ) -> bool:
        """Return whether the connection goes on."""
        if self.lose_before is not None and self.lose_before in data:
            self.lose_before = None
            return False
        if self.lose_after is not None and self.lose_after in data:
            self.lose_after = None
            is_muted.set()
            server.sendall(data)
            answered.wait(PATIENCE_SECONDS)
            return False
        server.sendall(data)
        return True


def _pump(
    source: socket.socket, target: socket.socket, is_muted: threading.Event, answered: threading.Event
) -> None:
    """Pass on what the server sends until it is muted; then note that it did answer, and drop it."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            if is_muted.is_set():
                answered.set()
                return
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(server_url: str) -> Iterator[Proxy]:
    """Yield a proxy in front of a server that listens on a socket of this machine."""
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="mpx-") as folder:
        proxy = Proxy(make_url(server_url), Path(folder))
        try:
            yield proxy
        finally:
            proxy.close()
