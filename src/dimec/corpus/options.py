"""What a user may set where a corpus is labelled; it loads neither pyarrow nor Ray."""

from __future__ import annotations

from functools import partial
from typing import Self

from pydantic import model_validator

from dimec.core.options import DATA, EngineName, PathText, TextColumns, option

PROMISE, MACHINES, MODELS = "Promise", "Machines", "Another model"
_of_data, _of_promise, _of_machines, _of_models = (
    partial(option, group=each) for each in (DATA, PROMISE, MACHINES, MODELS)
)
_of_tiers = partial(_of_models, (), cli=list[str])
USUAL_ASSURANCE = 0.95


class BulkOptions(TextColumns):
    """What a user chooses for a corpus."""

    data: PathText = _of_data(
        ...,
        "The corpus: a CSV, TSV, JSONL or parquet file, any other file with a text in every line, a folder of such, "
        "or a URL of either, such as s3://bucket/texts.",
        basic=True,
        metavar="FILE|FOLDER|URL",
    )
    id_column: str | None = _of_data(
        None, "Column that is kept beside each answer, as text.", basic=True
    )
    max_drop: float | None = _of_promise(
        None,
        "Points of accuracy that may be lost on this corpus against sending all of it to the cloud. A random sample is "
        "answered by the cloud too, and the cheapest operating point that its answers allow is taken; no labels are "
        "needed.",
        basic=True,
        metavar="POINTS",
        shown_default="the bundle's policy as it is",
        ge=0,
        lt=100,
        allow_inf_nan=False,
    )
    assurance: float = _of_promise(
        USUAL_ASSURANCE,
        "Probability with which --max-drop holds.",
        ge=0.5,
        le=0.999,
    )
    ray: str | None = _of_machines(
        None,
        "Run on a Ray cluster: its address, auto for the one that this machine is part of, or local to start one here.",
        basic=True,
        metavar="ADDRESS",
        shown_default="this process alone",
    )
    workers: int | None = _of_machines(
        None,
        "With --ray: processes that label, each with --threads threads.",
        shown_default="as many as the cluster's cores allow",
        ge=1,
    )
    engine: EngineName = _of_machines(
        "onnxruntime",
        "What runs the tiers.",
    )
    threads: int | None = _of_machines(
        None,
        "Threads of the engine.",
        shown_default="all cores; with --ray 1",
        ge=1,
    )

    model: tuple[str, ...] = _of_tiers(
        "Of a bundle with another model on a tier: whom to ask, such as cloud=chat:URL#MODEL, cloud=tei:URL or "
        "edge=oip:URL#MODEL; may be repeated.",
        metavar="TIER=MODEL",
        shown_default="what the export was fitted to",
    )
    model_key_file: tuple[str, ...] = _of_tiers(
        "File with the key that the model is asked with, of each tier.",
        metavar="TIER=FILE",
        shown_default="for chat: the environment's OPENAI_API_KEY",
    )
    model_price: tuple[str, ...] = _of_tiers(
        "What an answer costs: dollars a million tokens, in and out, such as cloud=0.15/0.6, or dollars a call.",
        metavar="TIER=IN/OUT|CALL",
        shown_default="the export's",
    )
    max_spend: float | None = _of_models(
        None,
        "Dollars that the command may spend; it stops there, and goes on when it is given again.",
        metavar="DOLLARS",
        gt=0,
        allow_inf_nan=False,
    )
    at_once: int = _of_models(8, "Questions that a worker has open at a time.", ge=1, le=1_024)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.workers is not None and self.ray is None:
            raise ValueError("--workers says how many processes Ray runs: give --ray too")
        if "assurance" in self.model_fields_set and self.max_drop is None:
            raise ValueError("--assurance says how sure --max-drop is: give that too")
        return self
