"""A fit's state on disk after every epoch, so that a killed fit goes on and ends with the same weights.

One folder per checkpoint, ``epoch-K``, counted through all stages of training: complete or not there, since it is
renamed into place when it is whole. Kept are the newest one and the weights of the best epoch so far of its stage.
Tensors are safetensors; nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dimec.core.errors import RunError
from dimec.core.files import check_readable, replacing, write_atomically
from dimec.core.outputs import remove_written
from dimec.core.untrusted import read_json, trusting_nothing
from dimec.runs.exit_table import Dynamics
from dimec.training.processes import ALONE, Processes

_NEWEST = "state.json"


@dataclass
class EpochLog:
    """The results of one epoch: a line of ``metrics.jsonl``; each stage counts its epochs from 1."""

    epoch: int
    loss: float
    validation_scores: list[float]
    validation_losses: list[float]
    seconds: float
    samples_per_second: float
    stage: str


class Recorder:
    """Fills the dynamics of a fixed set of samples from logits that training has computed anyway."""

    def __init__(self, n: int, *, epochs: int, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.dynamics = Dynamics(
            np.full((n, epochs, len(layers)), np.nan, dtype=np.float32),
            np.zeros((n, epochs, len(layers)), dtype=np.bool_),
        )

    def record(
        self,
        epoch: int,
        samples: NDArray[np.integer],
        *,
        logits: NDArray[np.float32],
        labels: NDArray[np.integer],
    ) -> None:
        """Take logits [b, exits, classes] of some samples [b] with labels [b] in an epoch, counted from 0."""
        shifted = logits - logits.max(axis=2, keepdims=True)
        true = np.take_along_axis(shifted, labels[:, None, None], axis=2)[:, :, 0]
        self.dynamics.true_probability[samples, epoch] = np.exp(true) / np.exp(shifted).sum(axis=2)
        self.dynamics.correct[samples, epoch] = logits.argmax(axis=2) == labels[:, None]

    def merge(self, epoch: int, total: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Fill an epoch's samples that other processes recorded; ``total`` sums over the processes."""
        dynamics = self.dynamics
        dynamics.true_probability[:, epoch] = total(
            np.nan_to_num(dynamics.true_probability[:, epoch])
        )
        dynamics.correct[:, epoch] = total(dynamics.correct[:, epoch].astype(np.uint8))


def write_metrics(path: Path, history: Sequence[EpochLog]) -> None:
    """Write a line of JSON for each epoch."""
    lines = "".join(json.dumps(vars(log)) + "\n" for log in history)
    write_atomically(path, lambda partial: partial.write_text(lines, encoding="utf-8"))


def save_checkpoint(
    folder: Path,
    *,
    history: Sequence[EpochLog],
    best_epoch: int,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    recorders: Mapping[str, Recorder],
) -> None:
    """Write the state after the last epoch of ``history``; only the best epoch of its stage keeps its weights too.

    ``best_epoch`` is a place in ``history``, counted from 1.
    """
    epoch = len(history)
    with replacing(folder / f"epoch-{epoch}") as partial:
        save_file(_whole(model.state_dict()), partial / "model.safetensors")
        for index, optimizer in enumerate(optimizers):
            save_file(_flatten(optimizer), partial / f"optimizer-{index}.safetensors")
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        save_file(states, partial / "random.safetensors")
        for name, recorder in recorders.items():
            arrays = {key: torch.from_numpy(own) for key, own in vars(recorder.dynamics).items()}
            save_file(arrays, partial / f"dynamics-{name}.safetensors")
        state = {"history": [vars(log) for log in history], "best_epoch": best_epoch}
        (partial / _NEWEST).write_text(json.dumps(state), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _sync(path)
    for old in sorted(folder.glob("epoch-*")):
        if old.name != f"epoch-{epoch}":
            kept = f"{old.name}/model.safetensors"
            remove_written(
                folder,
                (f"{old.name}/*.safetensors", f"{old.name}/{_NEWEST}"),
                except_for=(kept,) if old.name == f"epoch-{best_epoch}" else (),
            )
            with suppress(OSError):
                old.rmdir()  # one that a killed fit has emptied already


def read_history(folder: Path) -> list[EpochLog]:
    """Return the epochs up to the newest checkpoint, none without one.

    Raises:
        RunError: If the checkpoint is damaged.
    """
    newest = _newest(folder)
    if newest is None:
        return []
    for path in sorted(newest.iterdir()):
        check_readable(path, fault=RunError)
    with _trusting_nothing(newest):
        state = read_json(newest / _NEWEST)
        history = [EpochLog(**log) for log in state["history"]]
        if newest.name != f"epoch-{len(history)}":
            raise ValueError(f"it tells of {len(history)} epochs")
        return history


def load_checkpoint(
    folder: Path,
    epoch: int,
    *,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    recorders: Mapping[str, Recorder],
    processes: Processes = ALONE,
) -> None:
    """Restore the checkpoint after an epoch in place, in every process.

    ``optimizers`` are those of the stage that the epoch, the last of ``read_history``, belongs to.

    Raises:
        RunError: If the checkpoint is damaged.
    """
    newest, load = folder / f"epoch-{epoch}", processes.load
    with _trusting_nothing(newest):
        model.load_state_dict(load(newest / "model.safetensors"))
        for index, optimizer in enumerate(optimizers):
            _unflatten(optimizer, load(newest / f"optimizer-{index}.safetensors"))
        for name, recorder in recorders.items():
            arrays = load(newest / f"dynamics-{name}.safetensors")
            for key, own in vars(recorder.dynamics).items():
                own[:] = arrays[key].numpy()
        states = load(newest / "random.safetensors")
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def load_best_weights(
    folder: Path, best_epoch: int, *, model: torch.nn.Module, processes: Processes = ALONE
) -> None:
    """Give the model the weights of the best epoch, in every process."""
    weights = processes.load(folder / f"epoch-{best_epoch}" / "model.safetensors")
    model.load_state_dict(weights)


def _newest(folder: Path) -> Path | None:
    """Return the newest checkpoint; folders of older ones hold weights alone."""
    complete = [path for path in folder.glob("epoch-*") if (path / _NEWEST).exists()]
    complete = [path for path in complete if not path.name.endswith(".partial")]
    return max(complete, key=lambda path: int(path.name.removeprefix("epoch-")), default=None)


def _trusting_nothing(checkpoint: Path) -> AbstractContextManager[None]:
    remedy = f"delete {checkpoint.parent} to start the fit anew"
    return trusting_nothing(checkpoint, RunError, remedy=remedy)


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as a file takes them; what is shared, such as exits' pooler, is there as often as it is named."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.data_ptr()
        found[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return found


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimiser's moments under ``<parameter index>.<name>``; its settings come from the options."""
    state = optimizer.state_dict()["state"]
    return _whole(
        {
            f"{index}.{name}": torch.as_tensor(value)
            for index, moments in state.items()
            for name, value in moments.items()
        }
    )


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        counter = tensor.ndim == 0 and not tensor.is_floating_point()  # SparseAdam counts in an int
        state.setdefault(int(index), {})[name] = int(tensor) if counter else tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _sync(path: Path) -> None:
    """Make a file or a folder's entries durable; Windows has no such thing for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
