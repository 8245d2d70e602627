"""The limits of a server, which keep one client from taking what the others need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of requests, queues, batches and times.

    Attributes:
        max_body_bytes: of a request.
        max_prompts: texts in one request of `/v1/completions`.
        max_new_tokens: the longest answer that a request may ask for.
        max_waiting: prompts that wait for a batch; further ones are refused with 429.
        max_batch: prompts that are answered together.
        max_batch_tokens: tokens of their prompts together, padding included; a longer prompt is alone.
        batches: batches that are computed at a time, so that a short answer need not wait for a long one.
        max_connections: connections that are open at a time.
        read_seconds: for the header of a request, for its body, and for the rest of one that was answered.
        answer_seconds: from the arrival of a request to the end of its answer.
        grace_seconds: for what runs when the server is stopped.
        send_seconds: for a client to take an answer, or a part of a stream.
    """

    max_body_bytes: int = 1 << 20
    max_prompts: int = 64
    max_new_tokens: int = 1024
    max_waiting: int = 256
    max_batch: int = 8
    max_batch_tokens: int = 1 << 14
    batches: int = 4
    max_connections: int = 1024
    read_seconds: float = 10.0
    answer_seconds: float = 600.0
    grace_seconds: float = 30.0
    send_seconds: float = 30.0
