"""Text-embeddings-inference's ``/predict``: a classifier behind HTTP that gives labels with scores."""

from __future__ import annotations

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dimec.core.errors import OptionError, RefusedError, UnreachableError, shown
from dimec.endpoints.http import Access, Poster
from dimec.endpoints.said import Classes, Endpoint, Said, Text


class _Scored(BaseModel):
    label: str
    score: float = Field(allow_inf_nan=False)


_ANSWER = TypeAdapter(list[_Scored])


class PredictEndpoint(Endpoint):
    """Asks ``URL/predict``."""

    def __init__(self, url: str, classes: Classes, *, access: Access | None = None) -> None:
        """Take the address of the server, up to ``/predict``, and how it is asked."""
        self.name = f"tei:{url}"
        self.key = f"tei\0{url}\0{classes}"
        self._classes = classes
        self._poster = Poster(self.name, f"{url.rstrip('/')}/predict", access or Access())

    async def ask(self, text: Text) -> Said:
        """Post a text, or a pair, and read the scores of all classes."""
        inputs = text[0] if len(text) == 1 else [list(text)]
        try:
            content, ms = await self._poster.post({"inputs": inputs, "truncate": True})
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

    async def close(self) -> None:
        """Close its connections."""
        await self._poster.close()
