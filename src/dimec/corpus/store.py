"""The folder of a labelled corpus: a part for each block, written whole or not at all, and what the job was.

```
OUT/
  job.json            what is labelled by what; nothing else may go on here
  counts.json         the rows of every file
  sample/NAME.parquet   with a promise: what all-cloud and every operating point answer to the sampled rows
  promise.json        with a promise: which operating point the sample allows
  asked/TIER.sqlite   with another model on a tier: what it answered, and is not asked again
  answers/NAME.parquet  the answers to a block
  summary.json        when all is done
```

A part has its name from the moment at which it is whole. So a job that was killed goes on with the blocks that have no
part, and a block that was labelled twice has one part all the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dimec.core.errors import OptionError, OutputError
from dimec.core.untrusted import parse_json
from dimec.corpus.blocks import file_system

Kind = Literal["sample", "answers"]
_PARTIAL = ".partial"
_JOB = "job.json"


@dataclass(frozen=True, slots=True)
class Store:
    """The parts of a job, in a folder or at a URL; what a worker is sent of it is its place alone."""

    place: str

    def begin(self, job: dict[str, Any]) -> None:
        """Take note of the job, or check that it is the one that was begun here.

        Raises:
            OptionError: If another one was, or something else is here.
        """
        begun = self.document(_JOB)
        if begun is None:
            system, path = file_system(self.place, option="--out")
            found = [
                each
                for each in system.get_file_info(fs.FileSelector(path, allow_not_found=True))
                if each.base_name != _PARTIAL
            ]
            if found:
                raise OptionError(
                    f"--out {self.place} holds {found[0].base_name} and no answers of dimec's: give a new folder"
                )
            self.keep(_JOB, job)
        elif begun != job:
            other = next(key for key in {**job, **begun} if job.get(key) != begun.get(key))
            raise OptionError(
                f"--out {self.place} was begun with another {other.replace('_', ' ')}: give the same as then, or "
                "another folder"
            )

    def document(self, name: str) -> Any:  # noqa: ANN401  any JSON value
        """Return a document; None where there is none.

        Raises:
            OptionError: If it is damaged.
        """
        text = self.content(name)
        if text is None:
            return None
        try:
            return parse_json(text)
        except ValueError as exc:
            raise OptionError(f"--out {self.place}: {name} is damaged: give a new folder") from exc

    def content(self, name: str) -> bytes | None:
        """Return the bytes of a file; None where there is none."""
        system, path = file_system(self.place, option="--out")
        if system.get_file_info(f"{path}/{name}").type != fs.FileType.File:
            return None
        with system.open_input_stream(f"{path}/{name}") as file:
            found: bytes = file.read()
            return found

    def keep(self, name: str, document: Any) -> None:  # noqa: ANN401  any JSON value
        """Write a document."""
        self.put(name, json.dumps(document, indent=2).encode())

    def done(self, kind: Kind) -> set[str]:
        """Return the names of the blocks that have a part."""
        return {name.removesuffix(".parquet") for name in self._names(kind)}

    def add(self, kind: Kind, name: str, part: pa.Table) -> None:
        """Write a block's part."""
        buffer = pa.BufferOutputStream()
        pq.write_table(part, buffer, compression="zstd")
        self.put(f"{kind}/{name}.parquet", buffer.getvalue().to_pybytes())

    def parts(self, kind: Kind, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Give the parts, one after the other, in the order of their names."""
        system, path = file_system(self.place, option="--out")
        for name in sorted(self._names(kind)):
            with system.open_input_file(f"{path}/{kind}/{name}") as file:
                yield pq.read_table(file, columns=columns)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and remove what killed processes left unfinished."""
        self.keep("summary.json", summary)
        system, path = file_system(self.place, option="--out")
        if system.get_file_info(f"{path}/{_PARTIAL}").type == fs.FileType.Directory:
            system.delete_dir(f"{path}/{_PARTIAL}")

    def _names(self, kind: Kind) -> list[str]:
        system, path = file_system(self.place, option="--out")
        found = system.get_file_info(fs.FileSelector(f"{path}/{kind}", allow_not_found=True))
        return [each.base_name for each in found if each.extension == "parquet"]

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        system, path = file_system(self.place, option="--out")
        target = f"{path}/{name}"
        partial = f"{path}/{_PARTIAL}/{uuid.uuid4().hex}"
        try:
            system.create_dir(f"{path}/{_PARTIAL}", recursive=True)
            system.create_dir(target.rpartition("/")[0], recursive=True)
            with system.open_output_stream(partial) as file:
                file.write(data)
            system.move(partial, target)
        except OSError as exc:
            raise OutputError(
                f"--out {self.place} cannot be written ({exc.strerror or exc}): see to the rights and the room there"
            ) from exc
