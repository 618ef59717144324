"""Texts in JSON, as clients of text-embeddings-inference and of the hub's inference API send them."""

from __future__ import annotations

from typing import TypeGuard

from dimec.core.errors import RefusedError, shown
from dimec.runtime.device.sample import Text


def texts_of(inputs: object, *, pairs: bool) -> tuple[list[Text], bool]:
    """Return the texts of an input, and whether it is one text, or one pair, alone.

    Raises:
        RefusedError: If it is neither a text nor a list of texts, or of pairs where the task is about pairs (422).
    """
    single = isinstance(inputs, str) if not pairs else _is_pair(inputs)
    several = [inputs] if single else inputs
    if not isinstance(several, list) or not several:
        raise _no_texts(inputs, pairs=pairs)
    texts: list[Text] = []
    for each in several:
        if pairs and _is_pair(each):
            texts.append((each[0], each[1]))
        elif not pairs and isinstance(each, list) and len(each) == 1 and isinstance(each[0], str):
            texts.append(each[0])
        elif not pairs and isinstance(each, str):
            texts.append(each)
        else:
            raise _no_texts(each, pairs=pairs)
    return texts, single


def _is_pair(value: object) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
    )


def _no_texts(given: object, *, pairs: bool) -> RefusedError:
    wanted = 'a pair ["…", "…"], or a list of pairs' if pairs else 'a text "…", or a list of texts'
    return invalid(f"inputs holds {shown(given)}: give {wanted}")


def invalid(message: str) -> RefusedError:
    """Return the error of what is well-formed and of the wrong kind."""
    return RefusedError(422, "invalid", message)
