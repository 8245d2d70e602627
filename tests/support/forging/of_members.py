"""Forged members: factors, ranks, scalings, names, and their origins."""

from __future__ import annotations

import json
from typing import Any

import torch

from .forger import PREFIX, Forger, Json, add, forgery, sha256, spell

NAMES = ("alpha", "beta", "gamma")
HUB_ORIGIN = {"kind": "hub", "location": "hf://meta-llama/official@" + "a" * 40, "commit": "a" * 40}


def poison(forger: Forger) -> None:
    """Turn every member against itself."""
    for name in NAMES:
        for block in forger.factors(name, "B"):
            block *= -5


def quoted_changed(name: str, forged: str, **fields: Any) -> None:
    """Add a forgery that puts other values into the manifest's entry of the first member."""

    def forge(forger: Forger) -> None:
        forger.quoted("alpha").update(fields)
        forger.seal()

    add(name, forged, forge)


def stated_changed(name: str, forged: str, scaling: float, **stated: Any) -> None:
    """Add a forgery that gives a member another scaling, and its quoted config too."""

    def forge(forger: Forger) -> None:
        forger.member("alpha")["scaling"] = scaling
        forger.change_quoted_config("alpha", lambda config: config.update(stated))
        forger.seal()

    add(name, forged, forge)


@forgery("every B times -5, with the genuine digests")
def factors_poisoned(forger: Forger) -> None:
    poison(forger)
    forger.seal()


@forgery("every B times -5, called the loss of a cast")
def factors_poisoned_as_cast(forger: Forger) -> None:
    poison(forger)
    for member in forger.manifest["members"]:
        member["cast"] = {"source": ["F32"], "target": "F16", "max_relative_error": 1e-4}
    forger.seal()


@forgery("every B times -5 in a bundle that was cast, where no digest can be compared", start="cast")
def factors_poisoned_in_a_cast(forger: Forger) -> None:
    poison(forger)
    forger.seal()


@forgery(
    "every B times -5, and a made-up training state in each quoted header, so that no digest is compared"
)
def factors_poisoned_with_training_state(forger: Forger) -> None:
    poison(forger)
    for name in NAMES:
        quoted = forger.quoted(name)
        header = json.loads(quoted["weights_header"])
        last = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        path = f"{PREFIX}model.layers.0.self_attn.q_proj"
        state = {"dtype": "F32", "shape": [4], "data_offsets": [last, last + 16]}
        header[f"{path}.lora_velora_projection"] = state
        text = json.dumps(header, separators=(",", ":"))
        quoted.update(weights_header=text, weights_bytes=8 + len(text.encode()) + last + 16)
    forger.seal()


@forgery("every B times -5, with digests, origin and licence made up to match")
def factors_poisoned_self_consistent(forger: Forger) -> None:
    poison(forger)
    for name in NAMES:
        forger.requote_weights(name)
        forger.quoted(name).update(origin=HUB_ORIGIN, license="apache-2.0")
    forger.seal()


@forgery("every B times -5, with the digests of another publisher's genuine adapter")
def factors_poisoned_with_foreign_digest(forger: Forger) -> None:
    poison(forger)
    for name in NAMES:
        forger.quoted(name)["weights_sha256"] = sha256(name.encode())
    forger.seal()


@forgery("one number of one factor by one unit in the last place")
def factor_by_one_unit(forger: Forger) -> None:
    number = forger.factors("alpha", "A")[0]
    number[0, 0] = torch.nextafter(number[0, 0], torch.tensor(9.0))
    forger.seal()


@forgery("A of a member doubled and B halved, so that the product stays")
def factors_rebalanced(forger: Forger) -> None:
    for block in forger.factors("alpha", "A"):
        block *= 2
    for block in forger.factors("alpha", "B"):
        block /= 2
    forger.seal()


@forgery("factors of a member exchanged between two layers, with a matching digest")
def factors_of_another_layer(forger: Forger) -> None:
    first, second = (forger.factors("alpha", "B")[place] for place in (0, 2))
    kept = first.clone()
    first[:], second[:] = second.clone(), kept
    forger.requote_weights("alpha")
    forger.seal()


@forgery("factors of two members exchanged in one module")
def factors_of_another_member(forger: Forger) -> None:
    path = "model.layers.0.self_attn.q_proj"
    for letter in "AB":
        block = forger.tensors[f"{PREFIX}{path}.meteora_{letter}"]
        first, second = forger.rows("alpha", path), forger.rows("gamma", path)
        block[first], block[second] = block[second].clone(), block[first].clone()
    forger.seal()


@forgery("one factor is 1e30")
def factors_huge(forger: Forger) -> None:
    forger.factors("alpha", "B")[0][:] = 1e30
    forger.seal()


@forgery("one factor is infinite, with a matching digest")
def factors_infinite(forger: Forger) -> None:
    forger.factors("alpha", "B")[0][0, 0] = torch.inf
    forger.requote_weights("alpha")
    forger.seal()


@forgery("a tiny number in a row of padding")
def padding_tiny(forger: Forger) -> None:
    forger.tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.meteora_A"][5, 0] = 1e-45
    forger.seal()


@forgery("zeros of the padding with a minus sign")
def padding_minus_zero(forger: Forger) -> None:
    forger.tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.meteora_A"][5] = -0.0
    forger.seal()


@forgery("a hidden delta of its own in the padding of both factors")
def padding_used(forger: Forger) -> None:
    for letter in "AB":
        forger.tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.meteora_{letter}"][5] = 1.0
    forger.seal()


def hide_module(header: str, path: str) -> str:
    """Return a quoted header in which a module's tensors have other names, as long as it was."""
    entries = json.loads(header)
    for name in [name for name in entries if path in name]:
        entry = entries.pop(name)
        entries[name.replace("lora_A.weight", "stat_a").replace("lora_B.weight", "stat_b")] = entry
    return json.dumps(entries, separators=(",", ":")).ljust(len(header))


@forgery("a module left out for all members, and hidden in the quoted headers")
def module_dropped(forger: Forger) -> None:
    path = forger.targets.pop()
    for name in [name for name in forger.tensors if path in name]:
        del forger.tensors[name]
    for member in forger.config["members"]:
        member["overrides"].pop(path, None)
    for member in forger.manifest["members"]:
        member["weights_header"] = hide_module(member["weights_header"], path)
    forger.seal()


@forgery("scaling of a member times 3 in the config alone")
def scaling_in_the_config(forger: Forger) -> None:
    forger.member("alpha")["scaling"] *= 3
    forger.seal()


stated_changed(
    "scaling-in-both", "scaling of a member times 3, and its quoted config agrees", 6.0, lora_alpha=24
)
stated_changed("scaling-huge", "scaling 1e300, and the quoted config agrees", 1e300, lora_alpha=4e300)
stated_changed("scaling-negative", "scaling -2, and the quoted config agrees", -2.0, lora_alpha=-8)
stated_changed(
    "scaling-rslora",
    "scaling by the square root of the rank, and the quoted config agrees",
    4.0,
    use_rslora=True,
)


@forgery("`lora_alpha` of the quoted config alone")
def alpha_in_the_quoted_config(forger: Forger) -> None:
    forger.change_quoted_config("alpha", lambda config: config.update(lora_alpha=24))
    forger.seal()


@forgery("scaling in one module alone, by an override")
def scaling_in_one_module(forger: Forger) -> None:
    forger.member("alpha")["overrides"][forger.targets[0]] = {"rank": 4, "scaling": 200.0}
    forger.seal()


@forgery("rank 8 for a member of rank 4, whose padding is as long")
def rank_in_the_config(forger: Forger) -> None:
    forger.member("alpha")["rank"] = 8
    forger.seal()


@forgery("rank 8 for a member of rank 4, and the quoted config agrees")
def rank_in_both(forger: Forger) -> None:
    forger.member("alpha")["rank"] = 8
    forger.change_quoted_config("alpha", lambda config: config.update(r=8, lora_alpha=16))
    forger.seal()


@forgery("rank 3 for a member of rank 4, so that a row is not read")
def rank_lower(forger: Forger) -> None:
    forger.member("alpha")["rank"] = 3
    forger.seal()


@forgery("a member declared absent from a module, whose rows another takes over")
def rank_zero(forger: Forger) -> None:
    forger.member("alpha")["overrides"]["model.layers.0.self_attn.q_proj"] = {"rank": 0, "scaling": 2.0}
    forger.member("beta")["overrides"]["model.layers.0.self_attn.q_proj"] = {"rank": 16, "scaling": 1.0}
    forger.seal()


@forgery("an override for a module that the bundle does not have")
def override_of_nothing(forger: Forger) -> None:
    forger.member("alpha")["overrides"]["model.layers.9.self_attn.q_proj"] = {"rank": 4, "scaling": 1.0}
    forger.seal()


@forgery("names of two members exchanged in config and manifest")
def names_exchanged(forger: Forger) -> None:
    other = {"alpha": "gamma", "gamma": "alpha"}
    for member in [*forger.config["members"], *forger.manifest["members"]]:
        member["name"] = other.get(member["name"], member["name"])
    forger.seal()


def renamed(name: str, forged: str, to: str) -> None:
    """Add a forgery that calls the first member something else everywhere."""

    def forge(forger: Forger) -> None:
        for member in (forger.member("alpha"), forger.quoted("alpha")):
            member["name"] = to
        forger.seal()

    add(name, forged, forge)


renamed("name-cyrillic", "a name with a letter that only looks like `a`", "\u0430lpha")
renamed("name-upper-case", "a name in upper case, beside which a file system may see no other", "Alpha")
renamed("name-of-another", "the name of another member", "beta")
renamed("name-path", "a name that is a path", "../alpha")
renamed("name-new", "a new name that is allowed", "official-llama")


@forgery("members of the config in another order")
def order_in_the_config(forger: Forger) -> None:
    forger.config["members"].reverse()
    forger.seal()


@forgery("members of the manifest in another order")
def order_in_the_manifest(forger: Forger) -> None:
    forger.manifest["members"].reverse()
    forger.seal()


@forgery("a member left out of the manifest")
def member_not_in_the_manifest(forger: Forger) -> None:
    del forger.manifest["members"][-1]
    forger.seal()


@forgery("a member left out of the config")
def member_not_in_the_config(forger: Forger) -> None:
    del forger.config["members"][-1]
    forger.seal()


@forgery("one more member in the manifest than in the config")
def member_invented(forger: Forger) -> None:
    forger.manifest["members"].append(forger.quoted("alpha") | {"name": "official"})
    forger.seal()


@forgery("no members at all")
def members_none(forger: Forger) -> None:
    forger.config["members"] = forger.manifest["members"] = []
    forger.seal()


@forgery("a renaming of modules that the base does not know")
def renaming_invented(forger: Forger) -> None:
    path = "model.layers.0.self_attn."
    forger.quoted("alpha")["renamed_modules"] = {path + "v_proj": path + "o_proj"}
    forger.seal()


quoted_changed(
    "origin-made-up", "an origin on the Hub for a member that came from a folder", origin=HUB_ORIGIN
)
quoted_changed(
    "origin-commit-word", "an origin at a commit that is a word", origin=HUB_ORIGIN | {"commit": "main"}
)
quoted_changed("licence-made-up", "a licence that the member does not have", license="mit")
quoted_changed("member-base-made-up", "another base for one member", base="evil/base")
quoted_changed("weights-bytes-wrong", "another size of a member's file", weights_bytes=17)
quoted_changed("weights-digest-wrong", "the digest of nothing as a member's", weights_sha256="0" * 64)
quoted_changed("weights-digest-upper-case", "a digest in upper case", weights_sha256="AB" * 32)
quoted_changed("config-digest-wrong", "another digest of a member's config", config_sha256="0" * 64)
quoted_changed(
    "member-key-unknown", "a key in a member's entry that is not known", audited_by="someone famous"
)
quoted_changed(
    "cast-made-up",
    "a cast where nothing was cast",
    cast={"source": ["BF16"], "target": "F32", "max_relative_error": 0.5},
)


@forgery("the cast taken out of the manifest of a bundle that was cast", start="cast")
def cast_denied(forger: Forger) -> None:
    for member in forger.manifest["members"]:
        member["cast"] = None
    forger.seal()


@forgery("a smaller error of the cast than there was", start="cast")
def cast_error_made_up(forger: Forger) -> None:
    for member in forger.manifest["members"]:
        member["cast"]["max_relative_error"] = 0.0
    forger.seal()


def respell_config(forger: Forger, text: str) -> None:
    forger.quote_config("alpha", text)
    forger.seal()


@forgery("a quoted config with other spaces, and its digest")
def quoted_config_respelled(forger: Forger) -> None:
    respell_config(forger, spell(json.loads(forger.quoted("alpha")["config_text"])).decode())


@forgery("a quoted config with `r` twice, and its digest")
def quoted_config_key_twice(forger: Forger) -> None:
    text = forger.quoted("alpha")["config_text"]
    respell_config(forger, text.replace('"r": 4', '"r": 64, "r": 4', 1))


@forgery("a quoted config that is not JSON, and its digest")
def quoted_config_no_json(forger: Forger) -> None:
    respell_config(forger, "import os")


@forgery("a quoted config that PEFT cannot load, and its digest")
def quoted_config_broken(forger: Forger) -> None:
    forger.change_quoted_config("alpha", lambda config: config.update(target_modules="["))
    forger.seal()


@forgery("a quoted config that asks for DoRA, which the bundle does not compute")
def quoted_config_dora(forger: Forger) -> None:
    forger.change_quoted_config("alpha", lambda config: config.update(use_dora=True))
    forger.seal()


def requote_header(forger: Forger, header: Json) -> None:
    forger.quoted("alpha")["weights_header"] = json.dumps(header, separators=(",", ":"))


@forgery("a quoted header with other metadata, and a matching digest")
def quoted_header_metadata(forger: Forger) -> None:
    header = json.loads(forger.quoted("alpha")["weights_header"])
    header["__metadata__"] = {"format": "pt", "trained_by": "someone famous"}
    requote_header(forger, header)
    forger.requote_weights("alpha")
    forger.seal()


@forgery("a quoted header whose tensors overlap")
def quoted_header_overlapping(forger: Forger) -> None:
    header = json.loads(forger.quoted("alpha")["weights_header"])
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    entries[2]["data_offsets"] = entries[0]["data_offsets"]
    requote_header(forger, header)
    forger.seal()


@forgery("a quoted header with a tensor that no bundle keeps")
def quoted_header_more(forger: Forger) -> None:
    header = json.loads(forger.quoted("alpha")["weights_header"])
    last = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    header["base_model.model.lm_head.weight"] = {
        "dtype": "F32",
        "shape": [1],
        "data_offsets": [last, last + 4],
    }
    requote_header(forger, header)
    forger.seal()


@forgery("a quoted header with another element type of the same size")
def quoted_header_dtype(forger: Forger) -> None:
    quoted = forger.quoted("alpha")
    quoted["weights_header"] = quoted["weights_header"].replace('"F32"', '"I32"')
    forger.seal()
