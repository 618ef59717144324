"""What a ``tokenizer.json`` may ask for: nothing that takes a text far beyond its own length, in size or in time."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

_MAX_TOKENS = 2**21
_MAX_PARTS = 200
_MAX_TEXT = 1_000
_MAX_GROWTH = 16
# The most that Unicode itself replaces a character by is 18 others.
_MAX_WORD = 10_000
# A group that is repeated: matching may take exponentially long. No tokenizer that is in use has one.
_REPEATED_GROUP = re.compile(r"\)\??[*+{]")


def check_tokenizer(document: Any) -> None:  # noqa: ANN401  any JSON value
    """Refuse a tokenizer that no training made.

    Raises:
        ValueError: If it has no vocabulary, too large a part, or a normalizer that lets a text grow without bound.
    """
    model = document["model"]
    vocab = model["vocab"]
    if not isinstance(vocab, dict | list) or not 0 < len(vocab) <= _MAX_TOKENS:
        raise ValueError(f"its vocabulary must have 1 to {_MAX_TOKENS:,} tokens")
    unknown = model.get("unk_token")
    if isinstance(vocab, dict) and unknown is not None and unknown not in vocab:
        raise ValueError("its vocabulary lacks its own token for unknown words")
    if model.get("max_input_chars_per_word", 0) > _MAX_WORD:
        raise ValueError(f"max_input_chars_per_word must be at most {_MAX_WORD:,}")
    small = {**document, "model": {**model, "vocab": None, "merges": None}, "added_tokens": None}
    growth, parts = 1.0, 0
    for part in _parts(small):
        parts += 1
        growth *= _growth(part)
        for name, value in part.items():
            if isinstance(value, str) and name != "precompiled_charsmap" and len(value) > _MAX_TEXT:
                raise ValueError(f"{name} must have at most {_MAX_TEXT:,} characters")
        pattern = part.get("Regex")
        if isinstance(pattern, str) and _REPEATED_GROUP.search(pattern):
            raise ValueError("a regular expression must not repeat a group")
    if parts > _MAX_PARTS or growth > _MAX_GROWTH:
        raise ValueError(
            f"{parts} parts let a text grow {growth:g} times: at most {_MAX_PARTS} and {_MAX_GROWTH} are allowed"
        )
    for token in document.get("added_tokens") or ():
        if len(token["content"]) > _MAX_TEXT:
            raise ValueError(f"an added token must have at most {_MAX_TEXT:,} characters")


def _parts(value: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  any JSON value
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _parts(each)


def _growth(part: dict[str, Any]) -> float:
    """Return how many times as long a part may make a text."""
    kind = part.get("type")
    if kind == "Replace":
        pattern = part["pattern"]
        fewest = (
            len(pattern.get("String", "")) or 1
        )  # a regular expression may match a character or none
        return max(1.0, len(part["content"]) / fewest + ("Regex" in pattern))
    if kind == "Precompiled":
        content = base64.b64decode(part["precompiled_charsmap"])
        after = content[4 + int.from_bytes(content[:4], "little") :]
        longest = max(map(len, after.split(b"\0")), default=0)
        if longest > _MAX_TEXT:
            raise ValueError(f"a character must become at most {_MAX_TEXT:,} bytes")
    return 1.0
