"""A checker of plain English: passages of prose, and the habits that make one hard to read.

It reads docstrings, comments, messages and Markdown pages. It knows phrases, not grammar, so each rule
is narrow, and its exceptions are listed beside it with their reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Passage:
    """A piece of prose and where it is; ``of`` is the kind of definition that a docstring describes."""

    line: int
    text: str
    of: str = ""


@dataclass(frozen=True)
class Habit:
    """A phrase to avoid, what to write instead, and where it is right (with the reason beside it)."""

    name: str
    phrase: re.Pattern[str]
    instead: str
    allowed: re.Pattern[str]


@dataclass(frozen=True)
class Finding:
    """A habit in a passage."""

    line: int
    quote: str
    habit: str
    instead: str

    def __str__(self) -> str:
        return f"{self.line}: {self.habit}: `{self.quote}`; write {self.instead}"


def _habit(name: str, phrase: str, instead: str, *allowed: str) -> Habit:
    exceptions = "|".join(allowed) or r"(?!)"
    return Habit(name, re.compile(phrase, re.IGNORECASE), instead, re.compile(exceptions, re.IGNORECASE))


# A finding is dropped where an exception matches a text that overlaps it.
HABITS = (
    _habit(
        "no for not",
        r"\b(?:is|are|was|were|be|being|it's) no\b",
        '"is not a ..." or "there is no ..."',
        # Existence: "there is no gap", "if there are no members", "is there no room".
        r"\bthere (?:is|are|was|were|(?:can|could|may|must|should|will|would) be) no\b",
        r"\b(?:is|are|was|were|can|could|may|must|should|will|would) there (?:be )?no\b",
        r"\bno (?:longer|more|less|fewer)\b|\bno \w+er than\b",  # comparisons: "no longer"
        r"\bis no, ",  # an answer, yes or no
    ),
    _habit(
        "somebody",
        r"\b(?:nobody|somebody|whoever|everybody|anybody)\b(?:'s)?",
        "who it is, or the passive",
    ),
    _habit(
        "code that speaks",
        r"\b(?:told|tells|said|says)\b",
        '"reports", "states", "shows", "is given" or "message"',
        r"\b(?:told|tells) (?:\w+ ){0,4}apart\b",  # "told apart": distinguished
    ),
    _habit(
        "place as posture",
        r"\b(?:stands|stood|lies|lying|lay)\b",
        '"is", "is stored", "is at"',
        r"\bstands for\b",  # a symbol that stands for its meaning
    ),
    _habit(
        "place as posture",
        r"\b(?:that|they|which|files|rows|may|might|can|could|must|to|would|should|not) (?:stand|lie)\b",
        '"are", "are stored", "are at"',
        r"\bstand for\b",  # symbols that stand for their meaning
    ),
    _habit(
        "riddle",
        r"\bwhat (?:it|they|he) (?:came|comes?|amounts?|amounted) (?:to|of)\b|\bwhat (?:came|comes) of\b",
        "the result by its name",
    ),
)

_QUESTION = {"what", "how", "whether", "where", "who", "whom", "whose", "which", "when", "why"}
# A verb that is missing here may be added; "say" and "tell" are missing on purpose.
_VERBS = set(
    """
    accept access accumulate add adjust adopt advance align allow annotate announce answer append apply
    apportion approximate arrange ask assemble assert assign attach attempt attribute average await back
    batch begin bind block bound break bring broadcast build cache call cancel capture carry cast catalogue
    catch change check choose chunk clamp clean clear click close collect combine commit compare compile
    complete compress compute concatenate confirm connect consume continue convert copy correct count cover
    crash create cut deal decide declare decode decorate define delete deliver derive describe detach
    determine disable discard display distribute divide do download drain draw drip drive drop dump emit
    enable encode end ensure enter erase escape estimate evaluate examine exchange exclude execute exit
    expand expect explain export expose express extend extract fail feed fetch fill filter find finish fit
    fix flag flatten flip flush fold follow forbid force forget fork format forward free freeze fuse gather
    generate get give go grant group grow guard guess halt hand handle hash have hide hold identify ignore
    import include increase index infer initialise insert inspect install interleave interpret interrupt
    intersect invert invoke iterate join judge keep kill label launch lay leave let lift limit link list
    listen load locate lock log look loop lower make map mark mask match materialise measure memorise merge
    mimic mirror mount move multiply name narrow negate normalise note notice notify obtain offer omit open
    order override pack pad parse pass pause perform permute pick pin place plan play plot point poison poll
    populate post predict prefer prefix prepare preserve press prevent print probe process produce project
    prove provide prune publish pull push put query queue quiet quote raise randomise rank reach read
    rebuild receive recognise recompute record recover redirect reduce refer refit reflect refresh refuse
    register reject release reload remember remove rename render reorder repeat replace replay reply report
    represent request require reserve reset reshape resolve restore restrict retry return reuse reverse
    revert rewind rewrite roll rotate round route run sample save scale scan scatter schedule score search
    seed seek select send separate serialise serve set settle shard share shift shorten show shrink shuffle
    shut sign silence simulate skip sleep slice solve sort split spread squeeze stack stage standardise
    start state stop store stream strip subtract suggest sum summarise supply support suppress swap switch
    synchronise take tamper tear terminate test tie time tokenise touch trace track train transfer transform
    translate transpose traverse treat trim truncate try tune turn type undo unlink unpack unregister update
    upgrade upload use validate vary verify visit wait walk warm warn watch weigh widen withdraw work wrap
    write yield
    """.split()  # noqa: SIM905 - a list would take two hundred lines
)
# What describes a value: a property is read like an attribute, a fixture is the value that a test gets,
# and a rule's docstring is the title that reports show.
_VALUE_DECORATORS = {"property", "cached_property", "fixture", "composite", "rule"}


def read_python(source: str, *, literals: bool = True) -> Iterator[Passage]:
    """Yield a module's docstrings and comments, and with ``literals`` its texts of three words or more."""
    tree = ast.parse(source)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstring(node, docstrings)
    if literals:
        yield from _literals(tree, docstrings)
    yield from _comments(source)


def read_markdown(text: str) -> Iterator[Passage]:
    """Yield the paragraphs of a page, code blocks left out and inline code replaced by a placeholder."""
    fence = ""
    paragraph: list[str] = []
    start = 1
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
            line = ""
        elif fence or line.startswith("    "):
            continue
        if not line.strip():
            if paragraph:
                yield Passage(start, "\n".join(paragraph))
            paragraph = []
        elif paragraph:
            paragraph.append(line)
        else:
            paragraph, start = [line], number


def check(passage: Passage) -> Iterator[Finding]:
    """Yield the habits of a passage."""
    text = re.sub(r"``.+?``|`[^`\n]+`", lambda code: re.sub(r"\S", "x", code[0]), passage.text)
    flat = text.replace("\n", " ")
    for habit in HABITS:
        allowed = [match.span() for match in habit.allowed.finditer(flat)]
        for match in habit.phrase.finditer(flat):
            first, last = match.span()
            if not any(start < last and first < end for start, end in allowed):
                line = passage.line + text.count("\n", 0, first)
                yield Finding(line, _around(flat, first, last), habit.name, habit.instead)
    yield from _check_opening(passage)


def _check_opening(passage: Passage) -> Iterator[Finding]:
    """Check how a docstring begins: a function's with a verb, a class's or a module's with a noun."""
    if not passage.of or not passage.text.strip():
        return
    opening = passage.text.strip().splitlines()[0]
    words = re.findall(r"[\w'-]+", opening.split("`")[0])
    if passage.of == "function" and not _is_imperative(words):
        yield Finding(
            passage.line, opening[:60], "no imperative verb", '"Return ...", "Write ...", "Check ..."'
        )
    elif passage.of == "noun" and words[:1] and (words[0].lower() in _QUESTION or words[:2] == ["All", "of"]):
        yield Finding(passage.line, opening[:60], "no noun", "the thing by its name")


def _is_imperative(words: list[str]) -> bool:
    return bool(words) and words[0].lower() in _VERBS and words[1:2] != ["of"]


def _docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, seen: set[int]
) -> Iterator[Passage]:
    statement = node.body[0] if node.body else None
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return
    text = statement.value.value
    if isinstance(text, str):
        seen.add(id(statement.value))
        yield Passage(statement.lineno, text, _kind(node))


def _kind(node: ast.AST) -> str:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return "noun"
    decorators = {_last_name(each) for each in node.decorator_list}
    if node.name.startswith("test_") or decorators & _VALUE_DECORATORS:
        return "value"
    return "function"


def _last_name(node: ast.expr) -> str:
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _literals(tree: ast.Module, docstrings: set[int]) -> Iterator[Passage]:
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(each) for each in node.values)
            text = "".join(str(each.value) if isinstance(each, ast.Constant) else "x" for each in node.values)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings | inside
        ):
            text = node.value
        else:
            continue
        if len(text.split()) >= 3:
            yield Passage(node.lineno, text)


def _comments(source: str) -> Iterator[Passage]:
    """Yield the comments, those of consecutive lines as one passage."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line != last + 1:
            yield Passage(start, "\n".join(block))
            block = []
        start = start if block else line
        block.append(token.string.lstrip("#! "))
        last = line
    if block:
        yield Passage(start, "\n".join(block))


def _around(text: str, first: int, last: int) -> str:
    return re.sub(r"\s+", " ", text[max(0, first - 30) : last + 20]).strip()
