"""What makes two spellings look alike: case, width, composition, blanks, and characters that nobody sees."""

from __future__ import annotations

import unicodedata

# Seen by nobody though no format characters: joiners and fillers of single scripts.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


def folded(text: str) -> str:
    """Fold a text so that spellings which look alike are equal; '' where nothing of it is seen."""
    if text.isascii() and text.isprintable():
        return " ".join(text.casefold().split())
    text = unicodedata.normalize("NFKC", text).casefold()
    seen = "".join(each for each in text if not _is_unseen(each))
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def _is_unseen(character: str) -> bool:
    if character.isspace():
        return False
    is_selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return is_selector or character in _UNSEEN or unicodedata.category(character) in ("Cf", "Cc")


def spelled_out(text: str) -> str:
    """Quote a spelling so that it can be told from those that look alike."""
    return repr(text) if unicodedata.is_normalized("NFKC", text) else ascii(text)
