"""``history``: who changed what in the catalog, and when."""

from __future__ import annotations

import json

import click

from ..catalog.records import Event
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import print_remark, print_table
from .parameters import format_option, page_options, pass_registry


@click.command(
    "history", epilog=examples("history", "history summarise", "history summarise --limit 5 --format json")
)
@click.argument("name", required=False)
@page_options
@format_option
@pass_registry
def command(registry: Registry, *, name: str | None, limit: int, after: str | None, as_json: bool) -> None:
    """Show the changes to one name, or to the whole catalog.

    The newest first.

    NAME is an adapter, a bundle or a base model, which need not be there any more, or `catalog` or `store`
    for what was done to one of them as a whole. Who did it is USER@HOST, or the value of METEORA_ACTOR.
    """
    page = registry.catalog.history(name, limit=limit, after=after)
    if as_json:
        print_json({"events": page.items, "next": page.next})
        return
    if page.items:
        print_table(("WHEN", "WHO", "WHAT", "OF", "NAME", "DETAILS"), [_row(event) for event in page.items])
    else:
        print_remark("nothing was ever recorded" if name is None else f"nothing was ever recorded of {name}")
    if page.next is not None:
        print_remark(f"there are more: --after {page.next}")


def _row(event: Event) -> tuple[str, ...]:
    return (
        f"{event.at:%Y-%m-%d %H:%M:%S} UTC",
        event.actor,
        event.action,
        event.subject,
        event.name if event.version is None else f"{event.name}@{event.version}",
        " ".join(f"{key}={_show(value)}" for key, value in sorted(event.details.items())) or "-",
    )


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
