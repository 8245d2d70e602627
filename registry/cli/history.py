"""``history``: who changed what in the catalog, and when."""

from __future__ import annotations

import json

import click

from ...schemas.errors import NotInCatalog, UsageError
from ..catalog.records import Event
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import count, print_line, print_remark
from .parameters import complete_name, format_option, page_options, pass_registry, wide_option
from .tables import Column, print_table

_COLUMNS = (
    Column("WHEN"),
    Column("WHO", gives_way=3),
    Column("WHAT"),
    Column("OF", gives_way=2),
    Column("NAME"),
    Column("DETAILS", gives_way=1),
)


@click.command(
    "history",
    epilog=examples(
        "history", "history summarise", "history summarise --limit 5 --format json", "history --head"
    ),
)
@click.argument("name", required=False, shell_complete=complete_name)
@page_options
@click.option("--head", is_flag=True, help="Print only the digest that the history ends with.")
@wide_option
@format_option
@pass_registry
def command(
    registry: Registry, *, name: str | None, limit: int, after: str | None, head: bool, as_json: bool
) -> None:
    """Show the changes to one name, or to the whole catalog.

    The newest first.

    NAME is an adapter, a bundle or a base model, which need not be there any more, or `catalog` or `store`
    for what was done to one of them as a whole. Who did it is USER@HOST, or the value of METEORA_ACTOR,
    followed by the role on PostgreSQL.

    Keep the digest that `--head` prints elsewhere, and give it to `db check --head` later.
    """
    if head:
        if name is not None or after is not None:
            raise UsageError(
                "`--head` is of the whole history, expected neither a name nor `--after` with it"
            )
        _print_head(registry, as_json=as_json)
        return
    page = registry.catalog.history(name, limit=limit, after=after)
    if as_json:
        print_json({"events": page.items, "next": page.next})
        return
    if page.items:
        print_table(_COLUMNS, list(map(_row, page.items)), total=count(page.items, "event"))
    else:
        print_remark(
            "nothing was ever recorded" if name is None else f"nothing was ever recorded of `{name}`"
        )
    if page.next is not None:
        print_remark(f"there are more: --after {page.next}")


def _print_head(registry: Registry, *, as_json: bool) -> None:
    head = registry.catalog.history_head()
    if head is None:
        raise NotInCatalog("the history has no head: nothing was ever recorded")
    if as_json:
        print_json({"head": head.digest, "events": head.events})
        return
    print_line(head.digest)
    print_remark(f"the history has {head.events} events; keep this digest elsewhere, for `db check --head`")


def _row(event: Event) -> tuple[str, ...]:
    return (
        f"{event.at:%Y-%m-%d %H:%M:%S} UTC",
        event.actor if event.role is None else f"{event.actor} ({event.role})",
        event.action,
        event.subject,
        event.name if event.version is None else f"{event.name}@{event.version}",
        " ".join(f"{key}={_show(value)}" for key, value in sorted(event.details.items())) or "-",
    )


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
