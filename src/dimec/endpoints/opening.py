"""From what a user writes to a model that can be asked: ``chat:URL#MODEL``, ``oip:URL#MODEL``, ``tei:URL``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dimec.core.errors import OptionError, shown
from dimec.core.untrusted import read_bounded, trusting_nothing
from dimec.endpoints.chat import PAIR_PROMPT, PROMPT, ChatEndpoint
from dimec.endpoints.http import Access, Endpoint
from dimec.endpoints.oip import Encode, OipEndpoint, PredictEndpoint
from dimec.endpoints.said import Classes, Question

KINDS = ("chat", "tei", "oip")
KEY_VARIABLE = "OPENAI_API_KEY"
_MOST_KEY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model is asked.

    Attributes:
        kind: One of `KINDS`.
        model: What the endpoint calls the model; empty for ``tei``.
    """

    kind: str
    url: str
    model: str

    @classmethod
    def of(cls, given: str, *, option: str) -> Address | None:
        """Read an address; None where it begins with no kind of endpoint.

        Raises:
            OptionError: If it is no address, or holds a password.
        """
        kind, _, where = given.partition(":")
        if kind not in KINDS:
            return None
        url, _, model = where.partition("#")
        if "@" in url:  # a password, which no message repeats
            raise OptionError(
                f"{option} holds a user or a password: give {kind}:URL alone; the key is read from a file or the "
                "environment"
            )
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        if not fits or not url.isprintable() or " " in url or (kind != "tei") != bool(model):
            raise OptionError(
                f"{option} {given}: give chat:URL#MODEL, oip:URL#MODEL or tei:URL with an http or https address, such "
                "as chat:http://localhost:8000/v1#llama"
            )
        return cls(kind, url, model)

    def __str__(self) -> str:
        return f"{self.kind}:{self.url}" + f"#{self.model}" * bool(self.model)


def open_endpoint(
    address: Address,
    question: Question,
    names: Sequence[str],
    *,
    pairs: bool,
    access: Access,
    encode: Encode | None,
) -> Endpoint:
    """Return what asks an address about texts of the classes ``names``; nothing is sent yet.

    ``encode`` makes token ids, for servers that take these alone.
    """
    classes = Classes(tuple(names), question.aliases)
    if address.kind == "tei":
        return PredictEndpoint(address.url, classes, access=access)
    if address.kind == "oip":
        return OipEndpoint(address.url, address.model, classes, encode=encode, access=access)
    usual = PAIR_PROMPT if pairs else PROMPT
    return ChatEndpoint(
        address.url,
        address.model,
        classes,
        prompt=usual if question.prompt is None else question.prompt,
        examples=question.examples,
        access=access,
    )


def read_key(address: Address, path: Path | None, *, named: bool) -> str | None:
    """Return the key of a file, else of a chat the environment's; None for an address that only a bundle names.

    The user has to have ``named`` the address: whoever made a bundle must not be sent a key.

    Raises:
        OptionError: If the file cannot be read, or holds none, which the message does not repeat; or if nobody but the
            bundle says whom it is sent to.
    """
    if not named:
        if path is not None:
            raise OptionError(
                f"--model-key-file is sent to the address of --model, and only the bundle names {shown(str(address))}: "
                "give it as --model"
            )
        return None
    if path is None:
        return os.environ.get(KEY_VARIABLE) if address.kind == "chat" else None
    with trusting_nothing(path, OptionError, remedy="give --model-key-file the key alone, as text"):
        content = read_bounded(path, limit=_MOST_KEY_BYTES)
    key = content.decode(errors="replace").strip()
    if not key:
        raise OptionError(f"--model-key-file {path} is empty: write the key into it")
    return key
