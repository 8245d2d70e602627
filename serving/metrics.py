"""Counts and durations of one server, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ..schemas.names import PLAIN_BASE
from .answers import Routed

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: finished requests, by route and status; a client that left is status 499.
        prompt_tokens: tokens of prompts.
        answer_tokens: tokens of answers.
        waiting: prompts that wait for a batch; with engines, for a decision.
        running: prompts that are being answered; with engines, the requests that they have.
        decisions: prompts by who answered.
        abstentions: prompts that no member was sure enough for, and the base answered.
        engine_up: whether an engine gets requests, by its URL; of a router alone.
        engine_requests: requests that an engine has, by its URL; of a router alone.
        first_token_seconds: from the arrival of a request to the first token of its answer; with engines, of
            streams alone.
        answer_seconds: from the arrival of a request to its end.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "meteora_requests", "Finished requests", ["route", "status"], registry=self._registry
        )
        self.prompt_tokens = self._counter("meteora_prompt_tokens", "Tokens of prompts")
        self.answer_tokens = self._counter("meteora_answer_tokens", "Tokens of answers")
        self.waiting = Gauge("meteora_waiting", "Prompts that wait for a batch", registry=self._registry)
        self.running = Gauge("meteora_running", "Prompts that are being answered", registry=self._registry)
        self.engine_up = Gauge(
            "meteora_engine_up", "Whether an engine gets requests", ["engine"], registry=self._registry
        )
        self.engine_requests = Gauge(
            "meteora_engine_requests", "Requests that an engine has", ["engine"], registry=self._registry
        )
        self.decisions = Counter(
            "meteora_decisions", "Prompts by who answered", ["member", "forced"], registry=self._registry
        )
        self.abstentions = self._counter(
            "meteora_abstentions", "Prompts left to the base, since no member was sure enough"
        )
        self.first_token_seconds = self._histogram(
            "meteora_first_token_seconds", "From the arrival of a request to its first token"
        )
        self.answer_seconds = self._histogram(
            "meteora_answer_seconds", "From the arrival of a request to the end of its answer"
        )

    def watch_engine(self, url: str, is_up: Callable[[], bool], requests: Callable[[], int]) -> None:
        """Show whether an engine is up and how many requests it has, whenever the page is read."""
        self.engine_up.labels(url).set_function(is_up)
        self.engine_requests.labels(url).set_function(requests)

    def count_decision(self, routed: Routed) -> None:
        """Count who answers a prompt."""
        member = PLAIN_BASE if routed.member is None else routed.member
        self.decisions.labels(member, str(routed.forced).lower()).inc()
        if routed.member is None and not routed.forced:
            self.abstentions.inc()

    def page(self) -> bytes:
        """Return all of them as text."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)
