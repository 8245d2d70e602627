"""The public face with the Hub: add, push, verify and pull from a Python program, with the real client."""

from __future__ import annotations

from pathlib import Path

from support.hub import LoopbackHub
from support.hub_commands import Workplace
from support.small_adapters import make_adapter

SESSION = """
from pathlib import Path
import meteora_registry as meteora

with meteora.Registry("home") as registry:
    added = registry.add("org/legal", tags=["hub"])
    assert (added.version.origin.kind, added.version.tags) == ("hub", ("hub",)), added
    assert registry.add("hf://org/legal").created is False
    fusion = registry.fuse(["legal"], "bundle", name="team")
    plan = registry.push("team", "org/bundle", dry_run=True)
    assert plan.created and plan.commit is None, plan
    pushed = registry.push(Path("bundle"), "org/bundle", tag="v1")
    assert pushed.commit and pushed.tag == "v1", pushed
    assert registry.push("legal", "org/legal-again").commit
    assert registry.push("team@1", "org/bundle", tag="v1").added == ()
    assert registry.verify("org/bundle@v1").outcome is meteora.Outcome.PASS
    try:
        registry.verify("org/bundle", keep_record=True)
    except meteora.UsageError as error:
        print(error)
    try:
        registry.pull("org/missing")
    except meteora.HubNotFound:
        print("not there")

with meteora.Registry(Path("other")) as registry:
    pulled = registry.pull("org/bundle@v1", Path("pulled"))
    assert pulled.version.manifest_sha256 == fusion.version.manifest_sha256
    assert registry.find("bundle:legal").license == "mit"
    assert registry.adopt("bundle:legal", name="law").version.claimed_by, registry.find("law")
    try:
        # Level integrity compares no member with its own file, so nothing would be confirmed by it.
        registry.verify("bundle", refetch=True)
    except meteora.UsageError as error:
        print(error)
    assert registry.find("law").claimed_by
    record = registry.verify("bundle", level="source", refetch=True)
    assert record.established == ("intact", "from its members"), record
    assert registry.find("law").claimed_by is None
print("done")
"""

FUSE_SESSION = """
import sys, tempfile
from pathlib import Path
import meteora_registry as meteora

scratch = Path("scratch").absolute()
scratch.mkdir()
tempfile.tempdir = str(scratch)
commit, medical = sys.argv[1], Path(sys.argv[2])
members = {"hub": "org/legal@main", "local": medical, "deep": "hf://org/many@main/a/b"}
with meteora.fuse(members) as fused:
    origins = {member.name: member.origin for member in fused.bundle.manifest.members}
    assert (origins["hub"].kind, origins["hub"].commit) == ("hub", commit), origins
    assert origins["hub"].location == f"hf://org/legal@{commit}", origins
    assert origins["local"].kind == "folder", origins
    assert origins["deep"].location.endswith("/a/b"), origins
    fused.save("bundle")
    assert fused.verify().outcome is meteora.Outcome.PASS
    assert list(scratch.iterdir())
assert not list(scratch.iterdir())
with meteora.fuse(["org/legal", str(medical)]) as fused, meteora.Registry("home") as registry:
    registry.add("org/legal")
    registry.add(medical)
    fusion = registry.fuse(["legal", "medical"], "again")
    assert fused.bundle.manifest_sha256 == fusion.version.manifest_sha256
for source, options in (
    ("org/missing", {}),
    ("org/many", {}),
    ("org/legal", {"max_bytes": 10}),
    ("org/broken", {}),
):
    try:
        meteora.fuse([medical, source], **options)
    except meteora.MeteoraError as error:
        print(f"{type(error).__name__}: {error}")
assert not list(scratch.iterdir())
"""


def test_python_session_adds_pushes_verifies_and_pulls(
    here: Workplace, hub: LoopbackHub, legal: Path
) -> None:
    done = here.run_python(SESSION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "the record can only be written into a bundle on this machine",
        "not there",
        "refetching goes with level `source`, which compares the members with their own files",
        "done",
    ]
    assert hub.repositories["org/bundle"].head.files["meteora_manifest.json"]
    assert legal.is_dir()


def test_fuse_takes_repositories_beside_folders_and_leaves_no_download(
    here: Workplace, hub: LoopbackHub, legal: Path, tmp_path: Path
) -> None:
    medical = make_adapter(tmp_path / "medical", seed=2)
    deep = make_adapter(tmp_path / "deep", seed=3)
    files = {path.name: path.read_bytes() for path in deep.iterdir()}
    hub.create(
        "org/many", {f"{folder}/{name}": data for folder in ("a/b", "c") for name, data in files.items()}
    )
    broken = make_adapter(tmp_path / "broken", seed=4, alpha=None)  # type: ignore[arg-type]
    hub.create("org/broken", broken)
    commit = hub.repositories["org/legal"].head.oid
    done = here.run_python(FUSE_SESSION, commit, str(medical))
    assert done.returncode == 0, done.stderr
    missing, many, large, refused = done.stdout.splitlines()
    assert missing.startswith("HubNotFound: the Hub has no repository `org/missing`")
    assert many.startswith("UsageError: `org/many` holds 2 adapters: `a/b`, `c`")
    assert large.startswith("HubRefused: `adapter_config.json` of `hf://org/legal@")
    assert refused.startswith("AdapterRefused: `hf://org/broken@")
    assert legal.is_dir()
