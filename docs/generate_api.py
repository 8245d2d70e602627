"""The writer of ``docs/api.md``, from the docstrings of the public names: ``python docs/generate_api.py``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import BaseModel

import meteora_registry as meteora

TARGET = Path(__file__).with_name("api.md")
PREFACE = """# Python

Written by `docs/generate_api.py` from the docstrings; change them, not this file.

```python
import meteora_registry as meteora
```

These names are public; every other module of the package is internal and may change. A name is imported
when it is first used. `fuse`, `load`, and what verifies, fits or evaluates need the `runtime` extra. A
`StrPath` is a text or a path; a `Source` is what such a text means: a folder, a repository on the Hub, or a
catalogued name.
"""
# What a program begins with, in the order of a session.
_FIRST = ("Registry", "fuse", "FusedBundle", "load", "LoadedBundle")
# Members that come from a base class which is not public itself.
_INHERITED = {"Registry": ("catalog", "store", "close")}
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
_ENTRY = re.compile(r"    (\S[^:]*): (.*)")


class _Plain(str):
    """A text that a signature shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def render() -> str:
    """Return the whole page."""
    rest = [name for name in meteora.__all__ if name not in _FIRST]
    errors = [name for name in rest if _is_error(getattr(meteora, name))]
    functions = [name for name in rest if inspect.isfunction(getattr(meteora, name))]
    values = [name for name in rest if name not in (*errors, *functions)]
    groups = {"Start here": _FIRST, "Routing": functions, "Values": values, "Errors": errors}
    parts = [PREFACE]
    for title, names in groups.items():
        parts += [f"## {title}\n", *(_describe(name, getattr(meteora, name)) for name in names)]
    return "\n".join(parts)


def _is_error(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, meteora.MeteoraError)


def _describe(name: str, found: Any) -> str:
    parts = [f"### {name}"]
    if inspect.isfunction(found):
        parts += [_code(_signature(name, found)), _text(found)]
    else:
        inherited = [_attributes(owner) for owner in _with_fields(found) if owner is not found]
        parts += [_text(found), *filter(None, inherited), *_body(name, found)]
    return "\n\n".join(parts) + "\n"


def _body(name: str, found: type) -> Iterator[str]:
    if _is_error(found):
        bases = ", ".join(f"`{base.__name__}`" for base in found.__bases__)
        yield f"Bases: {bases}."
    elif issubclass(found, Enum):
        yield "Values: " + ", ".join(f"`{member.name}`" for member in found) + "."
    elif fields := list(_fields(found)):
        yield _code("\n".join(fields))
    elif found is meteora.Registry:
        yield _code(_signature(name, found.__init__, bound=True))
    inherited = {key: inspect.getattr_static(found, key) for key in _INHERITED.get(name, ())}
    for key, member in (inherited | vars(found)).items():
        if not key.startswith("_"):
            yield from _member(f"{name}.{key}", member)


def _member(name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property | cached_property):
        yield f"#### {name}"
        yield _text(member)
    elif isinstance(member, classmethod) or inspect.isfunction(member):
        function = member.__func__ if isinstance(member, classmethod) else member
        yield f"#### {name}"
        yield _code(_signature(name, function, bound=True))
        yield _text(function)


def _fields(found: type) -> Iterator[str]:
    """Yield the fields of a dataclass, a document or a typed dictionary, with their types and defaults."""
    for owner in _with_fields(found):
        for key, annotation in inspect.get_annotations(owner).items():
            text = str(getattr(annotation, "__forward_arg__", annotation))
            if not key.startswith("_") and not text.startswith("ClassVar"):
                yield f"{key}: {_without_notes(text, owner)}{_default(found, key)}"


def _with_fields(found: type) -> Iterator[type]:
    """Yield the dataclasses that a dataclass inherits fields from, and the class itself."""
    bases = reversed(found.__mro__[1:]) if dataclasses.is_dataclass(found) else ()
    yield from filter(dataclasses.is_dataclass, bases)
    yield found


def _without_notes(annotation: str, owner: type) -> str:
    """Return an annotation with the plain type in place of each name for an annotated one."""
    names = vars(sys.modules[owner.__module__])

    def plain(match: re.Match[str]) -> str:
        named = names.get(match[0])
        return named.__origin__.__name__ if get_origin(named) is Annotated else match[0]

    return re.sub(r"\w+", plain, annotation)


def _default(found: type, key: str) -> str:
    default: Any = dataclasses.MISSING
    if dataclasses.is_dataclass(found):
        default = found.__dataclass_fields__[key].default
    elif issubclass(found, BaseModel) and not found.model_fields[key].is_required():
        default = found.model_fields[key].default
    return "" if default is dataclasses.MISSING else f" = {_shown(default)!r}"


def _signature(name: str, function: Callable[..., Any], *, bound: bool = False) -> str:
    signature = inspect.signature(function)
    parameters = [_readable(each) for each in signature.parameters.values()][1 if bound else 0 :]
    returns = "" if function.__name__ == "__init__" else f" -> {signature.return_annotation}"
    listed = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    line = f"{name}{listed}{returns}"
    if len(line) <= 100:
        return line
    shown = "".join(f"    {each},\n" for each in _with_markers(parameters))
    return f"{name}(\n{shown}){returns}"


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        parameter = parameter.replace(annotation=_Plain(annotation))
    return parameter.replace(default=_shown(parameter.default))


def _shown(default: Any) -> Any:
    if isinstance(default, Enum):
        return _Plain(f"{type(default).__name__}.{default.name}")
    if inspect.isfunction(default):
        return _Plain(default.__name__)
    return default


def _with_markers(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """Yield each parameter, and a star before the first that is given by name only."""
    kinds = [each.kind for each in parameters]
    for place, parameter in enumerate(parameters):
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.kind not in kinds[:place]:
            yield "*"
        yield str(parameter)


def _text(found: Any) -> str:
    """Return a docstring as Markdown, its sections as lists."""
    lines: list[str] = []
    in_section = False
    for line in inspect.cleandoc(found.__doc__ or "").splitlines():
        entry = _ENTRY.fullmatch(line)
        if _SECTION.fullmatch(line):
            in_section = True
            lines += [f"**{line}**", ""]
        elif in_section and entry:
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            lines.append(f"- {names}: {entry[2]}")
        elif in_section and line:
            lines.append(f"  {line.strip()}")
        else:
            in_section = False
            lines.append(line)
    return "\n".join(lines).replace("``", "`")


def _attributes(found: type) -> str:
    """Return the section of a docstring that describes the attributes, as Markdown."""
    return _text(found).partition("**Attributes:**\n\n")[2]


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
