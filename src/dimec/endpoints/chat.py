"""Endpoints that speak OpenAI's chat completions: a prompt goes out, the name of a class comes back.

The answer is asked for as structured output and with the probabilities of its tokens. An endpoint that refuses one of
these is asked without it from then on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from dimec.core.errors import OptionError, RefusedError, UnreachableError, shown
from dimec.endpoints.http import Access, Endpoint
from dimec.endpoints.said import Classes, Said, Text

PROMPT = """Classify the text into exactly one of these classes:
{classes}
{examples}
Text: {text}
Answer with the name of the class and nothing else."""
"""The prompt of a single text; `PAIR_PROMPT` is that of a pair."""
PAIR_PROMPT = PROMPT.replace("Text: {text}", "First text: {text}\nSecond text: {text2}").replace(
    "Classify the text", "Classify the two texts together"
)
_FIELD = re.compile(r"\{(classes|examples|text2|text)\}")
_OPTIONAL = ("response_format", "top_logprobs", "logprobs", "temperature")
_ENOUGH = 0.5
"""Probabilities of tokens count where those of the classes' beginnings come to so much."""


class _TopToken(BaseModel):
    token: str
    logprob: float = Field(allow_inf_nan=False)


class _Token(_TopToken):
    top_logprobs: list[_TopToken] = []


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0, le=2**40)
    completion_tokens: int = Field(0, ge=0, le=2**40)


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class ChatEndpoint(Endpoint):
    """Asks ``URL/chat/completions``."""

    def __init__(
        self,
        url: str,
        model: str,
        classes: Classes,
        *,
        prompt: str,
        examples: Sequence[tuple[Text, str]] = (),
        access: Access | None = None,
    ) -> None:
        """Take an address up to ``/chat/completions``, a model, and a prompt with ``{classes}`` and ``{text}``.

        Raises:
            OptionError: If the prompt has no place for the text.
        """
        if "{text}" not in prompt:
            raise OptionError(
                "--prompt: the file has no {text}; its fields are {text}, {text2}, {classes}, {examples}"
            )
        super().__init__(f"chat:{url}#{model}", f"{url.rstrip('/')}/chat/completions", access)
        self._model, self._classes, self._prompt = model, classes, prompt
        self._examples = "\n".join(
            f"Text: {' / '.join(text)}\nClass: {label}" for text, label in examples
        )
        self.key = "\0".join(["chat", model, prompt, self._examples, str(classes)])
        schema = {
            "type": "object",
            "properties": {"class": {"type": "string", "enum": list(classes.names)}},
            "required": ["class"],
            "additionalProperties": False,
        }
        self._options: dict[str, Any] = {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "class", "strict": True, "schema": schema},
            },
            "logprobs": True,
            "top_logprobs": 20,
            "temperature": 0,
        }

    async def ask(self, text: Text) -> Said:
        """Send the prompt with a text in it, and read which class is named."""
        messages = [{"role": "user", "content": self._filled(text)}]
        while True:
            options = dict(self._options)
            try:
                content, ms = await self._post(
                    {"model": self._model, "messages": messages, **options}
                )
            except RefusedError as exc:
                if exc.status not in (400, 422) or not self._leaves_out(str(exc), options):
                    key = "; the key is read from OPENAI_API_KEY" * (exc.status in (401, 403))
                    raise OptionError(f"{exc}{key}") from exc
                continue
            try:
                answer = _Completion.model_validate(content)
            except ValidationError as exc:
                raise UnreachableError(
                    f"{self.name} answered something else than a chat completion: {shown(content)}"
                ) from exc
            usage = answer.usage or _Usage()
            return Said(
                self._probabilities(answer.choices[0]),
                ms,
                usage.prompt_tokens,
                usage.completion_tokens,
            )

    def _filled(self, text: Text) -> str:
        values = {
            "classes": "\n".join(f"- {name}" for name in self._classes.names),
            "examples": self._examples,
            "text": text[0],
            "text2": text[-1],
        }
        return _FIELD.sub(lambda match: values[match[1]], self._prompt)

    def _leaves_out(self, fault: str, asked: dict[str, Any]) -> bool:
        """Leave out what a fault names, else what is left of the optional fields; whether there was any."""
        left = [name for name in _OPTIONAL if name in asked]
        out = [name for name in left if name in fault] or left[:1]
        if "logprobs" in out:
            out.append("top_logprobs")
        for name in out:
            self._options.pop(name, None)
        return bool(out)

    def _probabilities(self, choice: _Choice) -> tuple[float, ...] | None:
        content = choice.message.content or ""
        named = _named(content)
        place = self._classes.find(named)
        if place is None:
            return None
        spread, start, offset = None, content.find(named), 0
        for token in (choice.logprobs and choice.logprobs.content) or ():
            end = offset + len(token.token)
            if start < end:
                lead = token.token[: max(0, start - offset)]
                spread = self._by_tokens(token.top_logprobs, lead)
                break
            offset = end
        return spread if spread and spread[place] == max(spread) else self._classes.one(place)

    def _by_tokens(self, tokens: Sequence[_TopToken], lead: str) -> tuple[float, ...] | None:
        """Return probabilities by the first token of each class's name; None where they say too little."""
        found = [0.0] * len(self._classes.names)
        for each in tokens:
            piece = each.token.removeprefix(lead).strip().strip('"').casefold()
            meant = [
                place
                for place, name in enumerate(self._classes.names)
                if piece and name.casefold().startswith(piece)
            ]
            if each.token.startswith(lead) and len(meant) == 1:
                found[meant[0]] += math.exp(min(each.logprob, 0.0))
        total = sum(found)
        return tuple(each / total for each in found) if total >= _ENOUGH else None


def _named(content: str) -> str:
    """Return the class that an answer names: of structured output, or of a line with nothing else in it."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("class"), str):
        return str(found["class"])
    return content.strip().strip("\"'`*.").strip()
