"""Text in: tasks, sources, splits and batches.

`load_dataset` gives a `TextDataset` from the hub, a file or the built-in corpus; `choose_split` parts its rows;
`tokenize` and the batch functions make arrays of them. Nothing here needs torch.
"""

from dimec.data.batches import bucketed_batches, covering_length, read_batches, tell_cut, tokenize
from dimec.data.builtin import reviews
from dimec.data.dataset import TextDataset
from dimec.data.sources import load_dataset, load_labelled
from dimec.data.splits import Split, choose_split, split_dataset

__all__ = [
    "Split",
    "TextDataset",
    "bucketed_batches",
    "choose_split",
    "covering_length",
    "load_dataset",
    "load_labelled",
    "read_batches",
    "reviews",
    "split_dataset",
    "tell_cut",
    "tokenize",
]
