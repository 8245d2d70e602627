"""Every fault that is tried against the Hub's client: the action, the message, and the outcome.

``docs/hub-faults.md`` has the same list as a table, and a test holds the two together. What a Hub does only
if it is hostile is in ``hub_hostile``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from support.hub import READ_TOKEN, LoopbackHub

NOTHING = "nothing"
ALL = "the adapter, catalogued"


@dataclass(frozen=True)
class Case:
    """A fault on ``add org/legal`` or ``push legal org/mine``.

    ``said`` is the message, with ``COMMIT`` for a commit's id and ``HASH`` for the short ones; ``left``
    what is in the store and the catalog afterwards.
    """

    name: str
    arrange: Callable[[LoopbackHub], object]
    said: str
    code: int
    left: str = NOTHING
    command: tuple[str, ...] = ("add", "org/legal")
    environment: dict[str, str] = field(default_factory=dict)
    second_run_succeeds: bool = True
    # Run first, in a process of its own.
    prelude: str = ""

    @property
    def row(self) -> str:
        """The row of the table in the documentation."""
        then = "succeeds" if self.second_run_succeeds else "the same"
        return f"| {self.name} | {self.said} | {self.code} | {self.left} | {then} |"


def _status(method: str, pattern: str, status: int, **facts: object) -> Callable[[LoopbackHub], object]:
    return lambda hub: hub.fault(method, pattern, status=status, **facts)  # type: ignore[arg-type]  # as given


def _gate(hub: LoopbackHub) -> None:
    hub.repositories["org/legal"].gated = True


def _push_in_between(hub: LoopbackHub) -> None:
    hub.create("org/mine")
    hub.fault(
        "POST", "/commit/", action="call", do=lambda: hub.push("org/mine", {"README.md": b"# Theirs\n"})
    )


def _nothing(hub: LoopbackHub) -> None:
    pass


MODEL = "^/api/models/org/legal$"
PUSH = ("push", "legal", "org/mine")

CASES = (
    Case(
        "a token that is not valid (401)",
        _nothing,
        "the Hub does not accept the token for `org/legal` (401)",
        1,
        environment={"HF_TOKEN": "hf_" + "0" * 34},
    ),
    Case(
        "no permission (403)",
        _status("GET", "/tree/", 403),
        "the Hub does not allow this for `org/legal@COMMIT` (403)",
        1,
    ),
    Case(
        "no such repository, or a private one (404)",
        _nothing,
        "the Hub has no repository `org/nothing`, or none that you may see (404)",
        1,
        command=("add", "org/nothing"),
        second_run_succeeds=False,
    ),
    Case(
        "no such revision (404)",
        _nothing,
        "`org/legal` has no revision `v9` (404)",
        1,
        command=("add", "org/legal@v9"),
        second_run_succeeds=False,
    ),
    Case(
        "a gated repository (403)",
        _gate,
        "`org/legal` is gated: its owner decides who may read it (403)",
        1,
        environment={"HF_TOKEN": READ_TOKEN},
    ),
    Case(
        "busy once, with `Retry-After: 1` (429)",
        _status("GET", MODEL, 429, headers={"Retry-After": "1"}),
        "the Hub is busy (429); asking again in 1 seconds",
        0,
        ALL,
    ),
    Case(
        "busy, with `Retry-After: 600` (429)",
        _status("GET", MODEL, 429, headers={"Retry-After": "600"}, times=99),
        "the Hub limits how often it may be asked (429) and asks to wait 600 seconds; `org/legal` was not "
        "fetched or changed",
        2,
    ),
    Case(
        "busy throughout a download (429)",
        _status("HEAD", "/resolve/", 429, headers={"Retry-After": "0"}, times=99),
        "the Hub limits how often it may be asked (429) and asks to wait 0 seconds; `org/legal@COMMIT` was "
        "not fetched or changed",
        2,
    ),
    Case(
        "a failing server, once (503)",
        _status("GET", MODEL, 503),
        "the Hub did not answer as it should; asking again in 1 seconds",
        0,
        ALL,
    ),
    Case(
        "a failing server, throughout (503)",
        _status("GET", MODEL, 503, times=99),
        "the Hub failed for `org/legal` (503)",
        2,
    ),
    Case(
        "an answer that is not from a Hub",
        _status("GET", MODEL, 200, body=b"<html>Please log in to this network</html>", times=99),
        "the Hub's answer about `org/legal` cannot be understood: JSONDecodeError: Expecting value: line 1 "
        "column 1 (char 0)",
        2,
    ),
    Case(
        "a connection cut within an answer, once",
        lambda hub: hub.fault("GET", "/tree/", action="cut", after_bytes=20),
        "Retrying in 1s [Retry 1/5].",
        0,
        ALL,
    ),
    Case(
        "a connection cut within the weights",
        lambda hub: hub.fault("GET", "^/storage/", action="cut", after_bytes=1500, skip=1),
        "Trying to resume download...",
        0,
        ALL,
    ),
    Case(
        "a body that does not match its ETag",
        lambda hub: hub.fault("GET", "^/storage/", action="wrong_body", skip=1),
        "`adapter_model.safetensors` of `org/legal@COMMIT` came with other bytes than the Hub lists, and was "
        "not kept",
        1,
    ),
    Case(
        "another operation under way (409)",
        _status("POST", "/commit/", 409),
        "another operation on `org/mine` is under way (409)",
        1,
        "the repository as it was",
        PUSH,
    ),
    Case(
        "another push in between (412)",
        _push_in_between,
        "another push to `org/mine` came in between: it was at `HASH` and is at `HASH`; nothing of this push "
        "was committed",
        1,
        "the repository as they left it",
        PUSH,
    ),
    Case(
        "a failing server at the commit, once (500)",
        _status("POST", "/commit/", 500),
        "pushed: org/mine@COMMIT as meteora-HASH: 3 files, ",
        0,
        "one commit and its tag",
        PUSH,
    ),
    Case(
        "a failing server at the upload, once (500)",
        _status("PUT", "^/storage/", 500),
        "pushed: org/mine@COMMIT as meteora-HASH: 3 files, ",
        0,
        "one commit and its tag",
        PUSH,
    ),
)
