"""The tasks dimec knows by name: what a row holds, what its label is called, what it is scored by.

A task name goes in (`find_task`), a `Task` comes out. Any other name is a user's own task: `sources` makes a `Task`
for it from what it finds in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from dimec.core.metrics import Metric


@dataclass(frozen=True)
class Task:
    """One classification task; ``label_names[i]`` is the name of the class with code i.

    ``text_columns`` are the hub's names of the one or two texts that a row holds; ``hub`` is where the Hugging Face
    hub keeps the set, of which the task's name is the configuration.
    """

    name: str
    label_names: tuple[str, ...]
    metric: Metric
    text_columns: tuple[str, ...]
    hub: str | None = None

    @property
    def n_classes(self) -> int:
        """Count the classes."""
        return len(self.label_names)

    @property
    def is_pair(self) -> bool:
        """Tell whether a row holds two texts."""
        return len(self.text_columns) == 2


_GLUE = "nyu-mll/glue"
_NLI = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # Is this phrase from a film review negative or positive?
        Task("sst2", ("negative", "positive"), "accuracy", ("sentence",), _GLUE),
        # Is this sentence grammatical English?
        Task("cola", ("unacceptable", "acceptable"), "matthews", ("sentence",), _GLUE),
        # Do these two sentences from the news say the same?
        Task("mrpc", ("not_equivalent", "equivalent"), "f1", ("sentence1", "sentence2"), _GLUE),
        # Do these two questions ask the same?
        Task("qqp", ("not_duplicate", "duplicate"), "f1", ("question1", "question2"), _GLUE),
        # Does this sentence hold the answer to this question?
        Task("qnli", _NLI, "accuracy", ("question", "sentence"), _GLUE),
        # Does the premise entail the hypothesis, contradict it, or neither?
        Task(
            "mnli",
            (_NLI[0], "neutral", "contradiction"),
            "accuracy",
            ("premise", "hypothesis"),
            _GLUE,
        ),
        # Does the first text entail the second?
        Task("rte", _NLI, "accuracy", ("sentence1", "sentence2"), _GLUE),
        # Generated short reviews, for demo and tests; never used for a claim.
        Task("reviews", ("negative", "positive"), "accuracy", ("text",)),
    )
}


def plain_name(name: str) -> str:
    """Fold a task's name so that ``SST-2``, ``sst_2`` and ``sst2`` are one."""
    return name.strip().lower().replace("-", "").replace("_", "")


def find_task(name: str) -> Task | None:
    """Look a task up by name, or give None where the name is a user's own."""
    return TASKS.get(plain_name(name))
