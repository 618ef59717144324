"""The classifier that Python users hold: called like a pipeline of transformers, asked like one of scikit-learn.

A `Device` is the engine: `Classifier.device` gives `Answer`s, streams, metrics and what a policy watches.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.bundle import Bundle, is_bundle, load_bundle
from dimec.core.errors import DataError, OptionError, shown
from dimec.core.extras import needs_training
from dimec.core.options import Frame, TextColumns, checked, in_memory, takes
from dimec.core.progress import Progress, visible
from dimec.core.tiers import Answer, Tier
from dimec.data.columns import choose_texts
from dimec.data.files import frame_table
from dimec.deploying.hub import About, pull, push, save
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import LoadOptions
from dimec.runtime.device.sample import Text

if TYPE_CHECKING:
    from typing import Unpack

    from dimec.keywords import LoadKeywords


class Result(TypedDict):
    """What a `Classifier` says of a text: one class and its probability, and who answered.

    Attributes:
        label: The class.
        score: Its probability.
        tier: The tier that answered: mobile, edge or cloud.
        layer: The layer of the exit that answered; 0 for words alone.
        cost: What all of it cost, in lambda.
        degraded: What did not go as the policy wanted, and why; None where everything did.
    """

    label: str
    score: float
    tier: str
    layer: int
    cost: float
    degraded: str | None


class Classifier(AbstractContextManager["Classifier"]):
    """Classify texts with a bundle or a run, on the cheapest tier that its policy finds; thread-safe.

    What is classified may be a list or an iterator of texts, a Series or an array, or a frame of pandas or polars, a
    `datasets.Dataset` or a list of dicts, whose columns of texts are found by their names. For a task about pairs a
    text is a tuple of two, or a dict with ``text`` and ``text_pair``.

    Example:
        >>> clf = dimec.Classifier.from_pretrained("bundles/tickets")
        >>> clf("my invoice is wrong")
        [{'label': 'billing', 'score': 0.97, 'tier': 'mobile', 'layer': 0, 'cost': 0.04, 'degraded': None}]
        >>> clf.predict_proba(frame["body"])[:, clf.classes_ == "billing"]
    """

    def __init__(
        self, bundle: Bundle, device: Device, *, columns: TextColumns | None = None
    ) -> None:
        """Take a bundle and the device that runs it; `from_pretrained` opens both."""
        self.device = device
        """The engine: answers with all they say, streams, metrics."""
        self._bundle = bundle
        self._columns = columns or TextColumns()
        self._order = np.argsort(np.array(device.label_names))
        self.classes_: NDArray[np.str_] = np.array(device.label_names)[self._order]
        """The classes' names, sorted as scikit-learn has them: the columns of `predict_proba`."""

    @classmethod
    @takes(LoadOptions)
    def from_pretrained(
        cls,
        name: Run | str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        server_token: str | None = None,
        text_column: str | None = None,
        pair_column: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[LoadKeywords],
    ) -> Classifier:
        """Open a bundle's folder, a run or its folder, or a bundle on the hub.

        Tiers without a URL run in this process. A run is exported first, to a folder that lives as long as the
        process, as `dimec export` does without options.

        Args:
            name: The folder, or the name of a repository on the hub, OWNER/NAME.
            revision: Of the repository: a branch, tag or commit.
            token: The hub's, for a repository that is not open; the one that is logged in by default.
            server_token: The bearer token for the tiers' servers.
            text_column: The column of the (first) text in frames; found by its name by default.
            pair_column: The column of the second text.
            progress: Progress reporter of an export.

        Raises:
            BundleError: If the bundle cannot be used.
            RunError: If a run is not finished, or damaged.
            OptionError: If an option cannot be used, or ``revision`` is given for a folder.
            StateError: If the state is of another bundle, damaged, or in use by another device.
            UnreachableError: If there is no such folder and the hub does not give it.

        Example:
            >>> with Classifier.from_pretrained("owner/tickets", revision="v2") as clf:
            ...     clf(["my invoice is wrong"], top_k=2)
        """
        given = checked(LoadOptions, options)
        columns = TextColumns(text_column=text_column, pair_column=pair_column)
        bundle, made = _find(name, revision, token, given, visible(progress))
        device = Device(
            bundle,
            edge=given.edge,
            cloud=given.cloud,
            token=server_token,
            state=given.state,
            settings=given,
        )
        found = cls(bundle, device, columns=columns)
        if made is not None:
            weakref.finalize(found, _remove, made, os.getpid())
        return found

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        license: str | None = None,
        language: Sequence[str] = (),
        examples: Sequence[Text] = (),
        notes: str = "",
    ) -> None:
        """Copy the bundle to a folder, with a model card, README.md, where there is none yet.

        A bundle that is there is replaced at the end. The arguments but the first are for the card, as in
        `push_to_hub`.

        Raises:
            OptionError: If the folder holds something else, or the classifier lacks tiers.
            OutputError: If it cannot be written.
        """
        about = About(license=license, language=language, examples=examples, notes=notes)
        save(self._whole(), Path(folder), about)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a dimec bundle",
        replace_card: bool = False,
        license: str | None = None,
        language: Sequence[str] = (),
        examples: Sequence[Text] = (),
        notes: str = "",
    ) -> str:
        """Upload the bundle in one commit, with a model card where there is none yet; return the commit's URL.

        Args:
            name: The repository, OWNER/NAME; made where it is missing.
            private: Whether a new repository is.
            token: The hub's; the one that is logged in by default.
            revision: A branch that exists; the main branch by default.
            commit_message: The commit's.
            replace_card: Whether a model card that is there is written anew.
            license: For the card: an SPDX identifier in lower case, such as apache-2.0.
            language: Codes of the texts' languages, such as en.
            examples: Texts that the hub's page offers; none of your data unless you give it.
            notes: Markdown below the heading.

        Raises:
            UnreachableError: If the hub cannot be reached, or refuses the name, the token or a file.
            OptionError: If the classifier lacks tiers.
        """
        return push(
            self._whole(),
            name,
            About(license=license, language=language, examples=examples, notes=notes),
            private=private,
            token=token,
            revision=revision,
            message=commit_message,
            replace_card=replace_card,
        )

    # --- as a pipeline of transformers

    def __call__(
        self,
        inputs: Any,  # noqa: ANN401
        *,
        top_k: int | Literal["best"] | None = "best",
        ahead: int | None = None,
    ) -> Any:  # noqa: ANN401
        """Classify as transformers' text-classification pipeline does, and say more of each answer.

        Args:
            inputs: A text, or what the class says.
            top_k: How many classes to give of a text, the likeliest first; None all of them.
            ahead: Of an iterator, how many texts may be read before the first is answered, so that many run together;
                by default texts are answered as they come.

        Returns:
            Of a string a list with one `Result`, of a pair or a dict a `Result`, of many texts a list with a `Result`
            each, of an iterator an iterator of them, as texts come. With a number or None for ``top_k`` there is a
            list of `Result`s in place of each `Result`, and of a string that list itself.

        Raises:
            DataError: If one of them is no text; of a list nothing is run then.
            OptionError: If ``top_k`` is less than 1.
        """
        _check_top(top_k)
        if isinstance(inputs, Iterator):
            answers = self.device.stream(map(self._text, inputs), ahead=ahead)
            return (self._results(answer, top_k) for answer in answers)
        return self._told(inputs, self.device.classify(self._asked(inputs)), top_k)

    async def acall(self, inputs: Any, *, top_k: int | Literal["best"] | None = "best") -> Any:  # noqa: ANN401
        """Do what a call does without holding up the event loop; an iterator is read to its end first."""
        _check_top(top_k)
        return self._told(inputs, await self.device.aclassify(self._asked(inputs)), top_k)

    def _asked(self, inputs: Any) -> list[Text]:  # noqa: ANN401
        return [self._text(inputs)] if self._is_one(inputs) else self._texts(inputs)

    def _told(self, inputs: object, answers: Iterable[Answer], top_k: Any) -> Any:  # noqa: ANN401
        found = [self._results(each, top_k) for each in answers]
        listed = not self._is_one(inputs) or (isinstance(inputs, str) and top_k == "best")
        return found if listed else found[0]

    def _results(self, answer: Answer, top_k: int | Literal["best"] | None) -> Any:  # noqa: ANN401
        places = sorted(range(len(answer.probabilities)), key=lambda at: -answer.probabilities[at])
        results: list[Result] = [
            {
                "label": self.device.label_names[place],
                "score": answer.probabilities[place],
                "tier": str(answer.tier),
                "layer": answer.layer,
                "cost": answer.cost,
                "degraded": answer.degraded,
            }
            for place in places[: 1 if top_k == "best" else top_k]
        ]
        return results[0] if top_k == "best" else results

    # --- as a classifier of scikit-learn

    def fit(self, X: Any, y: Any = None) -> NoReturn:  # noqa: ANN401
        """Refuse, since it is trained; scikit-learn takes nothing without this method for a classifier.

        Raises:
            OptionError: Always.
        """
        raise OptionError(
            "a Classifier is trained already: train another one with dimec.fit, or wrap this one in scikit-learn's "
            "FrozenEstimator where an estimator is to be fitted"
        )

    def predict(self, X: Any) -> NDArray[np.str_]:  # noqa: ANN401
        """Return the class of each text: [n] names.

        Raises:
            DataError: If one of them is no text; nothing is run then.
        """
        answers = self.device.classify(self._texts(X))
        return np.array([answer.label for answer in answers], dtype=self.classes_.dtype)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: ANN401
        """Return the probabilities of all classes: [n, classes], in the order of ``classes_``.

        Raises:
            DataError: If one of them is no text; nothing is run then.
        """
        answers = self.device.stream(self._texts(X))
        rows = [np.array(answer.probabilities) for answer in answers]
        return np.reshape(rows, (len(rows), len(self.classes_)))[:, self._order]

    def score(self, X: Any, y: ArrayLike) -> float:  # noqa: ANN401
        """Return the accuracy on texts with labels [n]."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def __sklearn_is_fitted__(self) -> bool:
        """Say that it needs no fit."""
        return True

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401  of a library that is optional
        """Say what scikit-learn wants to know: a classifier of a list of strings."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=False),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
            requires_fit=False,
        )

    # --- what is given

    def _is_one(self, inputs: object) -> bool:
        if self.device.pairs and isinstance(inputs, tuple) and len(inputs) == 2:
            return all(isinstance(each, str) for each in inputs)
        return isinstance(inputs, str | Mapping)

    def _texts(self, given: Any) -> list[Text]:  # noqa: ANN401
        found = in_memory(given)
        if isinstance(found, Frame):
            table = frame_table(found)
            names = choose_texts(table, self._columns, pairs=self.device.pairs)
            rows: Iterator[Any] = (row.cells for row in table.read(names))
            return [cells if self.device.pairs else cells[0] for cells in rows]
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            raise DataError(f"{shown(given)} is given: give a list of texts, a Series or a frame")
        plain = getattr(given, "tolist", None)  # of numpy, pandas and pyarrow
        given = given if plain is None else plain()
        return [self._text(each) for each in given]

    def _text(self, given: Any) -> Any:  # noqa: ANN401  `Device` refuses what is none
        """Return a text as a device takes it: of a dict its texts, of a row of an array its cells."""
        if isinstance(given, Mapping) and "text" in given:
            pair = given.get("text_pair")
            return given["text"] if pair is None else (given["text"], pair)
        if isinstance(given, list) and len(given) == 1 and not self.device.pairs:
            return given[0]
        return given

    def _whole(self) -> Bundle:
        missing = [tier for tier in Tier if self._bundle.of(tier) is None]
        if missing:
            raise OptionError(
                f"{self._bundle.folder} lacks the {' and the '.join(missing)} tier: open a whole bundle, without URLs"
            )
        return self._bundle

    # --- the end

    def close(self) -> None:
        """Keep what a policy has learnt and close all connections; calling it again does nothing."""
        self.device.close()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Name the task, the classes and where tiers are."""
        manifest = self.device.manifest
        names = ", ".join(map(str, self.classes_[:10])) + ", …" * (len(self.classes_) > 10)
        served = ", ".join(self.device.clients) or "none"
        return (
            f"Classifier({manifest.task.name!r}, {len(self.classes_)} classes: {names}; policy {manifest.policy}, "
            f"servers: {served})"
        )


def _check_top(top_k: object) -> None:
    if top_k is not None and top_k != "best" and not (type(top_k) is int and top_k >= 1):
        raise OptionError(
            f"top_k is {shown(top_k)}: give a number from 1 up, or None for all classes"
        )


def _find(
    name: Run | str | Path,
    revision: str | None,
    token: str | None,
    options: LoadOptions,
    progress: Progress,
) -> tuple[Bundle, Path | None]:
    """Return the bundle of a folder, of a run, or of the hub, and the folder that was made for it."""
    folder = name.folder if isinstance(name, Run) else Path(name).expanduser()
    if not folder.exists() and isinstance(name, str):
        served = [tier for tier in (Tier.EDGE, Tier.CLOUD) if getattr(options, tier) is not None]
        return pull(name, served=served, revision=revision, token=token), None
    if revision is not None:
        raise OptionError(
            f"revision {revision!r} is of the hub, and {folder} is a folder: leave it out"
        )
    if is_bundle(folder) or not (folder / "config.json").exists():
        return load_bundle(folder), None
    run = Run.of(name)
    with needs_training():
        from dimec.deploying.export import export
        from dimec.deploying.options import ExportOptions
    made = Path(tempfile.mkdtemp(prefix="dimec-"))
    export(run, ExportOptions(), out=made / run.folder.name, progress=progress)
    return load_bundle(made / run.folder.name), made


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child's end is not the end of what its parent uses
        shutil.rmtree(folder, ignore_errors=True)
