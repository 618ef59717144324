"""The tasks dimec knows by name: what a row holds, what its label is called, what it is scored by.

A task name goes in (`find_task`), a `Task` comes out. Any other name is a user's own task: `sources` makes a `Task`
for it from what it finds in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from dimec.core.metrics import Metric


@dataclass(frozen=True)
class HubAddress:
    """Where the Hugging Face hub keeps a data set."""

    path: str
    config: str

    def __str__(self) -> str:
        """Give the address as one writes it: path, then configuration."""
        return f"{self.path} {self.config}"


@dataclass(frozen=True)
class Task:
    """One classification task; ``label_names[i]`` is the name of the class with code i.

    ``text_columns`` are the hub's names of the one or two texts that a row holds.
    """

    name: str
    label_names: tuple[str, ...]
    metric: Metric
    text_columns: tuple[str, ...]
    hub: HubAddress | None = None
    title: str = ""
    description: str = ""

    @property
    def n_classes(self) -> int:
        """Count the classes."""
        return len(self.label_names)

    @property
    def is_pair(self) -> bool:
        """Tell whether a row holds two texts."""
        return len(self.text_columns) == 2


def _glue(
    name: str,
    label_names: tuple[str, ...],
    *,
    text_columns: tuple[str, ...],
    title: str,
    description: str,
    metric: Metric = "accuracy",
) -> Task:
    hub = HubAddress("nyu-mll/glue", name)
    return Task(name, label_names, metric, text_columns, hub, title, description)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue(
            "sst2",
            ("negative", "positive"),
            text_columns=("sentence",),
            title="Stanford Sentiment Treebank (SST-2)",
            description="Is this phrase from a film review negative or positive?",
        ),
        _glue(
            "cola",
            ("unacceptable", "acceptable"),
            text_columns=("sentence",),
            title="Corpus of Linguistic Acceptability (CoLA)",
            description="Is this sentence grammatical English?",
            metric="matthews",
        ),
        _glue(
            "mrpc",
            ("not_equivalent", "equivalent"),
            text_columns=("sentence1", "sentence2"),
            title="Microsoft Research Paraphrase Corpus (MRPC)",
            description="Do these two sentences from the news say the same?",
            metric="f1",
        ),
        _glue(
            "qqp",
            ("not_duplicate", "duplicate"),
            text_columns=("question1", "question2"),
            title="Quora Question Pairs (QQP)",
            description="Do these two questions ask the same?",
            metric="f1",
        ),
        _glue(
            "qnli",
            ("entailment", "not_entailment"),
            text_columns=("question", "sentence"),
            title="Question NLI (QNLI)",
            description="Does this sentence hold the answer to this question?",
        ),
        _glue(
            "mnli",
            ("entailment", "neutral", "contradiction"),
            text_columns=("premise", "hypothesis"),
            title="Multi-Genre NLI (MNLI)",
            description="Does the premise entail the hypothesis, contradict it, or neither?",
        ),
        _glue(
            "rte",
            ("entailment", "not_entailment"),
            text_columns=("sentence1", "sentence2"),
            title="Recognising Textual Entailment (RTE)",
            description="Does the first text entail the second?",
        ),
        Task(
            name="reviews",
            label_names=("negative", "positive"),
            metric="accuracy",
            text_columns=("text",),
            title="Generated short reviews",
            description="Built in and generated, for demo and tests; never used for a claim.",
        ),
    )
}


def plain_name(name: str) -> str:
    """Fold a task's name so that ``SST-2``, ``sst_2`` and ``sst2`` are one."""
    return name.strip().lower().replace("-", "").replace("_", "")


def find_task(name: str) -> Task | None:
    """Look a task up by name, or give None where the name is a user's own."""
    return TASKS.get(plain_name(name))
