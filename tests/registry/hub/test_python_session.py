"""The public face with the Hub: add, push, verify and pull from a Python program, with the real client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.hub import LoopbackHub
from support.hub_commands import Workplace

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
    assert registry.find("legal").license == "mit"
print("done")
"""


def test_python_session_adds_pushes_verifies_and_pulls(
    here: Workplace, hub: LoopbackHub, legal: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        cwd=here.folder,
        env=here.machine.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "`keep_record` goes with a bundle on this machine",
        "not there",
        "done",
    ]
    assert hub.repositories["org/bundle"].head.files["meteora_manifest.json"]
    assert legal.is_dir()
