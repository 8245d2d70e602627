"""Every command with its one-line summary, and the groups.

Help is printed from here: no command's file is imported for it. A summary is the first sentence of the
command's own help, at most 60 characters long.
"""

from __future__ import annotations

from .groups import DefaultGroup, LazyGroup, Listed, examples

# In the order of work, as the help lists them.
_ADAPTERS = {
    "validate": Listed("Find what is wrong with adapters, and the way out", ".validate"),
    "diff": Listed("Show what changed from one version to the next", ".diff"),
    "repair": Listed("Write a copy of an adapter under PEFT's tensor names", ".repair"),
    "add": Listed("Check adapters and record them as versions", ".add"),
    "list": Listed("List every adapter and bundle with its latest version", ".list"),
    "search": Listed("Find adapters that meet every condition given", ".search"),
    "show": Listed("Show one adapter or bundle version", ".show"),
    "history": Listed("Show the changes to one name, or to the whole catalog", ".history"),
    "tag": Listed("Attach tags to a version", ".labels", "tag"),
    "alias": Listed("Point an alias at a version", ".labels", "alias"),
    "edit": Listed("State a note or an owner of an adapter or a bundle", ".labels", "edit"),
    "rename": Listed("Give an adapter or a bundle another name", ".labels", "rename"),
    "adopt": Listed("Give a member of a pulled bundle a name of your own", ".adopt"),
    "remove": Listed("Move a version, or every version of a name, to the trash", ".remove"),
    "restore": Listed("Bring back what was removed", ".remove", "restore"),
    "trash": Listed("List what was removed and can be restored", ".remove", "trash"),
    "refresh": Listed("Show which catalogued adapters changed on the Hub", ".refresh"),
    "search-hub": Listed("List adapters of a base on the Hub, and add the chosen ones", ".search_hub"),
}
_CI = {
    "ci": Listed("Check what a pull request changes, as a job of a code host", ".commands", "ci"),
}
_BUNDLES = {
    "fuse": Listed("Fuse catalogued adapters into one routed bundle", ".fuse"),
    "bundle": Listed("Add, remove or replace one member of a bundle", ".commands", "bundle"),
    "verify": Listed("Check a bundle: its files, its structure, and its arithmetic", ".verify"),
    "push": Listed("Publish a verified bundle, or one catalogued adapter", ".push"),
    "pull": Listed("Fetch a bundle from the Hub, verify it, and catalogue it", ".pull"),
    "extract": Listed("Give one member or adapter back as a PEFT adapter's folder", ".extract"),
    "export": Listed("Write a bundle in the layout of the MeteoRA authors' code", ".exchange", "export"),
    "import": Listed("Make a bundle from the layout of the MeteoRA authors' code", ".exchange", "import_"),
}
_GATES = {
    "gate": Listed("Fit the gates of a bundle, or adopt trained ones", ".commands", "gate"),
    "eval": Listed("Score a bundle on its members' tasks, or compare evaluations", ".commands", "evaluation"),
    "trace": Listed("Show which member each token of a prompt and its answer took", ".trace"),
}
_ANSWERS = {
    "generate": Listed("Answer one prompt with a bundle", ".generate"),
    "chat": Listed("Hold a conversation with a bundle, and see who answers", ".chat"),
    "serve": Listed("Answer requests over HTTP, in the form of OpenAI's interface", ".serve"),
}
_CATALOG = {
    "doctor": Listed("Find what a crash or a manual change left, and repair it", ".doctor"),
    "store": Listed("Measure, check and clean the content store", ".commands", "store"),
    "db": Listed("Look after the catalog's database", ".commands", "database"),
    "config": Listed("Show the settings, and where each comes from", ".commands", "config"),
    "completion": Listed("Print what a shell needs to complete commands and names", ".completion"),
}
SECTIONS = {
    "Adapters": _ADAPTERS,
    "Bundles": _BUNDLES,
    "Gates": _GATES,
    "Answers": _ANSWERS,
    "CI": _CI,
    "Catalog": _CATALOG,
}
COMMANDS = {name: each for section in SECTIONS.values() for name, each in section.items()}

ci = LazyGroup(
    "ci",
    table={
        "github": Listed("Check what a pull request changes, in a GitHub Actions job", ".ci", "github"),
        "gitlab": Listed("Check what a merge request changes, in a GitLab CI job", ".ci", "gitlab"),
    },
    help="Check what a pull request changes, as a job of a code host.\n\n"
    "`action.yml` and the template for GitLab call these.",
    epilog=examples("ci github --policy policy.toml", "ci gitlab --lock adapters.lock"),
)
bundle = LazyGroup(
    "bundle",
    table={
        "add": Listed("Add a member to a bundle, without the others' data", ".bundle", "add"),
        "remove": Listed("Remove a member from a bundle, without any data", ".bundle", "remove"),
        "replace": Listed("Replace a member of a bundle by another adapter", ".bundle", "replace"),
    },
    help="Add, remove or replace one member of a bundle.\n\nThe other members' data are not needed.",
    epilog=examples(
        "bundle add bundle sports --data sports.jsonl --statistics ./statistics --out more",
        "bundle remove bundle sports --statistics ./statistics --out fewer",
        "bundle replace bundle sports@3 --out newer",
    ),
)
gate = LazyGroup(
    "gate",
    table={
        "fit": Listed("Fit the gates of a bundle on a few texts of each member", ".gate", "fit"),
        "adopt": Listed("Make a bundle of a routed model that PEFT saved", ".gate", "adopt"),
    },
    help="Fit the gates of a bundle, or adopt trained ones.\n\nThey choose a member for every token.",
    epilog=examples(
        "gate fit bundle --base ./base --data ./data --out fitted", "gate adopt ./trained --out adopted"
    ),
)
evaluation = DefaultGroup(
    "eval",
    table={
        "run": Listed("Score a bundle on its members' tasks", ".eval", "run"),
        "compare": Listed("Compare two evaluations item by item", ".eval", "compare"),
    },
    help="Score a bundle on its members' tasks, or compare evaluations.\n\n"
    "`eval BUNDLE ...` is `eval run BUNDLE ...`.",
    epilog=examples("eval ./bundle --base ./llama --data tasks/", "eval compare before.json after.json"),
)
store = LazyGroup(
    "store",
    table={
        "gc": Listed("Delete the blobs that nothing refers to", ".store", "gc"),
        "adopt": Listed("Make this catalog the only one that uses the store", ".store", "adopt"),
        "verify": Listed("Compare every blob that the catalog needs with its digest", ".store", "verify"),
        "du": Listed("Show the size of the content store", ".store", "du"),
    },
    help="Measure, check and clean the content store.\n\nIt holds the bytes of adapters.",
    epilog=examples("store du", "store verify", "store gc --dry-run"),
)
database = LazyGroup(
    "db",
    table={
        "upgrade": Listed("Bring the catalog to the schema of this version", ".db", "upgrade"),
        "current": Listed("Print the revision of the catalog's schema", ".db", "current"),
        "check": Listed("Check the catalog's schema and history, and look for damage", ".db", "check"),
        "export": Listed("Write the whole catalog to a file", ".db", "export"),
        "import": Listed("Read FILE, which `db export` wrote, into an empty catalog", ".db", "import_"),
        "backup": Listed("Copy a catalog on SQLite to a file, and check the copy", ".db", "backup"),
    },
    help="Look after the catalog's database.",
    epilog=examples("db current", "db upgrade", "db backup catalog-copy.db"),
)
config = LazyGroup(
    "config",
    table={
        "show": Listed("Show every setting and where it comes from", ".config", "show"),
        "path": Listed("Print the path of the user's file of settings", ".config", "path"),
    },
    help="Show the settings, and where each comes from.\n\nThey are changed by hand: docs/settings.md.",
    epilog=examples("config show", "config path"),
)
