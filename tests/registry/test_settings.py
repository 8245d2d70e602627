"""Settings: which of several places counts, what files may set, and the messages about malformed ones."""

from __future__ import annotations

import json
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

import meteora_registry as meteora
from meteora_registry.registry.home import Home
from meteora_registry.registry.settings import Setting, Settings, user_file
from meteora_registry.schemas.errors import UsageError
from support.program import Run
from support.small_adapters import make_adapter

Write = Callable[[str], Path]
PASSWORD = "geheim"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the user's file of settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = user_file()
    assert path == tmp_path / "config" / "meteora-registry" / "config.toml"
    path.parent.mkdir(parents=True)

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    return write


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the current folder's file of settings."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "meteora.toml"
        path.write_text(text)
        return path

    return write


def test_settings_are_of_the_option_then_the_variable_then_the_file_then_the_default(
    tmp_path: Path, write: Write
) -> None:
    variables = {
        "METEORA_HOME": str(tmp_path / "b"),
        "METEORA_CATALOG": "sqlite:////b.db",
        "METEORA_STORE": "memory://b",
        "METEORA_POLICY": "/b.toml",
    }
    assert Settings.read(environment={}).place.folder.name == "meteora-registry"
    write('home = "/c"\ncatalog = "sqlite:////c.db"\nstore = "memory://c"\npolicy = "~/c.toml"\n')
    of_file = Settings.read(environment=dict.fromkeys(variables, ""))
    assert of_file.place == Home(Path("/c"), "sqlite:////c.db", "memory://c")
    assert of_file.policy_file == Path.home() / "c.toml"
    assert {of_file.home.source, of_file.policy.source} == {"user file"}
    of_variables = Settings.read(environment=variables)
    assert of_variables.place == Home(tmp_path / "b", "sqlite:////b.db", "memory://b")
    assert of_variables.policy == Setting("/b.toml", "METEORA_POLICY")
    of_options = Settings.read(tmp_path / "a", "sqlite:////a.db", "memory://a", environment=variables)
    assert of_options.place == Home(tmp_path / "a", "sqlite:////a.db", "memory://a")
    assert of_options.store.source == "--store"
    assert Settings.read(Path("relative"), environment={}).place.folder == Path("relative").absolute()


def test_registry_of_a_program_reads_the_users_file(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METEORA_HOME", raising=False)
    write(f'home = "{tmp_path / "named"}"\n')
    with meteora.Registry() as registry:
        assert registry.home.folder == tmp_path / "named"
    with meteora.Registry(tmp_path / "argument") as registry:
        assert registry.home.folder == tmp_path / "argument"


def test_command_uses_the_catalog_of_the_users_file(
    run: Run, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "legal")
    monkeypatch.delenv("METEORA_HOME")
    write(f'home = "{tmp_path / "named"}"\n')
    assert run("add", "legal", "--base", "org/base").returncode == 0
    assert (tmp_path / "named" / "catalog.db").is_file()
    assert "legal" in run("list").stdout


def test_show_prints_every_setting_with_its_source_and_no_password(
    run: Run, tmp_path: Path, write: Write, project: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = write(
        f'catalog = "postgresql://alice:{PASSWORD}@host/name"\n[base_aliases]\nllama = "org/llama"\n'
    )
    project('base_aliases = {llama = "evil/llama", ours = "org/ours"}')
    monkeypatch.setenv("METEORA_STORE", "memory://store")
    text = run("--home", "here", "config", "show")
    assert [line.split() for line in text.stdout.splitlines()] == [
        ["SETTING", "VALUE", "FROM"],
        ["home", str(tmp_path / "here"), "--home"],
        ["catalog", "postgresql://alice:***@host/name", "user", "file"],
        ["store", "memory://store", "METEORA_STORE"],
        ["policy", "-", "default"],
        ["base", "llama", "org/llama", "user", "file"],
        ["base", "ours", "org/ours", "project", "file"],
        [],
        ["user", "file:", str(user)],
        ["project", "file:", str(tmp_path / "meteora.toml")],
    ]
    as_json = json.loads(run("config", "show", "--format", "json").stdout)
    assert as_json["settings"]["home"] == {"source": "METEORA_HOME", "value": str(tmp_path / "home")}
    assert as_json["base_aliases"]["ours"] == {"source": "project file", "value": "org/ours"}
    assert as_json["files"]["user"] == {"exists": True, "path": str(user)}
    assert PASSWORD not in text.stdout + json.dumps(as_json)


def test_path_is_printed_whether_or_not_the_file_is_there_and_well_formed(run: Run, write: Write) -> None:
    before = run("config", "path").stdout
    path = write("home = ")
    assert before == run("config", "path").stdout == f"{path}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("home = ", "is not TOML: Invalid value (at end of document)", id="no value"),
        pytest.param(
            'a = 1\nhome "x"',
            "is not TOML: Expected '=' after a key in a key/value pair (at line 2",
            id="line",
        ),
        pytest.param('hom = "/x"', "hom: there is no such key, did you mean `home`?", id="near"),
        pytest.param(
            'database = "x"',
            "database: there is no such key, expected one of base_aliases, catalog, home, policy, store",
            id="far",
        ),
        pytest.param(
            'home = "here"', "home: expected an absolute path, or one that begins with `~/`", id="relative"
        ),
        pytest.param('policy = "p.toml"', "policy: expected an absolute path", id="relative policy"),
        pytest.param("catalog = 1", "catalog: input should be a valid string", id="number"),
        pytest.param('store = ""', "store: string should have at least 1 character", id="empty"),
        pytest.param(
            'base_aliases = {A = "org/x"}', "base_aliases: `A` is not a valid alias of a base", id="name"
        ),
        pytest.param(
            'base_aliases = {gpt2 = "org/x"}',
            "base_aliases: `gpt2` is the name of a base already: `openai-community/gpt2`",
            id="known name",
        ),
        pytest.param(
            'base_aliases = {a = "/x"}', "base_aliases: `a` stands for `/x`, expected `org/model`", id="path"
        ),
        pytest.param(f"x = '{'x' * (1 << 20)}'", "has more than 1048576 bytes", id="long"),
    ],
)
def test_malformed_file_is_refused_with_the_place_and_the_way_out(
    run: Run, write: Write, text: str, message: str
) -> None:
    path = write(text)
    result = run("list")
    assert (result.returncode, result.stdout) == (2, "")
    assert f"`{path}`" in result.stderr
    assert message in result.stderr
    # It stops no command that needs none of it.
    assert run("list", "--help").returncode == 0
    assert run("completion", "bash").returncode == 0


def test_message_about_a_file_does_not_show_what_it_holds(write: Write) -> None:
    write(f'catalog = ["postgresql://alice:{PASSWORD}@host/name"]\nstroe = "{PASSWORD}"\n')
    with pytest.raises(UsageError) as caught:
        meteora.Registry()
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("key", ["home", "catalog", "store", "policy"])
def test_project_may_choose_no_database_no_store_and_no_policy(
    run: Run, tmp_path: Path, project: Write, key: str
) -> None:
    project(f'{key} = "{tmp_path / "theirs"}"\nbase_aliases = {{ours = "org/ours"}}\n')
    result = run("list")
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        f"error: `meteora.toml` breaks its schema: {key}: only a user's own file may set it, because a "
        "folder that was checked out must not choose a database, a store or a policy\n"
    ) in result.stderr
    assert not (tmp_path / "theirs").exists()
    # A program means the same in every folder.
    with meteora.Registry() as registry:
        assert registry.home.folder == tmp_path / "home"


def test_project_file_that_is_too_large_is_refused_without_a_size_that_was_not_measured(
    run: Run, project: Write
) -> None:
    project("#" * (2 << 20))
    result = run("list")
    assert result.returncode == 2
    assert result.stderr.startswith("error: `meteora.toml` has more than 1048576 bytes\n")


def test_project_of_a_folder_above_is_not_asked(
    run: Run, tmp_path: Path, project: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    project('catalog = "sqlite:////x"')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert run("list").returncode == 0


def test_project_file_is_never_read_through_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root = 1")
    (tmp_path / "meteora.toml").symlink_to("secret")
    result = run("list")
    assert result.returncode == 2
    assert "`meteora.toml` is a symbolic link, which is never followed" in result.stderr


@pytest.mark.parametrize("place", ["relative", None], ids=["relative folder", "no home"])
def test_users_file_is_never_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    def find_none(user: object) -> object:
        raise KeyError(user)

    monkeypatch.chdir(tmp_path)
    for folder in ("relative", "~/.config"):
        (tmp_path / folder / "meteora-registry").mkdir(parents=True)
        (tmp_path / folder / "meteora-registry" / "config.toml").write_text('home = "/theirs"')
    if place is None:
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(pwd, "getpwuid", find_none)
        assert user_file() is None
    else:
        monkeypatch.setenv("XDG_CONFIG_HOME", place)
    assert Settings.read(environment={}).home.value is None


def test_short_name_of_a_base_stands_for_it_wherever_one_is_typed(
    run: Run, tmp_path: Path, write: Write, project: Write
) -> None:
    make_adapter(tmp_path / "legal")
    write('base_aliases = {llama = "org/llama"}')
    project('base_aliases = {llama = "evil/llama", ours = "org/ours"}')
    # Even where a folder has the name.
    (tmp_path / "llama").mkdir()
    added = run("add", "legal", "--base", "llama")
    assert (added.returncode, added.stderr) == (
        0,
        "note: the base `llama` is `org/llama`, as the user file has it\n",
    )
    assert json.loads(run("show", "legal", "--format", "json").stdout)["base_model"] == "org/llama"
    assert "legal" in run("search", "--base", "llama").stdout
    assert "legal" not in run("search", "--base", "ours").stdout
    (tmp_path / "recipe.toml").write_text('members = ["legal"]\nbase = "ours"\n')
    planned = run("fuse", "--recipe", "recipe.toml", "--dry-run", "--format", "json")
    assert json.loads(planned.stdout)["base"] == "org/ours"
    assert "note: the base `ours` is `org/ours`, as the project file has it" in planned.stderr


def test_policy_of_the_settings_is_applied_and_named(run: Run, tmp_path: Path, write: Write) -> None:
    make_adapter(tmp_path / "legal")
    assert run("validate", "legal").returncode == 0
    policy = tmp_path / "policy.toml"
    policy.write_text("meteora_policy = 1\nmax_rank = 1\n")
    write(f'policy = "{policy}"')
    refused = run("validate", "legal")
    assert refused.returncode == 1
    assert f"note: the policy is `{policy}`, from user file" in refused.stderr
    lenient = tmp_path / "lenient.toml"
    lenient.write_text("meteora_policy = 1\n")
    assert run("validate", "legal", "--policy", lenient).returncode == 0


def test_completion_of_names_reads_the_settings_and_prints_nothing_of_them(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write("malformed")
    monkeypatch.setenv("_METEORA_REGISTRY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "meteora-registry fuse --base llama le")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit):
        run()
    printed = capfd.readouterr()
    assert (printed.out.strip(), printed.err) == ("", "")
