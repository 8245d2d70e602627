from __future__ import annotations

from collections.abc import Callable

import pytest

from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.policy import Policy
from meteora_registry.schemas.recipe import Recipe
from meteora_registry.schemas.settings import ProjectSettings
from meteora_registry.schemas.toml import MAX_TOML_BYTES, MAX_TOML_DEPTH, MAX_TOML_VALUES, load_toml

DEEP = f"`x` nests deeper than {MAX_TOML_DEPTH} levels"
MANY = f"`x` has more than {MAX_TOML_VALUES} values"
LONG = "`x` holds a number of more than 20 digits, which no field takes"
READERS = [
    pytest.param(Recipe.from_toml, id="recipe"),
    pytest.param(Policy.from_toml, id="policy"),
    pytest.param(ProjectSettings.from_toml, id="project's settings"),
]


def load(text: str) -> object:
    return load_toml(text.encode(), what="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(".".join("a" * 100_000) + " = 1", DEEP, id="dotted key"),
        pytest.param(" . ".join("a" * 9) + " = 1", DEEP, id="dotted key with spaces"),
        pytest.param(".".join(["'a.b'", '"a"'] * 5) + " = 1", DEEP, id="dotted key of strings"),
        pytest.param("[" + ".".join("a" * 9) + "]", DEEP, id="table"),
        pytest.param("[[" + ".".join("a" * 9) + "]]", DEEP, id="array of tables"),
        pytest.param("a = " + "[" * 200_000, DEEP, id="lists"),
        pytest.param("a = " + "{ a = " * 100_000, DEEP, id="inline tables"),
        pytest.param('a = """""" \n' + ".".join("a" * 9) + " = 1", DEEP, id="behind an empty string"),
        pytest.param('a = """x"""""\n' + ".".join("a" * 9) + " = 1", DEEP, id="behind five quotes"),
        pytest.param("# '''\n" + ".".join("a" * 9) + " = 1", DEEP, id="behind a comment"),
        pytest.param("a = '\\'\n" + ".".join("a" * 9) + " = 1", DEEP, id="behind a literal backslash"),
        pytest.param("\n".join(f"k{number} = 1" for number in range(60_000)), MANY, id="keys"),
        pytest.param("\n".join(f"[k{number}]" for number in range(60_000)), MANY, id="tables"),
        pytest.param("a = [" + "1," * 60_000 + "]", MANY, id="entries"),
        pytest.param("a = " + "9" * 5000, LONG, id="5000 digits"),
        pytest.param("a = -" + "9" * 21, LONG, id="21 digits"),
        pytest.param("a = [0x" + "f" * 100_000 + "]", LONG, id="hexadecimal"),
        pytest.param("a = nan", "`x` is not TOML: `nan` is beyond the range of a number", id="nan"),
        pytest.param("a = 1e999", "`x` is not TOML: `1e999` is beyond the range of a number", id="overflow"),
        pytest.param("a = [1979-05-27]", "`x` holds a date or a time, which no field takes", id="date"),
        pytest.param("a = 07:32:00", "`x` holds a date or a time, which no field takes", id="time"),
    ],
)
def test_load_toml_refuses_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        load(text)
    assert str(caught.value) == message


def test_load_toml_refuses_other_bytes_than_utf8_and_too_many_of_them() -> None:
    with pytest.raises(InvalidDocument, match="`x` is not UTF-8 text: byte 2 cannot be decoded"):
        load_toml(b"# \xff", what="x")
    with pytest.raises(InvalidDocument, match="`x` has more than 1048576 bytes"):
        load_toml(b"#" * (MAX_TOML_BYTES + 1), what="x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("a.b.c.d.e.f.g.h = 1", 1, id="eight levels"),
        pytest.param("a = 'x." + "y." * 50 + "'", "x." + "y." * 50, id="dots in a literal string"),
        pytest.param(
            'a = "[[[[[[[[[[ \\" . . . . . . . . . ."', '[[[[[[[[[[ " . . . . . . . . . .', id="string"
        ),
        pytest.param("a = 1 # " + "[{.a" * 50, 1, id="comment"),
        pytest.param('a = """\n' + "[" * 20 + '\\""""', "[" * 20 + '"', id="several lines"),
        pytest.param("a = '''" + "{" * 20 + "'''''", "{" * 20 + "''", id="several literal lines"),
    ],
)
def test_load_toml_counts_neither_strings_nor_comments(text: str, value: object) -> None:
    found = load(text)
    while isinstance(found, dict):
        (found,) = found.values()
    assert found == value


@pytest.mark.parametrize("read", READERS)
def test_hand_written_documents_are_bounded_before_they_are_parsed(
    read: Callable[..., object],
) -> None:
    with pytest.raises(InvalidDocument, match=f"^{DEEP}$"):
        read(b".".join([b"a"] * 100_000) + b" = 1", what="x")
    with pytest.raises(InvalidDocument, match=f"^{LONG}$"):
        read(b"meteora_policy = " + b"9" * 5000, what="x")
