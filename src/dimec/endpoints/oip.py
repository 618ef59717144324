"""Servers of the Open Inference Protocol v2 that classify: texts go in, or token ids, and scores of classes come out.

The classes are named by the model's metadata (``label_names``, a JSON list, as dimec's servers have it), or by an
output of texts, ``label``. Of several exits the last one counts.

Text-embeddings-inference's ``/predict``, a classifier behind HTTP that gives labels with scores, is asked here too.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dimec.core.errors import OptionError, RefusedError, UnreachableError, shown
from dimec.endpoints.http import Access, Endpoint
from dimec.endpoints.said import Classes, Said, Text

_SCORES = ("probabilities", "logits")
Encode = Callable[[Text], Mapping[str, Sequence[int]]]
"""The token ids of a text, by the names of an encoder's inputs."""


class _Input(BaseModel):
    name: str
    datatype: str


class _Metadata(BaseModel):
    inputs: list[_Input] = Field(min_length=1, max_length=64)
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Output(BaseModel):
    name: str
    data: list[float] | list[str]


class _Answer(BaseModel):
    outputs: list[_Output] = Field(max_length=64)


class OipEndpoint(Endpoint):
    """Asks ``URL/v2/models/MODEL/infer``."""

    def __init__(
        self,
        url: str,
        model: str,
        classes: Classes,
        *,
        encode: Encode | None = None,
        access: Access | None = None,
    ) -> None:
        """Take the server's address, its name of the model, and how texts become ids where it takes no texts."""
        self.key = f"oip\0{url}\0{model}\0{classes}"
        self._classes, self._encode = classes, encode
        self._about = f"{url.rstrip('/')}/v2/models/{model}"
        super().__init__(f"oip:{url}#{model}", f"{self._about}/infer", access)
        self._metadata: _Metadata | None = None
        self._first = asyncio.Lock()

    async def ask(self, text: Text) -> Said:
        """Post a text, or its token ids, and read the scores of all classes."""
        try:
            async with self._first:
                if self._metadata is None:
                    content = await self._get(self._about)
                    self._metadata = _Metadata.model_validate(content)
            content, ms = await self._post(
                {"inputs": self._inputs(self._metadata, text), "parameters": {}}
            )
            outputs = {each.name: each.data for each in _Answer.model_validate(content).outputs}
        except RefusedError as exc:
            raise OptionError(str(exc)) from exc
        except ValidationError as exc:
            raise UnreachableError(
                f"{self.name} answered something else than the Open Inference Protocol v2 has: {shown(content)}"
            ) from exc
        return Said(self._probabilities(outputs, self._metadata), ms)

    def _inputs(self, metadata: _Metadata, text: Text) -> list[dict[str, Any]]:
        taken = next((each for each in metadata.inputs if each.datatype == "BYTES"), None)
        if taken is not None:
            shape = [1, 2] if len(text) == 2 else [1]
            return [{"name": taken.name, "datatype": "BYTES", "shape": shape, "data": list(text)}]
        ids = {} if self._encode is None else self._encode(text)
        if any(each.name not in ids for each in metadata.inputs):
            names = ", ".join(each.name for each in metadata.inputs)
            raise OptionError(
                f"{self.name} takes {shown(names)}: give a model that takes texts (BYTES), or input_ids and "
                "attention_mask of the run's own tokenizer"
            )
        return [
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": [1, len(ids[each.name])],
                "data": list(ids[each.name]),
            }
            for each in metadata.inputs
        ]

    def _probabilities(
        self, outputs: Mapping[str, list[float] | list[str]], metadata: _Metadata
    ) -> tuple[float, ...] | None:
        names = metadata.parameters.get("label_names")
        try:
            names = json.loads(names) if isinstance(names, str) else names
        except (ValueError, RecursionError):
            names = None
        found = next((each for each in _SCORES if each in outputs), None)
        if found is not None and isinstance(names, list) and names:
            scores = outputs[found][-len(names) :]
            numbers = [each for each in scores if isinstance(each, float) and math.isfinite(each)]
            if len(numbers) == len(names):
                if found == "logits":
                    numbers = [math.exp(each - max(numbers)) for each in numbers]
                return self._classes.spread(dict(zip(map(str, names), numbers, strict=True)))
        label = outputs.get("label")
        if label and isinstance(label[0], str):
            return self._classes.spread({label[0]: 1.0})
        raise OptionError(
            f"{self.name} names no class: its metadata must hold label_names beside the output probabilities or "
            "logits, or it must give an output label of texts"
        )


class _Scored(BaseModel):
    label: str
    score: float = Field(allow_inf_nan=False)


_ANSWER = TypeAdapter(list[_Scored])


class PredictEndpoint(Endpoint):
    """Asks ``URL/predict``."""

    def __init__(self, url: str, classes: Classes, *, access: Access | None = None) -> None:
        """Take the address of the server, up to ``/predict``, and how it is asked."""
        super().__init__(f"tei:{url}", f"{url.rstrip('/')}/predict", access)
        self.key = f"tei\0{url}\0{classes}"
        self._classes = classes

    async def ask(self, text: Text) -> Said:
        """Post a text, or a pair, and read the scores of all classes."""
        inputs = text[0] if len(text) == 1 else [list(text)]
        try:
            content, ms = await self._post({"inputs": inputs, "truncate": True})
        except RefusedError as exc:
            raise OptionError(str(exc)) from exc
        if len(text) == 2 and isinstance(content, list) and len(content) == 1:
            content = content[0]
        try:
            scored = _ANSWER.validate_python(content)
        except ValidationError as exc:
            raise UnreachableError(
                f"{self.name} answered something else than labels with scores: {shown(content)}"
            ) from exc
        return Said(self._classes.spread({each.label: each.score for each in scored}), ms)
