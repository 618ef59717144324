"""The same work on a Ray cluster: files are read by tasks, blocks labelled by a pool of actors of a fixed size.

An actor takes a block through all tiers. So no pool can wait for another, whatever the shares of the tiers turn out to
be, and neither texts nor hidden states travel between tiers. A block travels as one row, which Ray keeps whole, and
each row by itself, so that one large file keeps all actors busy. An actor or a node that dies is replaced, and its
blocks are labelled again.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dimec.core.errors import DimecError, OptionError
from dimec.core.tiers import Tier
from dimec.corpus.asking import Asked, Bill, Ledger, StoppedError, Turn
from dimec.corpus.blocks import Block, Corpus
from dimec.corpus.labelling import Labeller, Work
from dimec.endpoints.said import Said, Text

_STORE_BYTES = 256 * 2**20
"""Memory of the object store of a cluster that is started here: blocks in flight take a few megabytes each."""

_READERS = 4


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Join a cluster, or start one on this machine for ``local``; one that this process has joined is used as it is.

    Raises:
        OptionError: If there is none at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # It calls it an error that a pool's actors can be started again.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise OptionError(
            f"--ray {address}: no cluster can be joined there ({reason}): give the address that `ray start` says, "
            "auto, or local"
        ) from exc
    try:
        yield
    finally:
        ray.shutdown()


def count_on_ray(corpus: Corpus) -> list[tuple[int, int]]:
    """Count the rows of every file, as `Corpus.count` does."""
    import ray

    task = ray.remote(num_cpus=1)(Corpus.count)
    shared = ray.put(corpus)
    found: list[tuple[int, int]] = _got(
        [task.remote(shared, file) for file in range(len(corpus.paths))]
    )
    return found


def label_on_ray(
    corpus: Corpus,
    work: Work,
    *,
    done: set[str],
    only: dict[int, NDArray[np.int64]] | None,
    workers: int | None,
) -> Iterator[int]:
    """Label all blocks that are not done, and give the rows of each as it has its part."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    threads = work.threads or 1
    n_cores = int(ray.cluster_resources().get("CPU", 1))
    size = workers or max(1, n_cores // threads)

    def read(batch: dict[str, NDArray[np.int64]]) -> Iterator[dict[str, list[Any]]]:
        for file in batch["file"].tolist():
            rows = None if only is None else only[file]
            for block in corpus.blocks(file, done=done, only=rows):
                yield {"name": [block.name], "file": [file], "rows": [_packed(block.rows)]}

    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It counts files, and each gives many blocks.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    files = list(range(len(corpus.paths)) if only is None else only)
    readers = TaskPoolStrategy(size=min(_READERS, len(files)))
    with _one_row_a_block():
        blocks = ray.data.from_items([{"file": file} for file in files]).map_batches(
            read, batch_size=1, compute=readers, num_cpus=0
        )
        labelled = blocks.map_batches(
            _Actor,
            batch_size=1,
            fn_constructor_args=(work,),
            compute=ActorPoolStrategy(min_size=size, max_size=size, initial_size=size),
            num_cpus=threads,
        )
    with _own_errors():
        for row in labelled.iter_rows():
            if row["stopped"]:
                assert isinstance(work.books, RayBooks)
                work.books.settle()
                raise StoppedError(row["stopped"])
            yield int(row["n_rows"])


@contextmanager
def _one_row_a_block() -> Iterator[None]:
    """Build a data set whose rows travel one by one: Ray would keep some 400 in one block, for one actor."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    context.target_max_block_size, context.enable_progress_bars = 1, False
    try:
        yield
    finally:
        context.target_max_block_size, context.enable_progress_bars = before


class _Actor:
    """A labeller on a worker."""

    def __init__(self, work: Work) -> None:
        self._labeller = Labeller(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        given = zip(batch["name"], batch["file"], batch["rows"], strict=True)
        [(name, file, rows)] = given
        block = Block(str(name), int(file), _unpacked(rows))
        try:
            return {"n_rows": [self._labeller(block)], "stopped": [""]}
        except StoppedError as exc:  # raised, it would end workers whose questions are open
            return {"n_rows": [0], "stopped": [str(exc)]}


class RayBooks:
    """A `Ledger` in an actor beside the command, for all workers; its methods do what the ledger's do."""

    def __init__(
        self, place: str, asked: tuple[Asked, ...], *, n_classes: int, max_spend: float | None
    ) -> None:
        """Start it; on this node, since the answers are kept in a file."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger)
        self._ledger = actor.remote(place, asked, n_classes=n_classes, max_spend=max_spend)
        _got(self._ledger.n_open.remote())

    async def begin(self, tier: Tier, key: str, text: Text) -> Said | Turn:
        """Ask it."""
        with _own_errors():
            found: Said | Turn = await self._ledger.begin.remote(tier, key, text)
        return found

    async def end(self, tier: Tier, key: str, text: Text, said: Said | None) -> None:
        """Tell it."""
        with _own_errors():
            await self._ledger.end.remote(tier, key, text, said)

    async def stop(self, fault: str) -> None:
        """Tell it."""
        with _own_errors():
            await self._ledger.stop.remote(fault)

    def settle(self) -> None:
        """Wait until no question is open any more."""
        while _got(self._ledger.n_open.remote()):
            time.sleep(0.05)

    def bills(self) -> dict[Tier, Bill]:
        """Ask it."""
        found: dict[Tier, Bill] = _got(self._ledger.bills.remote())
        return found

    def close(self) -> None:
        """Close it."""
        _got(self._ledger.close.remote())


def _packed(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _unpacked(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def _got(reference: Any) -> Any:  # noqa: ANN401  of a library without types
    """Wait for what tasks or an actor return."""
    import ray

    with _own_errors():
        return ray.get(reference)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise an error of dimec's that a task or an actor has raised as what it was."""
    try:
        yield
    except Exception as exc:
        inner: BaseException | None = exc
        while inner is not None:
            # Ray's own error names its cause so, and may be one of dimec's too.
            further = getattr(inner, "cause", None)
            if isinstance(inner, DimecError) and not isinstance(further, DimecError):
                if inner is exc:
                    raise
                raise inner from exc
            inner = further or inner.__cause__
        raise
