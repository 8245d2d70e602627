"""The main job through the command line: the installed program, or its entry point in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support import warm
from support.members import BASE
from support.models import make_llama_adapters
from support.program import PROGRAM, Run
from support.tampering import flip_byte

NAMES = ("rank4", "rank8", "rslora16", "patterns", "last-layer")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five adapters, a catalog that has them, and a bundle of three."""
    folder = tmp_path_factory.mktemp("workplace")
    make_llama_adapters(folder / "adapters", base=BASE)
    for arguments in (
        ["add", *(f"adapters/{name}" for name in NAMES)],
        ["fuse", "rank4", "rank8", "rslora16", "--out", "bundle"],
    ):
        result = run_in(folder, *arguments)
        assert result.returncode == 0, result.stderr
    return folder


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return the installed program in a process of its own, in a folder with a home of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("METEORA_")}
    environment["METEORA_HOME"] = str(folder / "home")
    return warm.run(
        [PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def run_elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line within this process, in an empty folder with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METEORA_HOME", str(tmp_path / "home"))
    return run


def test_verify_passes_what_fuse_made(run: Run) -> None:
    for level in ("integrity", "source"):
        result = run("verify", "bundle", "--level", level)
        assert result.returncode == 0, result.stderr
        assert "outcome           pass\n" in result.stdout
        established = "intact, from its members" if level == "source" else "intact"
        assert f"established here  {established}\n" in result.stdout
        assert "the gate is not fitted" in result.stderr


def test_verify_takes_the_name_of_a_catalogued_bundle(run: Run, tmp_path: Path) -> None:
    result = run("verify", "bundle@1", "--format", "json")
    assert result.returncode == 0
    record = json.loads(result.stdout)
    assert (record["outcome"], record["level"], len(record["modules"])) == ("pass", "integrity", 14)


def test_verify_fails_a_flipped_byte_with_exit_code_1(run: Run, workplace: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(workplace / "bundle", broken)
    flip_byte(broken / "adapter_model.safetensors", 5000)
    result = run("verify", str(broken))
    assert result.returncode == 1
    assert "problem: `adapter_model.safetensors` has digest" in result.stdout


def test_verify_without_the_members_files_is_inconclusive_with_exit_code_3(
    workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "bundle", tmp_path / "bundle")
    result = run_in(tmp_path, "verify", "./bundle", "--level", "source")
    assert result.returncode == 3
    assert "not checked: the own files of member `rank4` were not found" in result.stdout


def test_verify_of_a_folder_without_a_bundle_says_so(run: Run) -> None:
    result = run("verify", "./adapters")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: `adapters` is not a bundle: it has no `meteora_manifest.json`" in result.stderr


def test_verify_writes_the_record_only_when_asked(run: Run, workplace: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(workplace / "bundle", bundle)
    (bundle / "verification.json").unlink()
    assert run("verify", str(bundle)).returncode == 0
    assert not (bundle / "verification.json").exists()
    assert run("verify", str(bundle), "--record").returncode == 0
    assert json.loads((bundle / "verification.json").read_bytes())["level"] == "integrity"


def test_fused_bundle_is_catalogued_with_its_verification(run: Run) -> None:
    shown = json.loads(run("show", "bundle", "--format", "json").stdout)
    assert [member["name"] for member in shown["members"]] == ["rank4", "rank8", "rslora16"]
    assert shown["verifications"][0]["level"] == "source"
    assert shown["gate_fitted"] == "not fitted"


def test_every_view_of_a_bundle_says_that_its_gate_is_not_fitted(run: Run, workplace: Path) -> None:
    for arguments in (["list"], ["show", "bundle"], ["verify", "bundle"], ["fuse", "rank4", "--dry-run"]):
        result = run(*arguments)
        assert "not fitted" in result.stdout + result.stderr, arguments
    assert "**The gate is not fitted.**" in (workplace / "bundle" / "README.md").read_text()


def test_dry_run_prints_the_plan_and_writes_nothing(run: Run, workplace: Path) -> None:
    before = sorted(workplace.iterdir())
    result = run("fuse", "rank4", "patterns", "--dry-run", "--modules")
    assert result.returncode == 0
    assert " RANKS " in result.stdout
    line = next(
        row for row in result.stdout.splitlines() if row.startswith("model.layers.0.self_attn.o_proj")
    )
    # in, out, ranks (rank4 is absent), rows of rank 6 padded to 8, two rows of padding, all bytes
    padding_bytes, gate_bytes = 2 * (32 + 32) * 4, 2 * 32 * 4
    assert line.split()[1:] == ["32", "32", "-|6", "8", str(padding_bytes), str(8 * 64 * 4 + gate_bytes)]
    assert sorted(workplace.iterdir()) == before


def test_plan_has_a_row_for_each_kind_of_module(run: Run) -> None:
    def rows(*options: str) -> list[list[str]]:
        shown = run("fuse", "rank4", "patterns", "--dry-run", *options).stdout
        return [line.split() for line in shown.rpartition("\n\n")[2].splitlines()[1:]]

    kinds, modules = rows(), rows("--modules")
    assert {row[0] for row in kinds} == {row[0].rpartition(".")[2] for row in modules}
    assert sum(int(row[1]) for row in kinds) == len(modules)
    assert sum(int(row[-1]) for row in kinds) == sum(int(row[-1]) for row in modules)


def test_dry_run_with_conflicts_names_them_all_with_exit_code_1(run: Run) -> None:
    result = run("fuse", "rank4", "rank4", "--top-k", "3", "--dry-run")
    assert result.returncode == 1
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == [
        "name",
        "duplicate",
        "top_k",
    ]


def test_fuse_refuses_what_conflicts_and_leaves_nothing(run: Run, workplace: Path) -> None:
    result = run("fuse", "rank4", "rank8", "--top-k", "3", "--out", "refused")
    assert result.returncode == 1
    assert result.stderr == (
        "error: these adapters cannot be fused: 1 conflict\n"
        "  top_k: top_k is 3, expected at most the number of members, 2; lower `--top-k` or add members\n"
    )
    assert not (workplace / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fuse", "--out", "x"], 2, "error: no adapters to fuse were named"),
        (["fuse", "rank4"], 2, "error: `--out` is missing: the folder that the bundle becomes"),
        (["fuse", "nobody", "--out", "x"], 1, "error: the catalog has no adapter `nobody`"),
        (["fuse", "rank4@9", "--out", "x"], 1, "error: "),
        (["fuse", "Rank4", "--out", "x"], 2, "error: `Rank4` is not a valid name"),
        (["fuse", "rank4", "--out", "bundle"], 2, "exists and is not empty"),
        (["fuse", "rank4", "--out", "rank8"], 1, "error: the name `rank8` is taken by an adapter"),
        (
            ["fuse", "rank4", "--temperature", "nan", "--out", "x"],
            2,
            "temperature: ",
        ),
        (
            ["fuse", "--recipe", "nowhere.toml", "--out", "x"],
            2,
            "error: `nowhere.toml` cannot be read",
        ),
        (["extract", "bundle", "nobody", "--out", "x"], 1, "error: the bundle has no member `nobody`"),
        (
            [
                "import",
                "bundle/README.md",
                "--layout",
                "official",
                "--member",
                "a:0:1",
                "--base",
                "org/base",
                "--out",
                "x",
            ],
            2,
            "error: `a:0:1` is not a member",
        ),
        (
            [
                "import",
                "bundle/README.md",
                "--layout",
                "official",
                "--member",
                "a:1:1",
                "--base",
                "org/base",
                "--out",
                "x",
            ],
            1,
            "error: `README.md` is refused",
        ),
    ],
    ids=[
        "no adapters",
        "no out",
        "unknown",
        "unknown version",
        "bad name",
        "target full",
        "name taken",
        "nan",
        "no recipe",
        "no member",
        "bad member",
        "no safetensors",
    ],
)
def test_bad_requests_get_a_clear_error_and_their_exit_code(
    run: Run, workplace: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (workplace / "x").exists()


def test_recipe_gives_the_same_bundle_as_the_options(run: Run, workplace: Path) -> None:
    (workplace / "recipe.toml").write_text(
        'base = "org/base"\ntop_k = 2\n'
        '[[members]]\nadapter = "rank4@1"\n'
        '[[members]]\nadapter = "rank8"\n'
        '[[members]]\nadapter = "rslora16"\n'
    )
    result = run("fuse", "--recipe", "recipe.toml", "--out", "from-recipe")
    assert result.returncode == 0, result.stderr
    for name in ("adapter_config.json", "adapter_model.safetensors", "meteora_manifest.json", "README.md"):
        assert (workplace / "from-recipe" / name).read_bytes() == (workplace / "bundle" / name).read_bytes()


def test_recipe_with_a_misspelt_key_is_refused(run: Run, workplace: Path) -> None:
    (workplace / "misspelt.toml").write_text('topk = 2\n[[members]]\nadapter = "rank4"\n')
    result = run("fuse", "--recipe", "misspelt.toml", "--dry-run")
    assert result.returncode == 2
    assert (
        "error: `misspelt.toml` breaks its schema: topk: there is no such key, did you mean `top_k`?"
        in result.stderr
    )


def test_extract_gives_the_adapter_back(run: Run, workplace: Path) -> None:
    result = run("extract", "bundle", "rslora16", "--out", "out-again")
    assert result.returncode == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        original = workplace / "adapters" / "rslora16" / name
        assert (workplace / "out-again" / name).read_bytes() == original.read_bytes()


def test_export_and_import_go_round(run: Run, workplace: Path) -> None:
    exported = run("export", "bundle", "--layout", "official", "--out", "official")
    assert exported.returncode == 0
    assert "the gate is not fitted" in exported.stderr
    assert json.loads((workplace / "official" / "export.json").read_bytes())["gate"] == "not fitted"
    assert "warning: the gate is `absolute`" in exported.stderr
    members = [
        f"--member={name}-again:{rank}:{alpha}"
        for name, rank, alpha in (("one", 4, 8), ("two", 8, 4), ("three", 16, 32))
    ]
    arguments = ["--layout", "official", *members, "--base", BASE, "--out", "imported"]
    imported = run("import", "official/moe_lora.safetensors", *arguments)
    assert imported.returncode == 0, imported.stderr
    assert "verified at level source" in imported.stdout
    assert "does not record whether it was fitted" in imported.stderr
    shown = json.loads(run("show", "imported", "--format", "json").stdout)
    assert shown["gate_fitted"] == "imported"


def test_a_member_of_a_bundle_cannot_be_removed(run: Run) -> None:
    result = run("remove", "rank4", "--yes")
    assert result.returncode == 1
    assert "bundle@1" in result.stderr


def test_a_changed_blob_is_noticed_before_anything_is_fused(
    run_elsewhere: Run, workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "home", tmp_path / "home")
    largest = max(
        (p for p in (tmp_path / "home" / "blobs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.chmod(0o644)
    flip_byte(largest, largest.stat().st_size - 1)
    result = run_elsewhere("fuse", *NAMES, "--out", "bundle")
    assert result.returncode == 2
    assert "was changed: its bytes have the digest" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_the_catalog_missed_is_catalogued_by_the_same_command(
    run_elsewhere: Run, workplace: Path, tmp_path: Path
) -> None:
    # As after a kill between the move into place and the catalog's record.
    shutil.copytree(workplace / "home", tmp_path / "home")
    shutil.copytree(workplace / "bundle", tmp_path / "left-over")
    again = run_elsewhere("fuse", "rank4", "rank8", "rslora16", "--out", "left-over")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("fused: left-over@1 in left-over: 3 members")
    other = run_elsewhere("fuse", "rank4", "rank8", "--out", "left-over")
    assert other.returncode == 2
    assert "`left-over` exists and is not empty" in other.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "left-over"]


def test_a_tampered_copy_says_nothing_about_the_catalogued_bundle(
    run: Run, workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "bundle", tmp_path / "copy")
    (tmp_path / "copy" / "extra.txt").write_text("extra")
    before = json.loads(run("show", "bundle", "--format", "json").stdout)["verifications"]
    assert run("verify", str(tmp_path / "copy")).returncode == 1
    assert json.loads(run("show", "bundle", "--format", "json").stdout)["verifications"] == before


def test_adding_again_mends_a_damaged_blob(run_elsewhere: Run, workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace / "home", tmp_path / "home")
    shutil.copytree(workplace / "adapters", tmp_path / "adapters")
    blobs = [path for path in (tmp_path / "home" / "blobs" / "sha256").rglob("*") if path.is_file()]
    for blob in blobs:
        blob.chmod(0o644)
        flip_byte(blob, blob.stat().st_size - 1)
    assert run_elsewhere("fuse", "rank4", "rank8", "--out", "bundle").returncode == 2
    added = run_elsewhere("add", "adapters/rank4", "adapters/rank8")
    assert added.stdout.startswith("already there: rank4@1")
    assert run_elsewhere("fuse", "rank4", "rank8", "--out", "bundle").returncode == 0


def test_an_import_that_is_refused_catalogues_nothing(run: Run, workplace: Path) -> None:
    assert run("export", "bundle", "--layout", "official", "--out", "to-refuse").returncode == 0
    before = run("list").stdout
    arguments = ["import", "to-refuse/moe_lora.safetensors", "--layout", "official", "--base", BASE]
    members = ["--member=a:4:8", "--member=b:8:4", "--member=c:16:32"]
    for refused, message in (
        ([*members, "--out", "bundle"], "`bundle` exists and is not empty"),
        ([*members, "--top-k", "9", "--out", "x"], "top_k is 9, expected at most the number of members, 3"),
        (
            [*members, "--temperature", "0", "--out", "x"],
            "temperature: input should be greater than or equal",
        ),
        ([*members[:2], "--member=a:16:32", "--out", "x"], "member names must differ, found `a`, `b`, `a`"),
    ):
        result = run(*arguments, *refused)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr
        assert "Traceback" not in result.stderr
    assert run("list").stdout == before


def test_verify_works_where_no_catalog_can_be_opened(
    run_elsewhere: Run, workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "bundle", tmp_path / "bundle")
    (tmp_path / "home").write_text("a file where the home should be")
    result = run_elsewhere("verify", "./bundle")
    assert result.returncode == 0, result.stderr
    assert "warning: not noted in the catalog" in result.stderr
