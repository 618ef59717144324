"""What the Hugging Face hub holds: a registry task's training rows, and a model's files.

Whatever goes wrong on the way (no network, a hub that lacks what is asked for) is one `UnreachableError` that names
the ways that need no hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dimec.core.errors import InputError, MissingExtraError, OptionError, UnreachableError, quoted
from dimec.core.extras import needs_hub
from dimec.core.untrusted import reason
from dimec.data.columns import Table
from dimec.data.faults import Row, numbered
from dimec.data.tasks import Task

_PROBE_TIMEOUT_S = 5.0
_MODEL_TIMEOUT_S = 10.0
MAX_FILE_BYTES = 2**31
"""The largest file of a model that is downloaded; ONNX files end there too."""


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
        with suppress(OfflineModeIsEnabled):
            HfApi().dataset_info(task.hub, timeout=_PROBE_TIMEOUT_S)
        rows: Any = datasets.load_dataset(task.hub, task.name, split="train")
    # The loader's errors come from half a dozen libraries and share no base.
    except Exception as exc:
        said = (str(exc).splitlines() or [""])[0][:120]
        raise UnreachableError(
            f"the hub gave no {task.hub} {task.name} ({type(exc).__name__}: {said}): give the rows yourself with "
            "--data FOLDER|FILE, use the built-in task reviews, "
            "or set HF_HUB_OFFLINE=1 if the Hugging Face cache holds them"
        ) from exc

    def read(names: Sequence[str]) -> Iterator[Row]:
        batches = rows.select_columns(list(names)).iter(batch_size=8192)
        return numbered([batch[name] for name in names] for batch in batches)

    return Table(f"hub {task.hub} {task.name}", tuple(rows.column_names), read)


def snapshot(
    name: str,
    *,
    files: Sequence[str],
    noun: str,
    otherwise: str,
    revision: str | None = None,
    token: str | None = None,
    check: Callable[[Sequence[str]], None] = lambda names: None,
) -> Path:
    """Bring a model's files into the local cache, or find them there when the hub is out of reach; return their folder.

    The hub is asked once and not for long. The folder is named after the commit it holds.

    Args:
        files: Which files, as globs.
        noun: What the model is, such as "backbone".
        otherwise: What a user can do where the hub does not give it.
        revision: A branch, tag or commit; the main branch by default.
        token: For a repository that is not open; the one that is logged in by default.
        check: Given the names of the repository's files, may refuse them.

    Raises:
        UnreachableError: When the hub does not have it, or neither the hub nor the cache gives it.
        OptionError: If one of the files has more than 2 GiB.
        MissingExtraError: If huggingface_hub is not installed.
    """
    with needs_hub():
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

    commit: str | None = None
    unreached: Exception | None = None
    try:
        info = HfApi(token=token).model_info(
            name, revision=revision, timeout=_MODEL_TIMEOUT_S, files_metadata=True
        )
        commit, siblings = info.sha, info.siblings or []
        check([file.rfilename for file in siblings])
        sizes = {file.rfilename: getattr(file, "size", None) or 0 for file in siblings}
        for large, size in sizes.items():
            if size > MAX_FILE_BYTES and any(fnmatch(large, each) for each in files):
                raise OptionError(
                    f"{quoted(large)} of the hub model {name!r} has {size:,} bytes, and at most "
                    f"{MAX_FILE_BYTES:,} are read: {otherwise}"
                )
    except InputError:
        raise
    except RevisionNotFoundError as exc:
        raise UnreachableError(
            f"the hub model {name!r} has no revision {revision!r}: give a branch, tag or commit of it"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise UnreachableError(
            f"the hub has no model {name!r} that is open to you; {otherwise}"
        ) from exc
    except Exception as exc:
        # The hub client changes its HTTP library between versions, so its errors have no common
        # type; whatever it was, the hub gave no answer, and the cache is the last resort.
        unreached = exc
    try:
        # By the revision's name, which the cache then knows when the hub is out of reach.
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(files),
                local_files_only=unreached is not None,
                token=token,
            )
        )
    except LocalEntryNotFoundError as exc:
        raise UnreachableError(
            f"the hub cannot be reached for the {noun} {name!r}; {otherwise}"
        ) from (unreached or exc)
    except Exception as exc:  # as above
        raise UnreachableError(
            f"the {noun} {name!r} could not be downloaded ({reason(exc)}); {otherwise}"
        ) from exc
    if commit is not None and folder.name != commit:
        raise UnreachableError(
            f"the hub model {name!r} was changed while it was read: load it again"
        )
    return folder
