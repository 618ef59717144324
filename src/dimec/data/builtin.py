"""The built-in corpus: generated short reviews of graded difficulty, for demo and tests, never for a claim.

A seed goes in, a `TextDataset` comes out, the same on every machine. What makes a review hard is that its words do not
give the verdict away:

- easy: words of praise or of blame, all pointing one way;
- medium: praise denied, a faint word against a strong one, a clause that "but" or "although" outweighs;
- hard: two aspects of which one is said to matter, a verdict that comes last, irony, a sign without a word of praise
  or blame, a comparison whose order decides.

Some labels are wrong on purpose, as in any collected data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dimec.data.dataset import TextDataset
from dimec.data.tasks import TASKS

Item = TypeVar("Item")

_SHARES = {"easy": 0.5, "medium": 0.3, "hard": 0.2}
_NOISE_SHARE = 0.04


def reviews(n_rows: int = 6000, *, seed: int = 0) -> TextDataset:
    """Generate reviews, half of them positive, no two alike after folding case and white space.

    The vocabulary yields 100,000 at least.
    """
    rng = np.random.default_rng(seed)
    verdicts = rng.permutation(np.arange(n_rows) % 2).astype(np.int64)
    levels = rng.choice(list(_SHARES), size=n_rows, p=list(_SHARES.values()))
    texts: dict[str, str] = {}
    for verdict, level in zip(verdicts.tolist(), levels.tolist(), strict=True):
        while True:
            text = _review(rng, is_good=bool(verdict), level=level)
            if texts.setdefault(text.casefold(), text) is text:
                break
    is_noise = np.zeros(n_rows, dtype=np.bool_)
    for verdict in (0, 1):  # as many of each class, so that the corpus stays balanced
        members = np.flatnonzero(verdicts == verdict)
        n_wrong = round(_NOISE_SHARE * n_rows / 2)
        is_noise[rng.choice(members, size=n_wrong, replace=False)] = True
    return TextDataset(
        task=TASKS["reviews"],
        first=tuple(texts.values()),
        second=None,
        labels=np.where(is_noise, 1 - verdicts, verdicts),
        row_ids=np.arange(n_rows, dtype=np.int64),
        source="built-in reviews",
    )


@cache
def _vocabulary() -> dict[str, Any]:
    text = Path(__file__).with_name("vocabulary.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


class _Scene:
    """Draws the words of one review: a domain, its thing, and two of its aspects."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.words = _vocabulary()
        self.domain = self.pick(self.words["domains"])
        self.thing = self.pick(self.domain["things"])
        aspects = self.domain["aspects"]
        place = int(rng.integers(len(aspects)))
        step = 1 + int(rng.integers(len(aspects) - 1))
        self.aspect, self.other = aspects[place], aspects[(place + step) % len(aspects)]

    def pick(self, options: Sequence[Item]) -> Item:
        """Draw one of several."""
        return options[int(self._rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """Be true in this share of draws."""
        return bool(self._rng.random() < share)

    def word(self, is_good: bool) -> str:
        """Draw a word of praise or of blame, one in three of them the domain's own."""
        own: dict[str, Sequence[str]] = self.domain if self.chance(1 / 3) else self.words
        return self.pick(own["praise" if is_good else "blame"])

    def fill(self, sentence: str) -> str:
        """Put the scene's words where a sentence leaves room for them."""
        return sentence.format(
            thing=self.thing, aspect=self.aspect, praise=self.word(True), blame=self.word(False)
        )

    def draw(self, source: str, is_good: bool) -> Any:  # noqa: ANN401  what the vocabulary has
        """Draw from a source of a kind's ``draws``, which `vocabulary.toml` explains."""
        if source in ("same", "opposite"):
            return self.word(is_good == (source == "same"))
        if source == "flip":
            return self.chance(0.5)
        glad, _, sorry = source.removeprefix("filled ").partition("|")
        name = sorry if sorry and not is_good else glad
        found = self.pick(self.domain.get(name) or self.words[name])
        return _capital(self.fill(found)) if source.startswith("filled ") else found

    def sentence(self, kind: dict[str, Any], is_good: bool) -> str:
        """Fill one template of a kind with what it draws."""
        drawn = {name: self.draw(source, is_good) for name, source in kind["draws"].items()}
        templates = kind["templates"] if is_good else kind.get("sorry_templates", kind["templates"])
        template = templates[drawn["flip"]] if "flip" in drawn else self.pick(templates)
        drawn |= {"thing": self.thing, "aspect": self.aspect, "other": self.other}
        articles = {f"a_{name}": _article(str(word)) for name, word in drawn.items()}
        return _capital(template.format(**drawn, **articles))


def _review(rng: np.random.Generator, *, is_good: bool, level: str) -> str:
    scene = _Scene(rng)
    kind = scene.words["kinds"][scene.pick(scene.words["levels"][level])]
    sentences = [scene.sentence(kind, is_good)]
    if scene.chance(0.5):
        sentences.insert(0, scene.fill(scene.pick(scene.domain["openers"])))
    if scene.chance(0.3):
        sentences.append(scene.pick(scene.domain["asides"]))
    return " ".join(sentences)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
