"""Members that come, go and are replaced, without the data of the others, with a catalog and without one."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import meteora_registry as meteora
from meteora_registry.bundle import Bundle
from meteora_registry.schemas.errors import DataRefused
from meteora_registry.schemas.gate_choices import Scope
from support.models import LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.program import Run
from support.tampering import flip_byte
from support.task_data import make_fit_workplace, write_task_data

pytestmark = [LOADS_WITH_PEFT]

# `rank8` alone touches most modules: without it there are fewer, and with it again there are more.
NAMES = ("rank4", "rank8", "rslora16")
SCOPES: tuple[Scope, ...] = ("prompt", "token")
TOLERANCE = 1e-4
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bundles:
    """The bundles of one scope, each made once.

    Attributes:
        place: has the base, the adapters, the data, and the statistics of each scope.
        fitted: all members, fitted together.
        others: adapters on the same modules as the members.
    """

    place: Path
    scope: Scope
    fitted: meteora.FusedBundle
    others: dict[str, Path]
    joint: Callable[[str], meteora.FusedBundle]
    removed: Callable[[str], meteora.FusedBundle]
    again: Callable[[str], meteora.FusedBundle]
    replaced: Callable[[str], meteora.FusedBundle]

    @property
    def statistics(self) -> Path:
        return statistics_of(self.place, self.scope)


def statistics_of(place: Path, scope: Scope) -> Path:
    return place / f"{scope}.statistics"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, adapters, and data of which enough is held out to know a threshold."""
    place = make_fit_workplace(tmp_path_factory.mktemp("workplace"), NAMES, samples=48)
    for name, modules in (("rank4", ["q_proj", "v_proj"]), ("rslora16", ["k_proj", "down_proj"])):
        make_adapter(
            tiny_llama, place / "others" / name, seed=9, base="org/base", r=6, target_modules=modules
        )
    make_adapter(
        tiny_llama, place / "others" / "rank8", seed=9, base="org/base", r=2, target_modules="all-linear"
    )
    return place


@pytest.fixture(scope="module", params=SCOPES)
def bundles(request: pytest.FixtureRequest, workplace: Path) -> Bundles:
    scope: Scope = request.param

    def fuse(*names: str) -> meteora.FusedBundle:
        return meteora.fuse([workplace / "adapters" / name for name in names], base_folder=workplace / "base")

    fitted = fuse(*NAMES).fit(workplace / "data", scope=scope, statistics=statistics_of(workplace, scope))

    @cache
    def joint(without: str) -> meteora.FusedBundle:
        names = [name for name in NAMES if name != without]
        data = workplace / f"data-without-{without}"
        data.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(workplace / "data" / f"{name}.jsonl", data / f"{name}.jsonl")
        return fuse(*names).fit(data, scope=scope)

    @cache
    def removed(name: str) -> meteora.FusedBundle:
        return fitted.remove(name, statistics=statistics_of(workplace, scope))

    @cache
    def again(name: str) -> meteora.FusedBundle:
        adapter, data = workplace / "adapters" / name, workplace / "data" / f"{name}.jsonl"
        return removed(name).add(adapter, data, statistics=statistics_of(workplace, scope))

    others = {name: workplace / "others" / name for name in NAMES}

    @cache
    def replaced(name: str) -> meteora.FusedBundle:
        return fitted.replace(name, others[name])

    return Bundles(workplace, scope, fitted, others, joint, removed, again, replaced)


def tensors_of(bundle: meteora.FusedBundle) -> Tensors:
    return load_file(bundle.folder / "adapter_model.safetensors")


def factors_of(bundle: meteora.FusedBundle, member: str) -> Tensors:
    """Return a member's rows of every flat factor, without padding."""
    config, place = bundle.bundle.config, bundle.bundle.config.names.index(member)
    return {
        name: tensor[layout.rows_of(place)]
        for name, tensor in tensors_of(bundle).items()
        for path, layout in config.layouts.items()
        if name in (f"base_model.model.{path}.meteora_A", f"base_model.model.{path}.meteora_B")
        and layout.ranks[place]
    }


def by_member(bundle: meteora.FusedBundle) -> dict[tuple[str, ...], torch.Tensor]:
    """Return every tensor of a bundle taken apart by its members, in whichever order they are."""
    names = bundle.bundle.config.names
    found = {(name, member): value for member in names for name, value in factors_of(bundle, member).items()}
    for name, tensor in tensors_of(bundle).items():
        if name.endswith("gram"):
            found |= {(name, a, b): tensor[i, j] for i, a in enumerate(names) for j, b in enumerate(names)}
        elif "gate" in name.rpartition(".")[2]:
            classes = (*names, *(f"background {place}" for place in range(len(tensor) - len(names))))
            found |= {(name, each): tensor[place] for place, each in enumerate(classes)}
    return found


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("member", NAMES)
def test_the_others_keep_their_factors_bit_for_bit_and_their_order(bundles: Bundles, member: str) -> None:
    others = [name for name in NAMES if name != member]
    replaced = bundles.replaced(member)
    changed = (bundles.removed(member), bundles.again(member), replaced)
    for bundle in changed:
        for name in others:
            assert same(factors_of(bundle, name), factors_of(bundles.fitted, name))
    assert [bundle.bundle.config.names for bundle in changed] == [tuple(others), (*others, member), NAMES]
    assert same(factors_of(bundles.again(member), member), factors_of(bundles.fitted, member))
    assert not same(factors_of(replaced, member), factors_of(bundles.fitted, member))
    for bundle in changed:
        assert (bundle.record.level, bundle.record.outcome) == ("source", "pass")


@pytest.mark.parametrize("member", NAMES)
def test_a_bundle_without_a_member_is_the_fit_of_the_others_together(bundles: Bundles, member: str) -> None:
    joint, removed = bundles.joint(member), bundles.removed(member)
    assert same(tensors_of(removed), tensors_of(joint))
    # Thresholds, and on how many prompts they are known, included.
    assert removed.bundle.config.gate == joint.bundle.config.gate
    if bundles.scope == "prompt":
        assert removed.bundle.config.gate.request is not None
        assert removed.bundle.config.model_copy(update={"changed_from": None}) == joint.bundle.config


@pytest.mark.parametrize("member", NAMES)
def test_a_member_that_went_and_came_again_gives_the_bundle_as_it_was(bundles: Bundles, member: str) -> None:
    before, after = by_member(bundles.fitted), by_member(bundles.again(member))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert (value - after[name]).abs().max() <= TOLERANCE * max(1.0, value.abs().max().item()), name
    assert bundles.again(member).bundle.config.gate.abstain == bundles.fitted.bundle.config.gate.abstain


@pytest.mark.parametrize("member", NAMES)
def test_an_adapter_of_the_same_modules_keeps_every_gate_bit_for_bit(bundles: Bundles, member: str) -> None:
    replaced = bundles.replaced(member)
    gates = {
        name: value for name, value in tensors_of(bundles.fitted).items() if "gate" in name.rpartition(".")[2]
    }
    assert gates
    assert all(torch.equal(tensors_of(replaced)[name], value) for name, value in gates.items())
    assert replaced.bundle.config.gate == bundles.fitted.bundle.config.gate


@pytest.mark.parametrize("bundles", ["prompt"], indirect=True)
def test_the_others_prompts_still_go_to_their_member(bundles: Bundles, workplace: Path) -> None:
    write_task_data(workplace / "new-prompts", NAMES, samples=12, seed=4)
    files = [workplace / "new-prompts" / f"{name}.jsonl" for name in NAMES]
    prompts = [prompt for file in files for prompt in prompts_in(file)]
    before = decide(bundles.fitted, workplace, prompts)
    for member in NAMES:
        after = decide(bundles.removed(member), workplace, prompts)
        own = {place: NAMES[place // 12] for place in range(len(prompts)) if NAMES[place // 12] != member}
        assert [before[place].likeliest for place in own] == [after[place].likeliest for place in own]
        assert sum(after[place].likeliest == name for place, name in own.items()) >= 23
        # One at the threshold may be left to the base, or no longer be: it is known from fewer prompts now.
        assert sum(before[place].is_served == after[place].is_served for place in own) >= 20


def prompts_in(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Decided:
    """The member that a prompt is most likely for, and whether it is served by one at all."""

    likeliest: str
    is_served: bool


def decide(bundle: meteora.FusedBundle, workplace: Path, prompts: list[str]) -> list[Decided]:
    loaded = meteora.load(bundle, workplace / "base")
    with loaded.routing() as record, torch.no_grad():
        loaded.model(**loaded.encode(prompts))
    names = bundle.bundle.config.names
    return [
        Decided(names[each.evidence.index(max(each.evidence))], bool(each.members))
        for each in sorted(record.decisions, key=lambda each: each.sequence)
    ]


def test_new_data_of_a_replaced_member_give_the_joint_fit(bundles: Bundles, tmp_path: Path) -> None:
    data = shutil.copytree(bundles.place / "data", tmp_path / "data")
    write_task_data(tmp_path / "new", NAMES, samples=48, seed=7)
    shutil.copyfile(tmp_path / "new" / "rank4.jsonl", data / "rank4.jsonl")
    replaced = bundles.fitted.replace(
        "rank4", bundles.others["rank4"], data=data / "rank4.jsonl", statistics=bundles.statistics
    )
    members = [bundles.others["rank4"], *(bundles.place / "adapters" / name for name in NAMES[1:])]
    joint = meteora.fuse(members, base_folder=bundles.place / "base").fit(data, scope=bundles.scope)
    assert same(tensors_of(replaced), tensors_of(joint))
    assert not same(tensors_of(replaced), tensors_of(bundles.fitted))
    # The adapter may also be the same, with new data alone.
    renewed = bundles.fitted.replace(
        "rank4",
        bundles.place / "adapters" / "rank4",
        data=data / "rank4.jsonl",
        statistics=bundles.statistics,
    )
    gates = [name for name in tensors_of(joint) if "gate" in name.rpartition(".")[2]]
    assert all(torch.equal(tensors_of(renewed)[name], tensors_of(joint)[name]) for name in gates)
    assert same(factors_of(renewed, "rank4"), factors_of(bundles.fitted, "rank4"))


@pytest.mark.parametrize("bundles", ["prompt"], indirect=True)
def test_a_member_that_comes_is_read_to_as_many_samples_as_the_others(
    bundles: Bundles, tmp_path: Path
) -> None:
    adapters = [bundles.place / "adapters" / name for name in NAMES]
    data, statistics = bundles.place / "data", tmp_path / "statistics"
    few = meteora.fuse(adapters, base_folder=bundles.place / "base").fit(
        data, statistics=statistics, samples=10
    )
    assert described_samples(few) == (10, [10, 10, 10])
    fewer = few.remove("rslora16", statistics=statistics)
    (part,) = statistics.glob("rslora16-*")
    part.unlink()
    again = fewer.add(adapters[2], data / "rslora16.jsonl", statistics=statistics)
    assert described_samples(again) == (10, [10, 10, 10])
    assert same(tensors_of(again), tensors_of(few))
    # By default nothing is stated, so that earlier readers read the bundle.
    assert described_samples(bundles.fitted) == (32, [32, 32, 32])
    assert "max_samples" not in (bundles.fitted.folder / "adapter_config.json").read_text()


@pytest.mark.parametrize("has_data", [True, False])
@pytest.mark.parametrize("bundles", ["token"], indirect=True)
def test_statistics_of_another_number_of_samples_are_refused(bundles: Bundles, has_data: bool) -> None:
    with pytest.raises(DataRefused, match="made with max_samples `32`, this fit asks for `64`"):
        bundles.fitted.fit(
            bundles.place / "data" if has_data else None,
            scope="token",
            statistics=bundles.statistics,
            samples=64,
        )


def described_samples(bundle: meteora.FusedBundle) -> tuple[int, list[int]]:
    fitted = bundle.bundle.config.gate.fitted
    assert fitted is not None
    return fitted.max_samples, [each.samples for each in fitted.data]


def test_a_bundle_in_a_folder_changes_without_a_catalog(bundles: Bundles, tmp_path: Path) -> None:
    shutil.copytree(bundles.fitted.folder, tmp_path / "bundle")
    with meteora.FusedBundle.open(tmp_path / "bundle", base=bundles.place / "base") as opened:
        removed = opened.remove("rslora16", statistics=bundles.statistics)
    assert (tmp_path / "bundle").is_dir()
    # Its members' own files are not at hand to compare with.
    assert (removed.record.level, removed.record.outcome) == ("integrity", "pass")
    assert same(tensors_of(removed), tensors_of(bundles.removed("rslora16")))
    parent = removed.bundle.config.changed_from
    assert parent is not None
    assert (parent.manifest_sha256, parent.change, parent.member) == (
        Bundle.open(tmp_path / "bundle").manifest_sha256,
        "remove",
        "rslora16",
    )


def test_members_of_a_bundle_that_was_cast_keep_the_numbers_that_they_have(workplace: Path) -> None:
    members = [workplace / "adapters" / name for name in NAMES[:2]]
    fused = meteora.fuse(members, base_folder=workplace / "base", dtype="bfloat16")
    data = write_task_data(workplace / "data-of-two", NAMES[:2])
    fitted = fused.fit(data, scope="token", statistics=workplace / "bfloat16.statistics")
    replaced = fitted.replace("rank4", workplace / "others" / "rank4")
    assert same(factors_of(replaced, "rank8"), factors_of(fitted, "rank8"))
    old, new = (bundle.bundle.manifest.members for bundle in (fitted, replaced))
    assert new[1] == old[1]
    assert new[0].cast is not None and new[0].cast.target == "BF16"
    assert (replaced.record.level, replaced.record.outcome) == ("source", "pass")


def test_a_damaged_bundle_is_not_opened(bundles: Bundles, tmp_path: Path) -> None:
    shutil.copytree(bundles.fitted.folder, tmp_path / "bundle")
    flip_byte(tmp_path / "bundle" / "adapter_model.safetensors", -1)
    with pytest.raises(meteora.BundleRefused, match=r"is damaged: `adapter_model\.safetensors` has"):
        meteora.FusedBundle.open(tmp_path / "bundle")


def test_the_last_members_can_go_down_to_one(bundles: Bundles) -> None:
    one = bundles.removed("rank8").remove("rank4", statistics=bundles.statistics)
    assert (one.bundle.config.names, one.bundle.config.top_k) == (("rslora16",), 1)
    with pytest.raises(meteora.BundleRefused, match="`rslora16` is the only member of the bundle"):
        one.remove("rslora16", statistics=bundles.statistics)


def test_a_member_that_brings_modules_of_which_the_statistics_know_nothing_is_refused(
    bundles: Bundles, tmp_path: Path
) -> None:
    place = bundles.place
    narrow = meteora.fuse(
        [place / "adapters" / name for name in ("rank4", "rslora16")], base_folder=place / "base"
    ).fit(
        bundles.joint("rank8") and place / "data-without-rank8",
        scope=bundles.scope,
        statistics=tmp_path / "statistics",
    )
    with pytest.raises(
        meteora.DataRefused, match=r"have no input of `model\.layers\.0\.\S+` with \d+ features"
    ) as caught:
        narrow.add(
            place / "adapters" / "rank8", place / "data" / "rank8.jsonl", statistics=tmp_path / "statistics"
        )
    assert caught.value.hint is not None and caught.value.hint.startswith("fit with the data of every member")


@pytest.fixture
def run(run: Run, workplace: Path) -> Run:
    """The program in the workplace; the first use makes the catalog, `team@1`, and the fitted `team@2`."""
    if not (workplace / "team").exists():
        for source in (*(f"adapters/{name}" for name in NAMES), "others/rank4"):
            assert run("add", source).returncode == 0
        assert run("fuse", "rank4@1", *NAMES[1:], "--out", "team", "--with-experts").returncode == 0
        options = ("--base", "./base", "--data", "data", "--statistics", "statistics")
        result = run("gate", "fit", "team", *options, "--out", "team-fitted")
        assert result.returncode == 0, result.stderr
    return run


@pytest.fixture(scope="module")
def token_statistics(workplace: Path) -> Path:
    """Statistics of the same members for the scope `token`."""
    folder = statistics_of(workplace, "token")
    if not folder.exists():
        members = [workplace / "adapters" / name for name in NAMES]
        fused = meteora.fuse(members, base_folder=workplace / "base")
        fused.fit(workplace / "data", scope="token", statistics=folder)
    return folder


ON_BASE = ("--base", "./base")
KEPT = (*ON_BASE, "--statistics", "statistics")


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_commands_make_versions_that_name_the_bundle_they_were_made_from(run: Run, workplace: Path) -> None:
    parent = Bundle.open(workplace / "team-fitted").manifest_sha256
    printed = succeed(run("bundle", "remove", "team@2", "rslora16", *KEPT, "--out", "fewer"))
    assert printed.startswith("removed `rslora16`: team@3 in fewer: 2 members, gates fitted, ")
    assert f"made from {parent.short}\n" in printed
    assert "verified: level source" in printed
    data = ("--data", "data/rslora16.jsonl")
    added = json.loads(
        succeed(
            run(
                "bundle",
                "add",
                "team@3",
                "rslora16",
                *data,
                *KEPT,
                "--out",
                "more",
                "--member",
                "third",
                "--format",
                "json",
            )
        )
    )
    fewer = Bundle.open(workplace / "fewer").manifest_sha256
    assert added["changed_from"] == {"manifest_sha256": fewer, "change": "add", "member": "third"}
    assert [member["name"] for member in added["version"]["members"]] == ["rank4", "rank8", "third"]
    assert added["version"]["members"][2]["adapter"]["name"] == "rslora16"
    replaced = succeed(run("bundle", "replace", "team@2", "rank4@2", "--out", "newer"))
    assert replaced.startswith("replaced `rank4`: team@5 in newer: 3 members, gates kept, ")
    for name in ("fewer", "more", "newer"):
        assert (workplace / name / "experts" / "rank8" / "adapter_config.json").is_file()
        assert not (workplace / name / "experts" / "rslora16").exists() or name == "newer"
    card = (workplace / "fewer" / "README.md").read_text()
    assert f"Made from the bundle with the manifest `{parent}`: `rslora16` was removed." in card
    shown = json.loads(succeed(run("show", "team@5", "--format", "json")))
    assert shown["members"][0]["adapter"]["version"] == 2


@pytest.mark.slow
def test_a_changed_bundle_is_verified_again_from_its_members_files(run: Run) -> None:
    # `verify` also runs the kernels, here in Triton's interpreter; the change itself does not.
    succeed(run("bundle", "remove", "team@2", "rslora16", *KEPT, "--out", "verified"))
    succeed(run("verify", "verified", "--level", "source"))


def test_a_bundle_is_fitted_from_parts_without_data(run: Run, workplace: Path) -> None:
    printed = succeed(run("gate", "fit", "team@1", *KEPT, "--out", "from-parts", "--name", "from-parts"))
    assert "from-parts@1 in from-parts: " in printed
    first, again = (
        load_file(workplace / name / "adapter_model.safetensors") for name in ("team-fitted", "from-parts")
    )
    assert same(first, again)


def test_what_an_interrupted_change_left_is_catalogued_by_the_same_command(
    run: Run, workplace: Path, tmp_path: Path
) -> None:
    command = (
        "bundle",
        "remove",
        "./team-fitted",
        "rank8",
        *KEPT,
        "--out",
        "without-rank8",
        "--name",
        "team",
    )
    left = workplace / ".without-rank8.partial"
    left.mkdir()
    (left / "adapter_model.safetensors").write_bytes(b"half")
    succeed(run(*command))
    assert not left.exists()
    # The bundle is complete, and another catalog knows nothing of it.
    assert "removed `rank8`: team@1 in without-rank8" in succeed(run("--home", tmp_path, *command))


def test_a_signature_does_not_go_over_to_the_new_version(run: Run, workplace: Path, tmp_path: Path) -> None:
    signed = shutil.copytree(workplace / "team-fitted", tmp_path / "signed")
    (signed / "model.sig").write_text("{}")
    result = run("bundle", "replace", signed, "rank4@2", "--out", tmp_path / "new")
    succeed(result)
    assert "note: the old bundle has a signature, the new one has none" in result.stderr
    assert not (tmp_path / "new" / "model.sig").exists()


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (
            ("remove", "team@1", "rank4", *KEPT),
            1,
            "error: the gates of the bundle in `{place}/team` are not fitted\nhint: fuse the members",
        ),
        (
            ("remove", "team@2", "rank4", *ON_BASE),
            2,
            "error: the gates have to be fitted, and no statistics stand for the data of the other members\n"
            "hint: name the folder that `gate fit --statistics FOLDER` kept them in",
        ),
        (
            ("remove", "team@2", "rank4", *ON_BASE, "--statistics", "nowhere"),
            2,
            "error: there are no statistics in `nowhere`: it is not a folder\n",
        ),
        (
            ("remove", "team@2", "rank4", *ON_BASE, "--statistics", "token.statistics"),
            1,
            "error: the statistics in `token.statistics/rank8-",
        ),
        (
            ("remove", "team@2", "rank4", *ON_BASE, "--statistics", "data"),
            1,
            "error: the statistics in `data` have nothing of the member `rank8` on its data with the digest",
        ),
        (
            ("remove", "team@2", "rank5", *KEPT),
            1,
            "error: the bundle has no member `rank5`, it has `rank4`, `rank8`, `rslora16`\n",
        ),
        (
            ("add", "team@2", "rank4", "--data", "data/rank4.jsonl", *KEPT),
            1,
            "error: the bundle has a member `rank4` already\nhint: replace it with `bundle replace`",
        ),
        (
            ("add", "team@2", "rank4@1", "--member", "other", "--data", "data/rank4.jsonl", *KEPT),
            1,
            "error: these adapters cannot be fused: 1 conflict\n  duplicate: `rank4` and `rank4@1` have the "
            "same content",
        ),
        (
            ("add", "team@2", "foreign", "--data", "data/rank4.jsonl", *KEPT),
            1,
            "error: `foreign@1` names the base `org/other`, the bundle was fused for `org/base`\n",
        ),
        (
            ("add", "team@2", "rank4", "--member", "other", "--data", "nothing.jsonl", *KEPT),
            1,
            "error: the data of `other` cannot be used: 1 problem\n",
        ),
        (
            ("replace", "team@2", "rank4@1"),
            1,
            "error: the member `rank4` is `rank4@1` already: nothing is replaced\nhint: name",
        ),
        (
            ("replace", "team@2", "rank8", "--with", "rank4@2"),
            2,
            "error: the gates have to be fitted, and no statistics stand for the data of the other members\n",
        ),
        (
            ("replace", "team@2", "rank4@2", "--out", "data"),
            2,
            "error: `data` exists and is not empty\n",
        ),
    ],
    ids=[
        "not-fitted",
        "no-statistics",
        "no-folder",
        "other-settings",
        "other-folder",
        "no-member",
        "name-taken",
        "same-content",
        "other-base",
        "no-data",
        "same-version",
        "other-modules",
        "folder-taken",
    ],
)
def test_a_change_that_cannot_be_is_refused_and_leaves_nothing(
    run: Run, token_statistics: Path, workplace: Path, command: tuple[str, ...], code: int, message: str
) -> None:
    if "foreign" in command and not (workplace / "foreign").exists():
        make_adapter(
            tiny_llama, workplace / "foreign", seed=8, base="org/other", r=4, target_modules=["q_proj"]
        )
        succeed(run("add", "foreign"))
    before = sorted(workplace.rglob("*"))
    out = () if "--out" in command else ("--out", "refused")
    result = run("bundle", *command, *out)
    assert (result.returncode, result.stderr.startswith(message.format(place=workplace))) == (code, True), (
        result.stderr
    )
    assert [path for path in sorted(workplace.rglob("*")) if "catalog.db" not in path.name] == [
        path for path in before if "catalog.db" not in path.name
    ]
