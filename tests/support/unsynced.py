"""Writing without waiting for the disk: a test takes no power away, and a process that dies loses nothing."""

from __future__ import annotations

import os
import sqlite3

from sqlalchemy import Engine, event


def wait_for_no_disk() -> None:
    """Let this process leave it to the kernel when files and SQLite's databases get to the disk.

    A file that is published and a transaction wait several milliseconds each, in which a worker idles.
    """
    vars(os)["fsync"] = lambda descriptor: None
    if not event.contains(Engine, "connect", _leave_it_to_the_kernel):
        event.listen(Engine, "connect", _leave_it_to_the_kernel)


def _leave_it_to_the_kernel(connection: object, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")
