"""The model that an adapter was trained on, as far as its config names it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

# The task whose model is loaded without an output layer.
HEADLESS_TASK = "FEATURE_EXTRACTION"


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """A class of model, a task, or neither. PEFT writes the class only where there is no task."""

    class_name: str | None = None
    task_type: str | None = None

    @classmethod
    def read(cls, task_type: object, auto_mapping: object) -> Self:
        """Return what the fields `task_type` and `auto_mapping` of a config say, whatever they hold."""
        name = auto_mapping.get("base_model_class") if isinstance(auto_mapping, dict) else None
        return cls(
            class_name=name if isinstance(name, str) else None,
            task_type=task_type if isinstance(task_type, str) else None,
        )

    @classmethod
    def common(cls, each: Iterable[Self]) -> Self:
        """Return what all adapters agree on; neither class nor task if they do not."""
        found = set(each)
        return found.pop() if len(found) == 1 else cls()

    @property
    def lacks_head(self) -> bool:
        """Whether it is a model without an output layer, such as ``AutoModel`` loads."""
        name = self.class_name or ""
        return self.task_type == HEADLESS_TASK or (name.endswith("Model") and "Head" not in name)


def agreed(values: Iterable[str | None]) -> str | None:
    """Return the one value that all agree on who state one, or None."""
    stated = {value for value in values if value}
    return stated.pop() if len(stated) == 1 else None


def common_mapping(stated: Iterable[tuple[str | None, object]]) -> dict[str, str] | None:
    """Return the class of transformers that all adapters were trained on, of each one's task and mapping.

    None if an adapter states a task, names no such class, or names another than the others.
    """
    found = [None if task else transformers_mapping(mapping) for task, mapping in stated]
    return found[0] if found and all(each == found[0] for each in found) else None


def transformers_mapping(value: object) -> dict[str, str] | None:
    """Return a config's ``auto_mapping`` if it names a class of transformers, otherwise None.

    PEFT imports the library that it names, so that of any other library is not carried into a bundle.
    """
    if not isinstance(value, dict):
        return None
    name, library = value.get("base_model_class"), value.get("parent_library")
    if not isinstance(name, str) or not isinstance(library, str):
        return None
    is_plain = name.isidentifier() and all(part.isidentifier() for part in library.split("."))
    if not is_plain or library.split(".")[0] != "transformers":
        return None
    return {"base_model_class": name, "parent_library": library}
