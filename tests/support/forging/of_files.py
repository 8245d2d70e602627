"""Forged folders, manifests and records."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .forger import CARD, CONFIG, MANIFEST, RECORD, WEIGHTS, Forger, add, forgery, sha256, spell

FOREIGN = {
    "adapter_model.bin": b"\x80\x04cos\nsystem\n",
    "modeling_x.py": b"import os",
    "install.sh": b"rm -rf /",
    "config.json": b'{"auto_map":{"AutoModelForCausalLM":"modeling_x.X"}}',
    "tokenizer.json": b"{}",
}


def listed(name: str, path: str, data: bytes, shown: str) -> None:
    """Add a forgery with one more file, which the manifest lists."""
    add(f"lists-{name}", f"{shown}, listed in the manifest", lambda forger: forger.put(path, data))


for path, data in FOREIGN.items():
    listed(path.replace(".", "-").replace("_", "-"), path, data, f"`{path}`")
listed("record", RECORD, b"{}", "the record itself")
listed("signature", "model.sig", b"{}", "a signature")
listed(
    "card-of-other-case", "readme.md", b"# Ours\n", "`readme.md`, which differs from the card in case alone"
)
listed(
    "weights-of-other-case",
    "Adapter_Model.safetensors",
    b"",
    "`Adapter_Model.safetensors`, which differs in case alone",
)
listed("notes-of-members", "experts/notes.txt", b"notes", "`experts/notes.txt`")
listed(
    "member-of-none", "experts/delta/adapter_config.json", b"{}", "a folder of a member that there is none of"
)


def path_listed(name: str, path: str, shown: str) -> None:
    """Add a forgery whose manifest lists a path that is not a file's."""

    def forge(forger: Forger) -> None:
        forger.manifest["files"][path] = {"sha256": sha256(b""), "size_bytes": 0}
        forger.bind()

    add(f"path-{name}", f"the path {shown} in the manifest", forge)


path_listed("upwards", "../evil", "`../evil`")
path_listed("absolute", "/etc/passwd", "`/etc/passwd`")
path_listed("with-dots", "a/../b", "`a/../b`")
path_listed("hidden", ".hidden", "`.hidden`")
path_listed("with-backslash", "a\\b", "`a\\b`")
path_listed("with-two-slashes", "a//b", "`a//b`")
path_listed("of-a-folder", "README.md/", "`README.md/`")
path_listed("written-backwards", "con\u202e.txt", "with a mark that turns the writing round")
path_listed("of-600-letters", "x" * 600, "of 600 letters")
path_listed("decomposed", "README\u0301.md", "with an accent of its own letter")


@forgery("pickle and script beside the bundle, which no manifest lists")
def unlisted_files(forger: Forger) -> None:
    forger.write("evil.py", b"print(1)")
    forger.write("adapter_model.bin", b"\x80\x04cos\nsystem\n")


@forgery("members' folders beside the bundle, which no manifest lists")
def unlisted_members(forger: Forger) -> None:
    forger.write("experts/alpha/adapter_config.json", b"{}")


def unlisted(name: str, path: str, data: bytes, shown: str) -> None:
    add(name, shown, lambda forger: forger.write(path, data))


unlisted(
    "signature-beside",
    "model.sig",
    b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}',
    "a signature beside the bundle, made by a stranger",
)
unlisted(
    "git-attributes-beside",
    ".gitattributes",
    b"*.safetensors filter=lfs\n",
    "git's own file beside the bundle",
)
unlisted("card-edited", CARD, b"# Ours\n<script>alert(1)</script>\n", "the card edited")


@forgery("the card rewritten with another licence and base, and its digest mended")
def card_rewritten(forger: Forger) -> None:
    forger.put(
        CARD, b"---\nlicense: mit\nbase_model: evil/base\n---\n# Official\n<script>alert(1)</script>\n"
    )


@forgery("the card deleted")
def card_missing(forger: Forger) -> None:
    (forger.folder / CARD).unlink()


@forgery("the card taken out of folder and manifest")
def card_not_listed(forger: Forger) -> None:
    (forger.folder / CARD).unlink()
    del forger.manifest["files"][CARD]
    forger.bind()


def taken_from_the_manifest(name: str, path: str, shown: str) -> None:
    def forge(forger: Forger) -> None:
        del forger.manifest["files"][path]
        forger.bind()

    add(name, shown, forge)


taken_from_the_manifest("weights-not-listed", WEIGHTS, "the weights not listed in the manifest")
taken_from_the_manifest("config-not-listed", CONFIG, "the config not listed in the manifest")


@forgery("the weights deleted")
def weights_missing(forger: Forger) -> None:
    (forger.folder / WEIGHTS).unlink()


@forgery("a wrong size of the weights in the manifest, with the right digest")
def size_wrong(forger: Forger) -> None:
    forger.manifest["files"][WEIGHTS]["size_bytes"] += 1
    forger.bind()


@forgery("the weights' digest in upper case")
def digest_upper_case(forger: Forger) -> None:
    entry = forger.manifest["files"][WEIGHTS]
    entry["sha256"] = entry["sha256"].upper()
    forger.bind()


@forgery("the manifest's `files` twice, the first without the weights")
def manifest_key_twice(forger: Forger) -> None:
    text = spell(forger.manifest).decode()
    forger.bind(text.replace('"files": {', '"files": {},\n  "files": {', 1).encode())


@forgery("manifest of another version")
def manifest_version(forger: Forger) -> None:
    forger.manifest["meteora_manifest"] = 2
    forger.bind()


@forgery("a key at the top of the manifest that is not known")
def manifest_key_unknown(forger: Forger) -> None:
    forger.manifest["approved"] = True
    forger.bind()


@forgery("the manifest on one line, with the record bound to it")
def manifest_respelled(forger: Forger) -> None:
    forger.bind(spell(forger.manifest).replace(b"\n", b" "))


@forgery("the manifest cut in the middle")
def manifest_cut(forger: Forger) -> None:
    forger.bind(spell(forger.manifest)[:1000])


@forgery("the manifest of another sound bundle")
def manifest_of_another(forger: Forger) -> None:
    other = Forger(forger.folder.parents[2] / "cast")
    forger.manifest, forger.record = other.manifest, other.record
    forger.bind()


@forgery("a member's folder with the weights of another, listed", start="experts")
def expert_of_another(forger: Forger) -> None:
    weights = (forger.folder / "experts/beta" / WEIGHTS).read_bytes()
    forger.put(f"experts/alpha/{WEIGHTS}", weights)


@forgery("a member's folder with one bit changed, listed", start="experts")
def expert_by_one_bit(forger: Forger) -> None:
    path = f"experts/alpha/{WEIGHTS}"
    data = (forger.folder / path).read_bytes()
    forger.put(path, data[:-1] + bytes([data[-1] ^ 1]))


@forgery("a member's folder and its quoted digest changed, and the bundle's factors not", start="experts")
def expert_with_its_quoted_digest(forger: Forger) -> None:
    path = f"experts/alpha/{WEIGHTS}"
    data = (forger.folder / path).read_bytes()
    data = data[:-1] + bytes([data[-1] ^ 1])
    forger.quoted("alpha")["weights_sha256"] = sha256(data)
    forger.put(path, data)


@forgery("a member's config in its folder changed, listed", start="experts")
def expert_config(forger: Forger) -> None:
    path = f"experts/alpha/{CONFIG}"
    forger.put(path, (forger.folder / path).read_bytes().replace(b'"lora_alpha": 8', b'"lora_alpha": 9'))


@forgery("one file of a member's folder left out", start="experts")
def expert_incomplete(forger: Forger) -> None:
    path = f"experts/alpha/{CONFIG}"
    (forger.folder / path).unlink()
    del forger.manifest["files"][path]
    forger.bind()


@forgery("all members' folders left out of folder and manifest", start="experts")
def experts_left_out(forger: Forger) -> None:
    for path in [path for path in forger.manifest["files"] if path.startswith("experts/")]:
        (forger.folder / path).unlink()
        del forger.manifest["files"][path]
    forger.bind()


def outside(forger: Forger, name: str) -> str:
    """Move a file out of the folder, and return where it is."""
    target = forger.folder.parent / "outside"
    target.mkdir()
    return os.fspath((forger.folder / name).rename(target / name))


@forgery("the weights are a link to a file outside")
def link_to_weights(forger: Forger) -> None:
    (forger.folder / WEIGHTS).symlink_to(outside(forger, WEIGHTS))


@forgery("the card is a link to a file of the system, with its digest")
def link_to_the_system(forger: Forger) -> None:
    (forger.folder / CARD).unlink()
    (forger.folder / CARD).symlink_to("/etc/passwd")
    forger.relist()
    forger.bind()


@forgery("the members' folders are a link to a folder outside", start="experts")
def link_to_members(forger: Forger) -> None:
    (forger.folder / "experts").symlink_to(outside(forger, "experts"))


@forgery("the weights are a second name of a file outside")
def second_name_of_the_weights(forger: Forger) -> None:
    (forger.folder / WEIGHTS).hardlink_to(outside(forger, WEIGHTS))


@forgery("the config is a pipe, on which a reader would wait for ever")
def config_is_a_pipe(forger: Forger) -> None:
    (forger.folder / CONFIG).unlink()
    os.mkfifo(forger.folder / CONFIG)


@forgery("a folder in the place of the weights")
def weights_are_a_folder(forger: Forger) -> None:
    (forger.folder / WEIGHTS).unlink()
    (forger.folder / WEIGHTS).mkdir()


def recorded(name: str, forged: str, change: Callable[[Forger], Any]) -> None:
    """Add a forgery of the record, sealed again; the bundle is as it was."""

    def forge(forger: Forger) -> None:
        change(forger)
        forger.seal_record()

    add(f"record-{name}", forged, forge)


recorded(
    "hand-written",
    "a hand-written pass: no backend, no module, and problems listed",
    lambda forger: forger.record.update(
        backends_run=[],
        modules={},
        created_at="tomorrow",
        notes=["audited"],
        problems=["all is wrong"],
        unchecked=["everything"],
    ),
)
recorded(
    "error-above-tolerance",
    "a pass with an error above the tolerance",
    lambda forger: forger.record["backends_run"][0].update(max_error=9e9),
)
recorded(
    "tolerance-own",
    "a pass with a tolerance of its own",
    lambda forger: forger.record["backends_run"][0].update(max_error=9e9, tolerance=1e10),
)
recorded(
    "module-missing", "a pass without one of the modules", lambda forger: forger.record["modules"].popitem()
)
recorded(
    "module-other",
    "a pass for a module that the bundle does not have",
    lambda forger: forger.record["modules"].update({"model.x": {"forced": 0.0, "routed": 0.0}}),
)
recorded(
    "fewer-modules-run",
    "a backend that ran fewer modules",
    lambda forger: [run.update(modules=1) for run in forger.record["backends_run"]],
)
recorded(
    "error-not-finite",
    "a pass with an output that was not finite",
    lambda forger: next(iter(forger.record["modules"].values())).update(routed=None),
)
recorded(
    "module-error-large",
    "a pass with one module's error far above the largest",
    lambda forger: next(iter(forger.record["modules"].values())).update(routed=0.5),
)
recorded(
    "error-negative",
    "a pass with a negative error",
    lambda forger: forger.record["backends_run"][0].update(max_error=-1.0),
)
recorded(
    "backend-unknown",
    "a pass by a backend that is not known",
    lambda forger: [run.update(backend="oracle") for run in forger.record["backends_run"]],
)
recorded(
    "level-lower", "a record of level `integrity`", lambda forger: forger.record.update(level="integrity")
)
recorded(
    "failed",
    "a record that failed",
    lambda forger: forger.record.update(outcome="fail", problems=["a digest differs"]),
)
recorded(
    "failed-called-pass",
    "a failed record whose outcome alone was changed",
    lambda forger: forger.record.update(problems=["a digest differs"]),
)
recorded(
    "key-unknown",
    "a key in the record that is not known",
    lambda forger: forger.record.update(signed_by="someone famous"),
)
recorded(
    "version-2", "a record of another version", lambda forger: forger.record.update(meteora_verification=2)
)
recorded(
    "of-tomorrow",
    "a pass of the year 2999",
    lambda forger: forger.record.update(created_at="2999-01-01T00:00:00+00:00"),
)
recorded(
    "versions-made-up",
    "versions that do not exist",
    lambda forger: forger.record.update(versions={"meteora-registry": "9.9", "signed-by": "someone famous"}),
)
recorded(
    "of-another-bundle",
    "the record of another bundle",
    lambda forger: forger.__setattr__("record", Forger(forger.folder.parents[2] / "cast").record),
)


@forgery("the record edited and not sealed again")
def record_unsealed(forger: Forger) -> None:
    forger.record["backends_run"][0]["max_error"] = 0.0
    forger.write(RECORD, spell(forger.record))


@forgery("no record")
def record_missing(forger: Forger) -> None:
    (forger.folder / RECORD).unlink()


@forgery("the record's `outcome` twice, fail and then pass")
def record_key_twice(forger: Forger) -> None:
    text = spell(forger.record).decode()
    forger.write(RECORD, text.replace('"outcome"', '"outcome": "fail",\n  "outcome"', 1).encode())


@forgery("the manifest is a link to a file outside")
def link_to_the_manifest(forger: Forger) -> None:
    (forger.folder / MANIFEST).symlink_to(outside(forger, MANIFEST))
