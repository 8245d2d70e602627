"""``search-hub``: adapters of a base on the Hub, with rank and size read from their headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...schemas.bundle import WEIGHTS_FILE
from ...schemas.errors import HubUnavailable, MeteoraError
from ...schemas.finding import Verdict
from ..download_limits import MAX_ADAPTER_FILE_BYTES
from ..hub.client import Hub
from ..hub.listing import Candidate, Listing
from .hub_adapters import check_sizes, inspect_on_hub


@dataclass(frozen=True, slots=True)
class Match:
    """One adapter, or a repository of which ``problem`` says why it could not be looked into.

    ``max_rank`` is None for an adapter without LoRA factors, ``size_bytes`` where there are no weights.
    """

    repository: str
    commit: str | None
    folder: str
    max_rank: int | None
    size_bytes: int | None
    verdict: Verdict | None
    problem: str | None
    place: tuple[Listing, Candidate] | None


def search(hub: Hub, base: str, *, limit: int) -> Iterator[Match]:
    """Every adapter in at most ``limit`` repositories that name this base, the most downloaded first.

    Of each only the list of files, the config and the header are fetched. One that cannot be read does
    not stop the others; a Hub that does not answer does.

    Raises:
        HubUnavailable: the Hub did not answer.
    """
    for repository in hub.find_adapters(base, limit=limit):
        try:
            listing = hub.list_files(repository, hub.resolve(repository))
            for candidate in listing.candidates():
                yield _look(hub, listing, candidate)
        except HubUnavailable:
            raise
        except MeteoraError as error:
            yield Match(repository, None, "", None, None, None, error.message, None)


def _look(hub: Hub, listing: Listing, candidate: Candidate) -> Match:
    # A file with a hole as large as the listed size is made for the inspection.
    check_sizes(candidate, MAX_ADAPTER_FILE_BYTES)
    inspection = inspect_on_hub(hub, listing, candidate).inspection
    weights = candidate.files.get(WEIGHTS_FILE)
    return Match(
        repository=listing.repository,
        commit=listing.commit,
        folder=candidate.folder,
        max_rank=inspection.inventory.max_rank if inspection.inventory else None,
        size_bytes=weights.size_bytes if weights else None,
        verdict=inspection.verdict,
        problem=None,
        place=(listing, candidate),
    )
