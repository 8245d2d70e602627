"""The paper's 28 tasks: where each is in BIG-bench's source package, how it is asked and how it is judged.

Data and nothing else. The judges are the nearest of this project's to the paper's: `normalised` where the
paper compares the whole answer, `contains` where it looks for the right answer within the text (here as whole
words), `yes-no` and `bleu` where it has BLEU and ROUGE. Which items are left out is this benchmark's own
choice, so that two CPU cores can train and ask all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from meteora_registry.schemas.evaluation import Metric


@dataclass(frozen=True, slots=True)
class PaperTask:
    """One task of the paper that BIG-bench has.

    Attributes:
        name: of the task in BIG-bench and in the paper, and of the adapter that is trained on it.
        metric: the judge of an answer.
        subtasks: the folders below the task's whose items are taken; none where the task itself has items.
        shows_choices: whether the prompt lists the item's choices; BIG-bench's own does so for four tasks,
            and the paper's for four more.
        max_letters: items with a longer prompt are left out.
        is_core: whether it is one of the sixteen that are short enough to begin with.
    """

    name: str
    metric: Metric
    subtasks: tuple[str, ...] = ()
    shows_choices: bool = False
    max_letters: int = 700
    is_core: bool = True

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders with a ``task.json`` each, below the package's folder of tasks."""
        return tuple(f"{self.name}/{each}" for each in self.subtasks) or (self.name,)


TASKS = (
    PaperTask("abstract_narrative_understanding", "contains", ("4_distractors",), shows_choices=True),
    PaperTask("contextual_parametric_knowledge_conflicts", "contains", max_letters=450),
    PaperTask("cs_algorithms", "normalised", ("lcs", "valid_parentheses")),
    PaperTask("elementary_math_qa", "normalised", ("question_only",), shows_choices=True),
    PaperTask("epistemic_reasoning", "normalised"),
    PaperTask("formal_fallacies_syllogisms_negation", "normalised"),
    PaperTask(
        "goal_step_wikihow",
        "contains",
        ("goal_inference", "step_inference", "step_ordering"),
        shows_choices=True,
    ),
    PaperTask("language_identification", "contains", shows_choices=True, max_letters=450),
    PaperTask("logical_deduction", "contains", ("three_objects",), shows_choices=True),
    PaperTask("object_counting", "contains"),
    PaperTask("play_dialog_same_or_different", "contains"),
    PaperTask("reasoning_about_colored_objects", "contains"),
    PaperTask("strategyqa", "yes-no"),
    PaperTask(
        "unit_conversion",
        "normalised",
        ("different_systems", "si_conversion", "unit_identification"),
        shows_choices=True,
    ),
    PaperTask("vitaminc_fact_verification", "contains"),
    PaperTask("winowhy", "normalised"),
    PaperTask("disfl_qa", "contains", max_letters=1000, is_core=False),
    PaperTask("question_selection", "contains", shows_choices=True, max_letters=1000, is_core=False),
    PaperTask(
        "tracking_shuffled_objects", "normalised", ("three_objects",), shows_choices=True, is_core=False
    ),
    PaperTask("linguistics_puzzles", "bleu", max_letters=1000, is_core=False),
    PaperTask("topical_chat", "bleu", max_letters=1000, is_core=False),
    PaperTask("paragraph_segmentation", "normalised", max_letters=800, is_core=False),
)

MISSING = {
    "alpaca": "instructions of Stanford's Alpaca",
    "cnn_dailymail": "news articles and their highlights",
    "gsm8k": "problems of grade-school mathematics",
    "news_commentary_de": "translations of WMT's News Commentary",
    "news_commentary_es": "translations of WMT's News Commentary",
    "news_commentary_it": "translations of WMT's News Commentary",
}
"""Tasks of the paper that are data sets of their own, which BIG-bench lacks: no source package has them."""

FOREIGN = (
    "anachronisms",
    "bridging_anaphora_resolution_barqa",
    "causal_judgment",
    "crass_ai",
    "date_understanding",
    "emoji_movie",
    "general_knowledge",
    "logical_fallacy_detection",
    "metaphor_boolean",
    "misconceptions",
    "navigate",
    "operators",
    "physical_intuition",
    "ruin_names",
    "social_iqa",
    "temporal_sequences",
)
"""Tasks whose prompts no member is for: neither the paper's, nor among those of benchmarks/abstention.py."""


def chosen_tasks(names: list[str]) -> tuple[PaperTask, ...]:
    """Return the tasks of these names in the order of ``TASKS``; `core` and `all` stand for several.

    Raises:
        ValueError: a name is not one of a task that can be had.
    """
    known = {task.name for task in TASKS}
    for name in names:
        if name in MISSING:
            raise ValueError(
                f"the task `{name}` ({MISSING[name]}) is not in BIG-bench and cannot be measured"
            )
        if name not in known | {"core", "all"}:
            raise ValueError(f"`{name}` is not a task, expected `core`, `all` or {', '.join(sorted(known))}")
    return tuple(
        task for task in TASKS if "all" in names or task.name in names or ("core" in names and task.is_core)
    )
