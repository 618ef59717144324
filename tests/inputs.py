"""Files of labelled texts as users have them, and files that are put back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dimec.costs.profiles import CostProfile, leaves
from dimec.data import TextDataset


def unsourced(profile: CostProfile) -> list[str]:
    """Return the paths of the figures that a profile gives no source for."""
    told = {"format", "name", "about", "width", "sources"}
    paths = leaves(profile.model_dump(exclude_unset=True, exclude=told))
    return [
        path
        for path in paths
        if not any(f"{path}.".startswith(f"{each}.") for each in profile.sources)
    ]


def write_rows(path: Path, dataset: TextDataset) -> Path:
    """Write single texts with the names of their labels, a JSON object a line, and return the path."""
    names = dataset.task.label_names
    pairs = zip(dataset.first, dataset.labels, strict=True)
    rows = [json.dumps({"text": text, "label": names[label]}) for text, label in pairs]
    path.write_text("\n".join(rows) + "\n")
    return path


def write_pairs(path: Path, dataset: TextDataset) -> Path:
    """Write each text with the next, and whether they have the same label, and return the path."""
    rows = ["sentence1,sentence2,label"]
    neighbours = zip(pairwise(dataset.first), pairwise(dataset.labels), strict=True)
    for (one, two), (first, second) in neighbours:
        rows.append(f'"{one}","{two}",{"same" if first == second else "other"}')
    path.write_text("\n".join(rows) + "\n")
    return path


def write(path: Path, text: str) -> Path:
    """Write a text as it is, line ends too, and return the path."""
    path.write_bytes(text.encode())
    return path


def write_columns(path: Path, texts: Sequence[str], labels: Sequence[object]) -> Path:
    """Write texts and labels in the format that the file's name says, and return the path."""
    frame = pd.DataFrame({"text": texts, "label": pd.Series(labels, dtype=object)})
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": list(texts), "label": list(labels)}), path)
    elif path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
    else:
        rows = (dict(zip(frame, row, strict=True)) for row in zip(texts, labels, strict=True))
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextlib.contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    """Give files back what they hold now, whatever is done to them."""
    whole = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
