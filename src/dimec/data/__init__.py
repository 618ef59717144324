"""Text in: tasks, sources, splits and batches.

`load_dataset` gives a `TextDataset` from the hub, a file or the built-in corpus; `choose_split` parts its rows;
`tokenize` and the batch functions make arrays of them. Nothing here needs torch.
"""

from dimec.data.batches import bucketed_batches, covering_length, read_batches, tell_cut, tokenize
from dimec.data.builtin import reviews
from dimec.data.dataset import TextDataset
from dimec.data.delimited import MAX_CELL_CHARACTERS
from dimec.data.likeness import Leakage
from dimec.data.sources import load_dataset, load_labelled
from dimec.data.splits import Split, choose_split, split_dataset
from dimec.data.tasks import TASKS, Task, find_task

__all__ = [
    "MAX_CELL_CHARACTERS",
    "TASKS",
    "Leakage",
    "Split",
    "Task",
    "TextDataset",
    "bucketed_batches",
    "choose_split",
    "covering_length",
    "find_task",
    "load_dataset",
    "load_labelled",
    "read_batches",
    "reviews",
    "split_dataset",
    "tell_cut",
    "tokenize",
]
