"""Calls that type checkers must take, and calls that they must refuse: mypy reports an ignore that is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dimec

if TYPE_CHECKING:
    run = dimec.fit("t", data=[{"text": "a", "label": "b"}], out="r", max_length="auto", epochs=3)
    dimec.fit("t", data=Path("a.csv"), out="r", backbone=Path("b"), split="time")
    dimec.fit("t", out="r", epoch=3)  # type: ignore[call-arg]
    dimec.fit("t", out="r", epochs="3")  # type: ignore[arg-type]
    dimec.fit("t", out="r", pooling="max")  # type: ignore[arg-type]
    dimec.search("t", out="r", data=3)  # type: ignore[arg-type]
    dimec.evaluate(run, policies=["all"], price=0.2, costs=["to_cloud=3"])
    dimec.evaluate(run, policy="all")  # type: ignore[call-arg]
    dimec.frontier(run, prices="0,0.1")
    dimec.plan(run, max_drop=(0.5, 1))
    dimec.plan(run, max_drop="0.5")  # type: ignore[arg-type]
    dimec.compress(run, kind="bottlefit", layer=2, width=16)
    dimec.compress(run, kind="bottlefit")  # type: ignore[call-arg]
    dimec.export(run, out="b", quantize="mobile,edge", tails=True, hidden_type="fp32")
    dimec.report(run, max_drop=0.5, price=1)  # type: ignore[call-arg]
    dimec.study("main", tasks=["cola"], seeds=1)
    clf = dimec.Classifier.from_pretrained("b", edge="http://edge", threads=1)
    dimec.Classifier.from_pretrained("b", deadline=1)  # type: ignore[call-arg]
    clf("a text", top_k=2)
    clf("a text", top_k="all")  # type: ignore[arg-type]
