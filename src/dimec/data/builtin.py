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
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from dimec.core.errors import OptionError
from dimec.data.dataset import TextDataset
from dimec.data.tasks import TASKS

Item = TypeVar("Item")
Words = Mapping[str, Sequence[str]]

_SHARES = (0.5, 0.3, 0.2)
_NOISE_SHARE = 0.04
_MIN_ROWS, _MAX_ROWS = 40, 100_000


def reviews(n_rows: int = 6000, *, seed: int = 0) -> TextDataset:
    """Generate reviews, half of them positive, no two alike after folding case and white space.

    Raises:
        OptionError: fewer rows than a split needs are asked for, or more than the vocabulary yields.
    """
    if not _MIN_ROWS <= n_rows <= _MAX_ROWS:
        raise OptionError(
            f"the built-in reviews come in {_MIN_ROWS} to {_MAX_ROWS:,} rows, not {n_rows:,}"
        )
    rng = np.random.default_rng(seed)
    verdicts = rng.permutation(np.arange(n_rows) % 2).astype(np.int64)
    levels = rng.choice(len(_SHARES), size=n_rows, p=_SHARES)
    texts: dict[str, str] = {}
    for verdict, level in zip(verdicts.tolist(), levels.tolist(), strict=True):
        while True:
            text = _review(rng, is_good=bool(verdict), kinds=_KINDS[level])
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
def _vocabulary() -> tuple[Words, tuple[Words, ...]]:
    """Read the words that every review may use, and those of each domain."""
    text = Path(__file__).with_name("vocabulary.toml").read_text(encoding="utf-8")
    lists = tomllib.loads(text)
    domains = lists.pop("domains")
    return lists, tuple(domains)


class _Scene:
    """Draws the words of one review: a domain, its thing, and two of its aspects."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.words, domains = _vocabulary()
        self.domain = self.pick(domains)
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
        own = self.chance(1 / 3)
        if is_good:
            return self.pick(self.domain["praise"] if own else self.words["praise"])
        return self.pick(self.domain["blame"] if own else self.words["blame"])

    def fill(self, sentence: str) -> str:
        """Put the scene's words where a sentence leaves room for them."""
        return sentence.format(
            thing=self.thing,
            aspect=self.aspect,
            praise=self.word(True),
            blame=self.word(False),
        )


Kind = Callable[[_Scene, bool], str]


def _review(rng: np.random.Generator, *, is_good: bool, kinds: tuple[Kind, ...]) -> str:
    scene = _Scene(rng)
    sentences = [_capital(scene.pick(kinds)(scene, is_good))]
    if scene.chance(0.5):
        sentences.insert(0, scene.fill(scene.pick(scene.domain["openers"])))
    if scene.chance(0.3):
        sentences.append(scene.pick(scene.domain["asides"]))
    return " ".join(sentences)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _plain(scene: _Scene, is_good: bool) -> str:
    word, more = scene.word(is_good), scene.word(is_good)
    return scene.pick(
        (
            f"the {scene.aspect} is {word} and the {scene.other} {more}.",
            f"{_article(word)} {scene.thing} with {_article(more)} {scene.aspect}.",
            f"{word} {scene.aspect}, {more} {scene.other}.",
            f"this {scene.thing} is {scene.pick(scene.words['strong'])} {word}.",
            f"{'I love' if is_good else 'I hate'} the {scene.aspect}, it is {word}.",
        )
    )


def _denied(scene: _Scene, is_good: bool) -> str:
    word, more = scene.word(not is_good), scene.word(not is_good)
    denial = scene.pick(scene.words["denials"])
    return scene.pick(
        (
            f"the {scene.aspect} is {denial} {word}.",
            f"this {scene.thing} is {denial} {word}, nor is the {scene.other} {more}.",
            f"I would {scene.pick(('not', 'never'))} call the {scene.aspect} {word} or the {scene.other} {more}.",
            f"there is nothing {word} about the {scene.aspect} of this {scene.thing}.",
        )
    )


def _outweighed(scene: _Scene, is_good: bool) -> str:
    remark = f"{scene.pick(scene.words['faint'])} {scene.word(not is_good)}"
    verdict = f"{scene.pick(scene.words['strong'])} {scene.word(is_good)}"
    halves = [f"the {scene.aspect} is {remark}", f"the {scene.other} is {verdict}"]
    if scene.chance(0.5):
        halves.reverse()
    return ", ".join(halves) + "."


def _contrasted(scene: _Scene, is_good: bool) -> str:
    minor = f"the {scene.aspect} is {scene.word(not is_good)}"
    major = f"the {scene.other} is {scene.word(is_good)}"
    return scene.pick(
        (
            f"{minor}, but {major}.",
            f"{minor}; {major}, though, and that decides it.",
            f"although {minor}, {major}.",
            f"{major}, even if {minor}.",
            f"{major}, never mind that {minor}.",
        )
    )


def _weighed(scene: _Scene, is_good: bool) -> str:
    halves = [
        f"the {scene.aspect} is {scene.word(is_good)}",
        f"the {scene.other} is {scene.word(not is_good)}",
    ]
    if scene.chance(0.5):
        halves.reverse()
    return f"{halves[0]}, {halves[1]}. {scene.fill(scene.pick(scene.words['matters']))}"


def _late(scene: _Scene, is_good: bool) -> str:
    verdict = scene.pick(scene.words["glad_verdicts"] if is_good else scene.words["sorry_verdicts"])
    first, second = scene.word(not is_good), scene.word(not is_good)
    return scene.pick(
        (
            f"{_article(first)} {scene.aspect}, {_article(second)} {scene.other}, and yet {verdict}.",
            f"the {scene.aspect} is {first}, the {scene.other} {second}; all the same, {verdict}.",
            f"people call the {scene.thing} {first} and the {scene.aspect} {second}. Maybe so, but {verdict}.",
        )
    )


def _ironic(scene: _Scene, is_good: bool) -> str:
    deed = scene.pick(scene.domain["works"] if is_good else scene.domain["fails"])
    remark = scene.fill(scene.pick(scene.words["sincerity"] if is_good else scene.words["sarcasm"]))
    sentence = f"{_article(scene.thing)} that {deed}."
    return f"{_capital(sentence)} {_capital(remark)}"


def _signed(scene: _Scene, is_good: bool) -> str:
    signs = scene.domain["glad_signs"] if is_good else scene.domain["sorry_signs"]
    return scene.fill(scene.pick(signs))


def _compared(scene: _Scene, is_good: bool) -> str:
    rival = f"the {scene.pick(scene.domain['things'])} {scene.pick(('next door', 'we had before', 'my brother has'))}"
    is_up = scene.chance(0.5)  # the same words serve both verdicts, and only their order tells
    comparative = scene.pick(
        ("better than", "ahead of", "superior to", "a step up from")
        if is_up
        else ("worse than", "behind", "inferior to", "a step down from")
    )
    this = f"the {scene.aspect} of this {scene.thing}"
    pair = (this, rival) if is_up == is_good else (rival, this)
    return f"{pair[0]} is {comparative} {pair[1]}."


# Easy, medium and hard ones, as the module's docstring has them.
_KINDS: tuple[tuple[Kind, ...], ...] = (
    (_plain,),
    (_denied, _denied, _outweighed, _contrasted),
    (_weighed, _late, _ironic, _signed, _compared),
)
