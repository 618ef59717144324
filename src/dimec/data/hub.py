"""A registry task's training rows from the Hugging Face hub.

A `Task` goes in, an open `Table` comes out. Whatever goes wrong on the way (no network, a hub that lacks the set) is
one `UnreachableError` that names the ways that need no hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dimec.core.errors import MissingExtraError, UnreachableError
from dimec.data.columns import Table
from dimec.data.faults import Row
from dimec.data.tasks import Task

_PROBE_TIMEOUT_S = 5.0


def open_hub(task: Task) -> Table:
    """Load the training split of a task that has a hub address.

    Raises:
        UnreachableError: the hub cannot be reached or does not hold the set.
        MissingExtraError: the library that speaks with the hub is not installed.
    """
    assert task.hub is not None, "load_dataset asks the hub for what it holds"
    try:
        import datasets
        from huggingface_hub import HfApi
        from huggingface_hub.errors import OfflineModeIsEnabled
    except ImportError as exc:
        raise MissingExtraError(f"loading {task.name} from the hub", "train") from exc

    try:
        # The loader below retries for half a minute, so one question that does not retry goes first. Whoever has set
        # offline mode means the cache, which needs no hub.
        HfApi().dataset_info(task.hub, timeout=_PROBE_TIMEOUT_S)
    except OfflineModeIsEnabled:
        pass
    except Exception as exc:
        raise _unreachable(task, exc) from exc
    try:
        rows: Any = datasets.load_dataset(task.hub, task.name, split="train")
    # The loader's errors come from half a dozen libraries and share no base.
    except Exception as exc:
        raise _unreachable(task, exc) from exc

    def read(names: Sequence[str]) -> Iterator[Row]:
        position = 0
        for batch in rows.select_columns(list(names)).iter(batch_size=8192):
            for cells in zip(*(batch[name] for name in names), strict=True):
                yield Row(position + 1, position, cells)
                position += 1

    return Table(f"hub {task.hub} {task.name}", tuple(rows.column_names), read)


def _unreachable(task: Task, exc: Exception) -> UnreachableError:
    reason = (str(exc).splitlines() or [""])[0][:120]
    return UnreachableError(
        f"the hub gave no {task.hub} {task.name} ({type(exc).__name__}: {reason}): give the rows yourself with "
        "--data FOLDER|FILE, use the built-in task reviews, "
        "or set HF_HUB_OFFLINE=1 if the Hugging Face cache holds them"
    )
