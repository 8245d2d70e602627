"""The licence on the card, from those of the members."""

from __future__ import annotations

import pytest

from meteora_registry.fuser.licenses import combine_licenses

NOT_KNOWN = "The licence of 1 of 2 members is not known, so that of the whole is not known either."


@pytest.mark.parametrize(
    ("licenses", "identifier", "name", "statement"),
    [
        (["MIT", "mit"], "mit", None, "Every member is under `mit`."),
        (
            ["mit", "cc-by-nc-4.0", "llama3.1"],
            "cc-by-nc-4.0",
            None,
            "The members' licences differ (`cc-by-nc-4.0`, `llama3.1`, `mit`). The most restrictive: "
            "`cc-by-nc-4.0` (no commercial use).",
        ),
        (
            ["gpl-3.0", "mpl-2.0"],
            "other",
            "several",
            "The members' licences differ (`gpl-3.0`, `mpl-2.0`). The most restrictive: `gpl-3.0`, `mpl-2.0` "
            "(share alike).",
        ),
        (["mit", None], "unknown", None, f"{NOT_KNOWN} The others: `mit`."),
        (["mit", "unknown"], "unknown", None, f"{NOT_KNOWN} The others: `mit`."),
        (
            [None, " "],
            "unknown",
            None,
            "The licence of every member is not known, so that of the whole is not known either.",
        ),
        (["My Own Terms 1.0"], "other", "my-own-terms-1.0", "Every member is under `my own terms 1.0`."),
        (
            ["mit", "ours"],
            "other",
            "several",
            "The members' licences differ (`mit`, `ours`); the name does not show how restrictive `ours` is.",
        ),
        (["`x`](http://a)|"], "other", "x-http-a", "Every member is under `?x???http???a??`."),
    ],
    ids=[
        "same",
        "ordered",
        "equally strict",
        "one unknown",
        "said unknown",
        "all",
        "own",
        "unranked",
        "markup",
    ],
)
def test_the_most_restrictive_is_named_and_unknown_stays_unknown(
    licenses: list[str | None], identifier: str, name: str | None, statement: str
) -> None:
    combined = combine_licenses(licenses)
    assert (combined.identifier, combined.name, combined.statement) == (identifier, name, statement)
