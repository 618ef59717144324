"""Trackers of a fit: TensorBoard, MLflow and Weights & Biases are told of every epoch, where they are installed.

Where MLflow and Weights & Biases keep what they are told is theirs to say, by their own environment variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dimec.core.errors import OptionError, shown
from dimec.runs.run import FitOptions

Track = Callable[[int, Mapping[str, float]], object]
"""Is told the figures of an epoch, by name; epochs are counted from 1 through all stages."""


def wanted_trackers(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of trackers, which a text separates by commas.

    Raises:
        OptionError: If one is unknown or not installed.
    """
    parts = names.split(",") if isinstance(names, str) else names
    wanted = tuple(part.strip() for part in parts if part.strip())
    for name in wanted:
        if name not in TRACKERS:
            raise OptionError(f"--report-to {shown(name)}: choose from {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise OptionError(f"--report-to {name} needs its package: pip install {name}")
    return wanted


@contextmanager
def tracking(
    names: Sequence[str], *, folder: Path, options: FitOptions
) -> Iterator[Sequence[Track]]:
    """Open trackers for the run in a folder."""
    chosen = options.model_dump(mode="json", exclude_defaults=True)
    told = {name: str(value) for name, value in chosen.items()}
    with ExitStack() as opened:
        yield [opened.enter_context(TRACKERS[name](folder, told)) for name in names]


@contextmanager
def _tensorboard(folder: Path, options: Mapping[str, str]) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), purge_step=0) as writer:
        writer.add_text(
            "options", "\n".join(f"    {name}: {each}" for name, each in options.items())
        )

        def track(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield track


@contextmanager
def _mlflow(folder: Path, options: Mapping[str, str]) -> Iterator[Track]:
    import mlflow

    with mlflow.start_run(run_name=folder.name, nested=mlflow.active_run() is not None):
        mlflow.log_params(dict(options))
        yield lambda step, values: mlflow.log_metrics(dict(values), step=step)


@contextmanager
def _wandb(folder: Path, options: Mapping[str, str]) -> Iterator[Track]:
    wandb = import_module("wandb")  # without its types, since hardly anybody has it

    with wandb.init(name=folder.name, dir=str(folder), config=dict(options)) as run:
        yield lambda step, values: run.log(dict(values), step=step)


TRACKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
