"""Recipes: every key of the page, the file that a fuse writes, and the quotation in a bundle's card."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from meteora_registry.schemas.recipe import Recipe, RecipeMember
from support.pages import example_of
from support.program import Run
from support.small_adapters import make_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "recipe.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home, and two versions of `legal` and one of `medical` to add to its catalog."""
    folder = tmp_path_factory.mktemp("workplace")
    for seed, name in enumerate(("legal", "legal-2", "medical")):
        make_adapter(folder / "adapters" / name, seed=seed)
    return folder


@pytest.fixture
def catalogued(run: Run) -> Run:
    """The command line where both are catalogued."""
    for folder, name in (("legal", "legal"), ("legal-2", "legal"), ("medical", "medical")):
        assert run("add", f"adapters/{folder}", "--name", name, "--base", "org/base-model").returncode == 0
    return run


def planned(run: Run, folder: Path, text: str) -> dict[str, object]:
    """Return the plan of a recipe as JSON."""
    (folder / "recipe.toml").write_text(text)
    result = run("fuse", "--recipe", folder / "recipe.toml", "--dry-run", "--format", "json")
    assert result.returncode == 0, result.stderr
    plan: dict[str, object] = json.loads(result.stdout)
    return plan


def test_examples_of_the_page_are_planned_as_they_are_written(catalogued: Run, tmp_path: Path) -> None:
    members = planned(catalogued, tmp_path, example_of("docs/formats/recipe.md", "shortest"))["members"]
    assert isinstance(members, list)
    assert [(each["name"], each["adapter"]) for each in members] == [
        ("legal", "legal@2"),
        ("medical", "medical@1"),
    ]
    text = example_of("docs/formats/recipe.md", "all")
    # The folder is the reader's own.
    plan = planned(catalogued, tmp_path, text.replace('base_folder = "./base"\n', ""))
    stated = tomllib.loads(text)
    for key in ("base", "base_revision", "top_k", "temperature", "gate", "seed", "with_experts"):
        assert plan[key] == stated[key], key
    assert isinstance(plan["members"], list)
    assert (plan["dtype"], plan["members"][1]["name"]) == ("BF16", "medicine")


def test_page_has_every_key_in_its_table_and_in_its_example() -> None:
    keys = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert keys == list(Recipe.model_fields)
    assert tomllib.loads(example_of("docs/formats/recipe.md", "all")).keys() == set(keys)


def test_written_recipe_gives_the_same_bundle_later(catalogued: Run, workplace: Path) -> None:
    options = ["--top-k", "1", "--base", "org/base-model"]
    fused = catalogued("fuse", "legal", "medical@1", *options, "--out", "one", "--write-recipe", "one.toml")
    assert fused.returncode == 0, fused.stderr
    assert fused.stderr.endswith("the recipe is in `one.toml`\n")
    assert (workplace / "one.toml").read_text() == (
        'meteora_recipe = 1\nmembers = [\n    "legal@2",\n    "medical@1",\n]\n'
        'base = "org/base-model"\ntop_k = 1\n'
    )
    assert catalogued("add", "adapters/medical", "--name", "legal").returncode == 0
    again = catalogued("fuse", "--recipe", "one.toml", "--out", "two", "--write-recipe", "one.toml")
    assert again.returncode == 0, again.stderr
    for name in ("adapter_model.safetensors", "meteora_manifest.json", "README.md"):
        assert (workplace / "two" / name).read_bytes() == (workplace / "one" / name).read_bytes()

    card = (workplace / "one" / "README.md").read_text()
    quoted = re.search(r"## Recipe\n.*?```toml\n(.*?)```", card, re.DOTALL)
    assert quoted is not None
    assert tomllib.loads(quoted[1]) == {
        "meteora_recipe": 1,
        "members": ["legal", "medical"],
        "base": "org/base-model",
        "top_k": 1,
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param("taken.toml", "`taken.toml` exists already", id="another file"),
        pytest.param("link.toml", "`link.toml` exists already", id="a link"),
        pytest.param("adapters", "`adapters` is a folder, expected the name of a file", id="a folder"),
        pytest.param("no/x.toml", "cannot write `no/x.toml`: there is no folder `no`", id="nowhere"),
        pytest.param("./never", "`--out` and `--write-recipe` both name `never`", id="the bundle"),
    ],
)
def test_recipe_that_cannot_be_written_stops_the_fuse_before_it_begins(
    catalogued: Run, workplace: Path, target: str, message: str
) -> None:
    (workplace / "taken.toml").write_text("mine")
    if not os.path.lexists(workplace / "link.toml"):
        (workplace / "link.toml").symlink_to("elsewhere.toml")
    result = catalogued("fuse", "legal", "medical", "--out", "never", "--write-recipe", target)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (workplace / "never").exists()
    assert not (workplace / "elsewhere.toml").exists()
    assert (workplace / "taken.toml").read_text() == "mine"


def test_no_recipe_is_written_where_nothing_was_fused(catalogued: Run, workplace: Path) -> None:
    refused = catalogued("fuse", "legal", "legal@2", "--out", "never", "--write-recipe", "new.toml")
    assert refused.returncode == 1
    dry = catalogued("fuse", "legal", "medical", "--dry-run", "--write-recipe", "new.toml")
    assert dry.returncode == 2
    assert "`--dry-run` writes nothing, found also `--write-recipe`" in dry.stderr
    assert not (workplace / "new.toml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("members = [5]", "members.0: expected an adapter such as `legal@2`", id="number"),
        pytest.param(
            'members = [{adaptor = "legal"}]',
            "members.0.adaptor: there is no such key, did you mean `adapter`?\n",
            id="key of a member",
        ),
        pytest.param("members = []", "members: tuple should have at least 1 item", id="empty"),
        pytest.param("top_k = 2", "breaks its schema: members: field required\n", id="no members"),
        pytest.param('members = ["legal"', "is not TOML: Unclosed array (at end of document)", id="no TOML"),
    ],
)
def test_malformed_recipe_is_refused_with_an_example(
    catalogued: Run, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    result = catalogued("fuse", "--recipe", tmp_path / "recipe.toml", "--dry-run")
    assert result.returncode == 2
    assert message in result.stderr
    assert 'hint: the shortest recipe is `members = ["legal@2", "medical"]`' in result.stderr


@pytest.mark.parametrize(
    ("member", "code", "message", "hint"),
    [
        pytest.param(
            "./adapters/legal",
            2,
            "`./adapters/legal` is a folder, expected a catalogued adapter such as `legal@2`",
            "add it first: `meteora-registry add ./adapters/legal`",
            id="folder",
        ),
        pytest.param(
            "org/name@v1",
            1,
            "the catalog has no adapter from `org/name@v1`",
            "add it first: `meteora-registry add org/name@v1`",
            id="repository",
        ),
        pytest.param("a/b/c d", 1, "the catalog has no adapter from `a/b/c d`", "add it", id="subfolder"),
    ],
)
def test_member_that_is_not_catalogued_is_refused_with_the_command_that_adds_it(
    catalogued: Run, member: str, code: int, message: str, hint: str
) -> None:
    result = catalogued("fuse", member, "--dry-run")
    assert result.returncode == code
    assert f"error: {message}\n" in result.stderr
    assert f"hint: {hint}" in result.stderr


def test_toml_of_a_recipe_reads_back_whatever_its_texts_hold() -> None:
    hostile = 'a"\\\n```\n# b\x7f\u202e\U0001f600\ud7ff'
    recipe = Recipe(
        members=(RecipeMember(adapter=hostile), RecipeMember(adapter="b", name="c")),
        base=hostile,
        temperature=1e-05,
        with_experts=True,
    )
    text = recipe.to_toml()
    assert Recipe.from_toml(text.encode(), what="x") == recipe
    # No line begins what Markdown ends a quotation with, and nothing acts on a terminal.
    assert not re.search(r"^\s*```", text, re.MULTILINE)
    assert all(character.isprintable() or character == "\n" for character in text)
