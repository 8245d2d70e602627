"""Requests that are refused: status, form of the error, and field at fault; the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import ValidationError

from meteora_registry.runtime import LoadedBundle
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.requests import ChatForm, CompletionForm, Form
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.patience import PATIENCE_SECONDS
from support.serving import KEY, NAME, Serving, load_served, post, serving_bundle

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TURN = {"role": "user", "content": "w1"}


def refusal(answer: httpx2.Response) -> tuple[int, str | None, str | None]:
    """Return status, field and code of an error, after a look at its form."""
    body = answer.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 500 and "Traceback" not in error["message"]
    assert error["type"] == {401: "authentication_error", 429: "rate_limit_error"}.get(
        answer.status_code, "server_error" if answer.status_code >= 500 else "invalid_request_error"
    )
    return answer.status_code, error["param"], error["code"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        pytest.param(COMPLETIONS, {"model": "other"}, (404, "model", "model_not_found"), id="model"),
        pytest.param(COMPLETIONS, {"model": f"{NAME}/none"}, (404, "model", "model_not_found"), id="member"),
        pytest.param(COMPLETIONS, {"model": 3}, (400, "model", None), id="model of another type"),
        pytest.param(COMPLETIONS, {"prompt": ""}, (400, "prompt", None), id="no tokens"),
        pytest.param(COMPLETIONS, {"prompt": []}, (400, "prompt", None), id="no prompts"),
        pytest.param(COMPLETIONS, {"prompt": [[]]}, (400, "prompt", None), id="a prompt of no tokens"),
        pytest.param(COMPLETIONS, {"prompt": [1, 64]}, (400, "prompt", None), id="unknown token"),
        pytest.param(COMPLETIONS, {"prompt": [-1]}, (400, "prompt", None), id="negative token"),
        pytest.param(COMPLETIONS, {"prompt": [10**4000]}, (400, "prompt", None), id="token beyond any"),
        pytest.param(COMPLETIONS, {"prompt": ["w1"] * 65}, (400, "prompt", None), id="many prompts"),
        pytest.param(COMPLETIONS, {"prompt": ["w1", 3]}, (400, "prompt", None), id="mixed prompts"),
        pytest.param(
            COMPLETIONS,
            {"prompt": "w1 " * 64, "max_tokens": 1},
            (400, "prompt", "context_length_exceeded"),
            id="prompt beyond the context",
        ),
        pytest.param(
            COMPLETIONS,
            {"prompt": "w1 " * 60, "max_tokens": 5},
            (400, "prompt", "context_length_exceeded"),
            id="answer beyond the context",
        ),
        pytest.param(COMPLETIONS, {"max_tokens": 0}, (400, "max_tokens", None), id="no answer"),
        pytest.param(COMPLETIONS, {"max_tokens": 1025}, (400, "max_tokens", None), id="long answer"),
        pytest.param(
            CHAT,
            {"messages": [TURN], "max_completion_tokens": 1025},
            (400, "max_completion_tokens", None),
            id="long answer of a chat",
        ),
        pytest.param(COMPLETIONS, {"max_tokens": 10**4000}, (400, "max_tokens", None), id="longest number"),
        pytest.param(COMPLETIONS, {"max_tokens": "4"}, (400, "max_tokens", None), id="number as text"),
        pytest.param(COMPLETIONS, {"temperature": 3}, (400, "temperature", None), id="temperature"),
        pytest.param(COMPLETIONS, {"temperature": True}, (400, "temperature", None), id="truth as number"),
        pytest.param(COMPLETIONS, {"top_p": 0}, (400, "top_p", None), id="top_p"),
        pytest.param(COMPLETIONS, {"seed": 2**63}, (400, "seed", None), id="seed"),
        pytest.param(COMPLETIONS, {"stop": ["w"] * 17}, (400, "stop", None), id="many stops"),
        pytest.param(COMPLETIONS, {"stop": ""}, (400, "stop", None), id="empty stop"),
        pytest.param(COMPLETIONS, {"n": 2}, (400, "n", "unsupported_field"), id="n"),
        pytest.param(COMPLETIONS, {"best_of": 2}, (400, "best_of", "unsupported_field"), id="best_of"),
        pytest.param(COMPLETIONS, {"logprobs": 0}, (400, "logprobs", "unsupported_field"), id="logprobs"),
        pytest.param(COMPLETIONS, {"suffix": "w3"}, (400, "suffix", "unsupported_field"), id="suffix"),
        pytest.param(
            COMPLETIONS, {"logit_bias": {"3": 1}}, (400, "logit_bias", "unsupported_field"), id="logit_bias"
        ),
        pytest.param(
            COMPLETIONS,
            {"presence_penalty": 0.5},
            (400, "presence_penalty", "unsupported_field"),
            id="penalty",
        ),
        pytest.param(COMPLETIONS, {"top_k": 5}, (400, "top_k", "unknown_field"), id="unknown field"),
        pytest.param(COMPLETIONS, {"messages": [TURN]}, (400, "messages", "unknown_field"), id="route"),
        pytest.param(CHAT, {"messages": []}, (400, "messages", None), id="no turns"),
        pytest.param(CHAT, {}, (400, "messages", None), id="no messages"),
        pytest.param(CHAT, {"messages": [{"role": "user"}]}, (400, "messages", None), id="no content"),
        pytest.param(
            CHAT, {"messages": [TURN | {"role": "tool"}]}, (400, "messages", None), id="role of a tool"
        ),
        pytest.param(
            CHAT,
            {"messages": [TURN | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            (400, "messages", None),
            id="image",
        ),
        pytest.param(
            CHAT,
            {"messages": [TURN], "tools": [{"type": "function"}]},
            (400, "tools", "unsupported_field"),
            id="tools",
        ),
        pytest.param(
            CHAT,
            {"messages": [TURN], "response_format": {"type": "json_object"}},
            (400, "response_format", "unsupported_field"),
            id="response format",
        ),
    ],
)
def test_request_is_refused_by_the_field_at_fault(
    served: Serving, path: str, body: dict[str, Any], expected: tuple[int, str | None, str | None]
) -> None:
    assert refusal(post(served, path, **body)) == expected


@pytest.mark.parametrize(
    ("form", "body"),
    [
        pytest.param(CompletionForm, {"prompt": [None] * 10_000}, id="prompts"),
        pytest.param(CompletionForm, {"prompt": [[None]] * 10_000}, id="prompts of tokens"),
        pytest.param(CompletionForm, {"prompt": "w1", "stop": [None] * 10_000}, id="stops"),
        pytest.param(ChatForm, {"messages": [{}] * 10_000}, id="turns"),
        pytest.param(ChatForm, {"messages": [TURN | {"content": [{}] * 10_000}]}, id="parts"),
        pytest.param(ChatForm, {"messages": [TURN | dict.fromkeys(map(str, range(10_000)), 1)]}, id="fields"),
    ],
)
def test_request_of_many_faults_is_refused_at_the_first(form: type[Form], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        form.model_validate({"model": NAME} | body)
    assert refused.value.error_count() <= 4, "one for each type that a prompt may have"


def test_first_unknown_field_is_named(served: Serving) -> None:
    for fields in ({"first": 1, "second": 2}, {"second": 2, "first": 1}):
        assert refusal(post(served, **fields)) == (400, next(iter(fields)), "unknown_field")


def test_fields_that_change_nothing_are_accepted(served: Serving) -> None:
    plain = post(served).json()["choices"]
    neutral = {"n": 1, "best_of": 1, "presence_penalty": 0, "logit_bias": {}, "user": "me", "logprobs": None}
    assert post(served, **neutral).json()["choices"] == plain
    turns = {"messages": [TURN], "model": NAME}
    more = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "metadata": {"a": "b"}}
    assert (
        post(served, CHAT, **turns, **more).json()["choices"] == post(served, CHAT, **turns).json()["choices"]
    )


def test_an_answer_can_be_sent_back_as_a_turn(served: Serving) -> None:
    message = post(served, CHAT, messages=[TURN]).json()["choices"][0]["message"]
    sent_back = message | {"refusal": None, "tool_calls": None}
    found = post(served, CHAT, messages=[TURN, sent_back, TURN])
    assert found.status_code == 200, found.text


def send(served: Serving, content: Any, path: str = COMPLETIONS, **headers: str) -> httpx2.Response:
    """Return the answer to a body of bytes."""
    headers = {"content-type": "application/json"} | headers
    return httpx2.post(f"{served.url}{path}", content=content, headers=headers, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"nul", b'{"model": "\xff"}', b"[" * 100_000, b"9" * 5000, b"\x00"],
    ids=["empty", "open", "word", "not UTF-8", "nested", "long number", "zero"],
)
def test_body_that_is_not_json_is_refused(served: Serving, content: bytes) -> None:
    assert refusal(send(served, content)) == (400, None, "invalid_json")


def test_half_a_character_is_refused(served: Serving) -> None:
    content = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
    assert refusal(send(served, content, CHAT)) == (400, None, "invalid_json")


@pytest.mark.parametrize("content", [b"[]", b'"w1"', b"null"])
def test_body_that_is_not_an_object_is_refused(served: Serving, content: bytes) -> None:
    assert refusal(send(served, content)) == (400, None, "invalid_json")


def in_chunks(size: int) -> Iterator[bytes]:
    """Yield a body whose length is not announced."""
    yield from (b" " * 65536 for _ in range(size // 65536))


@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "chunked"])
def test_large_body_is_refused_after_it_was_sent(served: Serving, is_announced: bool) -> None:
    size = 10 << 20
    content = b" " * size if is_announced else in_chunks(size)
    assert refusal(send(served, content)) == (413, None, "body_too_large")
    assert post(served).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_body_that_a_page_of_another_site_could_send_is_refused(served: Serving, kind: str) -> None:
    answer = send(served, b'{"model": "tiny", "prompt": "w1"}', **{"content-type": kind})
    assert refusal(answer) == (415, None, "unsupported_media")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.example", "[", "x"])
@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{NAME}", "/metrics", COMPLETIONS])
def test_page_whose_name_leads_to_this_machine_is_refused(served: Serving, path: str, host: str) -> None:
    ask = httpx2.post if path == COMPLETIONS else httpx2.get
    assert refusal(ask(f"{served.url}{path}", headers={"host": host})) == (403, None, "host_not_allowed")


@pytest.mark.parametrize("host", ["LOCALHOST:1", "a.localhost", "127.0.0.1", "[::1]:8000", "192.168.0.7"])
def test_address_and_name_of_this_machine_are_answered(served: Serving, host: str) -> None:
    assert httpx2.get(f"{served.url}/v1/models", headers={"host": host}).status_code == 200


def test_host_does_not_matter_with_a_key(locked: Serving) -> None:
    headers = {"host": "models.example", "authorization": f"Bearer {KEY}"}
    assert httpx2.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


def test_paths_and_methods_that_are_not_there_are_refused_in_the_same_form(served: Serving) -> None:
    for path in ("/v1/other", f"{COMPLETIONS}/", "//v1/models", "/%0d%0ax", ""):
        assert refusal(httpx2.get(f"{served.url}{path}")) == (404, None, "not_found")
    answer = httpx2.get(f"{served.url}{CHAT}")
    assert refusal(answer) == (405, None, None)
    assert answer.headers["allow"] == "POST"


@pytest.fixture(scope="module")
def locked(loaded: LoadedBundle) -> Iterator[Serving]:
    """A server that asks for a key."""
    with serving_bundle(loaded, key=KEY) as found:
        yield found


@pytest.mark.parametrize("given", [None, f"Bearer {KEY}x", "Bearer", "Bearer \xe9", f"Basic {KEY}"])
@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{NAME}", "/metrics", COMPLETIONS])
def test_request_without_the_key_is_refused(locked: Serving, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    ask = httpx2.post if path == COMPLETIONS else httpx2.get
    answer = ask(f"{locked.url}{path}", headers=headers)
    assert refusal(answer) == (401, None, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_request_with_the_key_is_answered_and_health_needs_none(locked: Serving) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": NAME, "prompt": "w1", "max_tokens": 1}
    assert httpx2.post(f"{locked.url}{COMPLETIONS}", headers=headers, json=body).status_code == 200
    assert httpx2.get(f"{locked.url}/health").json() == {"status": "ok"}
    shown = httpx2.get(f"{locked.url}/health", headers={"authorization": f"Bearer {KEY}"}).json()
    assert shown == {"status": "ok", "waiting": 0, "running": 0}


def talk(served: Serving, sent: bytes) -> bytes:
    """Return all that a server sends to a client that sends this and then waits."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


@pytest.fixture(scope="module")
def impatient(loaded: LoadedBundle) -> Iterator[Serving]:
    """A server that waits half a second for a request."""
    with serving_bundle(loaded, Limits(batches=1, read_seconds=0.5)) as found:
        yield found


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_client_that_sends_no_whole_header_is_left(impatient: Serving, sent: bytes) -> None:
    assert talk(impatient, sent) == b""
    assert post(impatient).status_code == 200


def test_client_that_sends_a_second_header_slowly_is_left(impatient: Serving) -> None:
    found = talk(impatient, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea")
    assert found.count(b"HTTP/1.1 200 OK") == 1


def test_client_that_sends_its_body_slowly_is_told(impatient: Serving) -> None:
    header = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    found = talk(impatient, f"{header}content-length: 100\r\n\r\n{{".encode())
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "request_timeout"


@pytest.mark.parametrize(
    "sent",
    [
        b"what\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        # Without an end: a header that arrives whole is answered, however long, and the connection is kept.
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 70_000,
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n",
    ],
    ids=["not HTTP", "no host", "long header", "upgrade"],
)
def test_malformed_request_writes_nothing_into_the_log(
    impatient: Serving, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    with suppress(ConnectionResetError):
        assert talk(impatient, sent).startswith(b"HTTP/1.1 ")
    assert post(impatient).status_code == 200
    assert not caplog.records


def test_client_that_goes_on_with_a_body_that_was_answered_is_left(impatient: Serving) -> None:
    address = urlsplit(impatient.url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n")
        with connection.makefile("rb") as received:
            assert received.readline() == b"HTTP/1.1 200 OK\r\n"
            # The time for which an idle connection is kept ends with any byte.
            connection.sendall(b"x")
            received.read()


def test_client_that_takes_no_answers_is_left(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded, Limits(batches=1, send_seconds=0.5)) as served:
        address = urlsplit(served.url)
        with (
            socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as connection,
            pytest.raises((BrokenPipeError, ConnectionResetError)),
        ):
            while True:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100)
        assert post(served).status_code == 200


def test_base_without_a_chat_template_answers_completions_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    loaded = load_served(tmp_path_factory.mktemp("plain"), template=None)
    with serving_bundle(loaded) as plain:
        answer = post(plain, CHAT, messages=[TURN])
        assert refusal(answer) == (400, "messages", "chat_template")
        assert "has no chat template" in answer.json()["error"]["message"]
        assert post(plain).status_code == 200


def test_template_that_refuses_a_conversation_is_quoted(tmp_path_factory: pytest.TempPathFactory) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}w1"
    loaded = load_served(tmp_path_factory.mktemp("refuses"), template=refuses)
    with serving_bundle(loaded) as found:
        answer = post(found, CHAT, messages=[TURN | {"role": "developer"}])
        assert refusal(answer) == (400, "messages", "chat_template")
        assert "no system" in answer.json()["error"]["message"]
        assert post(found, CHAT, messages=[TURN]).status_code == 200
