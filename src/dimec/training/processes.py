"""The processes of one fit, as `accelerate launch` or `torchrun` starts them; one alone asks nobody.

Each training batch is parted among the processes and the gradients are summed, so that a step is the one that a single
process takes, whatever their number: same split, same batches, same schedule. The first process writes the run's
folder; the others need not see it. Gradients are summed here rather than by a wrapper around the model, since the word
embeddings' are sparse, which NCCL does not sum, and what learns changes between stages.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, load_file
from torch import Tensor

from dimec.core.errors import DimecError, OptionError
from dimec.core.extras import needs_training
from dimec.core.progress import Progress, n_launched
from dimec.data import read_batches

_PATIENCE = timedelta(hours=2)
"""How long the others wait while the first process fits exit zero or writes."""

_SAID = 4000
"""The most bytes of a process's error that the first one repeats."""

T = TypeVar("T")


def mixed_seed(*key: int) -> int:
    """Return a seed of torch's from several numbers, the same on every machine."""
    mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of a fit.

    Attributes:
        count: How many there are.
        index: This one's number, from 0; the first writes and reports.
    """

    count: int = 1
    index: int = 0
    device: torch.device | None = None

    @classmethod
    def join(cls) -> Processes:
        """Meet the other processes that the launcher started, where there are any.

        Raises:
            MissingExtraError: If there are and Accelerate is not installed.
        """
        if n_launched() == 1:
            return ALONE
        with needs_training():
            from accelerate import PartialState
        with _with_others():
            state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        atexit.register(state.destroy_process_group)
        return cls(count=state.num_processes, index=state.process_index, device=state.device)

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's folder and reports."""
        return self.index == 0

    def share(self, batch: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
        """Return this process's rows of a batch and their weight in its mean.

        Where a batch has too few rows, they are a row of weight 0, so that every process takes every step.
        """
        own = batch[self.index :: self.count]
        return (own, len(own) / len(batch)) if len(own) else (batch[:1], 0.0)

    def seed(self, *key: int) -> None:
        """Let the draws of the processes after the first begin anew, each with its own; the first goes on with its."""
        if self.index:
            torch.manual_seed(mixed_seed(*key, self.index))

    def backward(
        self, loss: Tensor, weight: float, optimizers: Sequence[torch.optim.Optimizer]
    ) -> float:
        """Leave the gradients of the whole batch at what the optimisers move; return its loss.

        ``loss`` is the mean of this process's rows, ``weight`` their share in the batch.
        """
        if self.count == 1:
            loss.backward()
            return float(loss.detach())
        loss = loss * weight
        loss.backward()
        moved = [
            each for one in optimizers for group in one.param_groups for each in group["params"]
        ]
        moved = [each for each in moved if each.grad is not None]
        dense = [each for each in moved if not each.grad.is_sparse]
        flat = torch.cat(
            [loss.detach().float().view(1), *(each.grad.float().flatten() for each in dense)]
        )
        flat = self._sum(flat)
        parts = flat[1:].split([each.numel() for each in dense])
        for each, part in zip(dense, parts, strict=True):
            each.grad.copy_(part.view_as(each))
        for each in moved:
            if each.grad.is_sparse:
                each.grad = self._sum_of_rows(each.grad.coalesce())
        return float(flat[0])

    def read_batches(
        self,
        batches: Sequence[NDArray[np.int64]],
        read: Callable[[NDArray[np.int64]], Sequence[NDArray[Any]]],
        *,
        progress: Progress,
        what: str,
    ) -> tuple[NDArray[Any], ...]:
        """Read batches as `dimec.data.read_batches` does, every process its share of them; all get every row."""
        if self.count == 1:
            return read_batches(batches, read, progress=progress, what=what)
        own, n = batches[self.index :: self.count], sum(map(len, batches))
        arrays = read_batches(own or batches[:1], read, n=n, progress=progress, what=what)
        return tuple(self.sum(array if own else np.zeros_like(array)) for array in arrays)

    def sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of the processes' arrays: of rows that one of them has and the others hold at zero, theirs."""
        if self.count == 1:
            return array
        return self._sum(torch.from_numpy(array).to(self.device)).cpu().numpy()

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """Return what the first process makes; the others do not make it."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast

        made = bytearray(make() if self.writes else b"")
        with _with_others():
            size = int(broadcast(torch.tensor([len(made)], device=self.device)))
            if not self.writes:
                made = bytearray(size)
            if size:
                sent = torch.frombuffer(made, dtype=torch.uint8).to(self.device)
                made = bytearray(broadcast(sent).cpu().numpy().tobytes())
        return bytes(made)

    def load(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a file of the first process."""
        return load_file(path) if self.count == 1 else load(self.from_first(path.read_bytes))

    def together(self, work: Callable[[], T], *, alike: Callable[[T], str]) -> T:
        """Do work in every process; where it fails in one, it fails in all, and the first tells why.

        Raises:
            OptionError: If it failed in another process, or what ``alike`` says of it is not the same in all of them.
        """
        if self.count == 1:
            return work()
        try:
            done = work()
        except DimecError as exc:
            self._gather_words(str(exc))
            raise
        for index, fault in enumerate(self._gather_words("")):
            if fault:
                raise OptionError(f"process {index} of {self.count}: {fault}")
        found = self._gather_words(alike(done))
        for index, words in enumerate(found):
            if words != found[0]:
                raise OptionError(
                    f"process {index} of {self.count} has {words}, process 0 has {found[0]}: give every machine "
                    "the same data, backbone and versions"
                )
        return done

    def _sum(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        with _with_others():
            return cast(Tensor, reduce(tensor, "sum"))

    def _sum_of_rows(self, gradient: Tensor) -> Tensor:
        """Return the sum of the processes' sparse gradients [words, width]."""
        rows, values = gradient.indices()[0], gradient.values()
        first = int(rows[0])  # padding repeats a row of its own, with nothing added to it
        rows, values = self._gather(rows, pad=first), self._gather(values)
        shape = gradient.shape
        total = torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False)
        return total.coalesce()

    def _gather(self, tensor: Tensor, *, pad: int = 0) -> Tensor:
        from accelerate.utils import gather, pad_across_processes

        with _with_others():
            return cast(Tensor, gather(pad_across_processes(tensor, pad_index=pad)))

    def _gather_words(self, words: str) -> list[str]:
        sent = np.zeros((1, _SAID), np.uint8)
        said = words.encode()[:_SAID]
        sent[0, : len(said)] = np.frombuffer(said, np.uint8)
        rows = self._gather(torch.from_numpy(sent).to(self.device)).cpu().numpy()
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


@contextmanager
def _with_others() -> Iterator[None]:
    """Translate what torch raises where another process does not answer."""
    try:
        yield
    except RuntimeError as exc:  # torch's own errors of communication are kinds of it
        first = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise DimecError(
            f"another process of this fit has stopped or cannot be reached ({first}): see what it said, and give the "
            "same command again to go on after the last whole epoch"
        ) from exc


ALONE = Processes()
"""A process that no launcher started with others."""
