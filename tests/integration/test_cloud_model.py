"""Another model in the cloud: asked over real sockets, read from a log, or a function; what it costs, what is kept."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.misbehaving import BadServer, Request, http

from dimec import api
from dimec.core.errors import DataError, DimecError, OptionError, RunError, UnreachableError
from dimec.endpoints.asking import ask_all
from dimec.endpoints.chat import PROMPT, ChatEndpoint
from dimec.endpoints.http import Access, Endpoint
from dimec.endpoints.kept import FILE, Kept
from dimec.endpoints.oip import PredictEndpoint
from dimec.endpoints.prices import Price
from dimec.endpoints.said import Classes, Said
from dimec.evaluation.options import ModelOptions
from dimec.evaluation.other_models import line_up
from dimec.runs.run import Run
from dimec.training.texts import RunTexts

CLASSES = Classes.of(("negative", "positive"), ())
Reply = Callable[[dict[str, Any], Request], bytes]


def chat(content: str, **more: Any) -> bytes:
    usage = {"prompt_tokens": 100, "completion_tokens": 2}
    message = {"role": "assistant", "content": content}
    body = {"choices": [{"message": message, **more}], "usage": usage}
    return http(200, json.dumps(body).encode())


class Served:
    """An endpoint on a real socket: what it answers is a function of what it is asked."""

    def __init__(self, reply: Reply) -> None:
        self.asked: list[dict[str, Any]] = []

        async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
            self.asked.append(json.loads(request.body))
            writer.write(reply(self.asked[-1], request))
            await writer.drain()

        self.server = BadServer(answer)

    @property
    def url(self) -> str:
        return self.server.url


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Served]]:
    started: list[Served] = []

    def start(reply: Reply) -> Served:
        started.append(Served(reply))
        started[-1].server.__enter__()
        return started[-1]

    yield start
    for each in started:
        each.server.__exit__(None, None, None)


def ask(endpoint: Endpoint, *texts: str) -> list[Said]:
    async def all_of() -> list[Said]:
        try:
            return [await endpoint.ask((text,)) for text in texts]
        finally:
            await endpoint.close()

    return asyncio.run(all_of())


def chatting(served: Served, **about: Any) -> ChatEndpoint:
    return ChatEndpoint(served.url, "m", CLASSES, **{"prompt": PROMPT, **about})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"class": "positive"}', (0, 1)),
        (" Negative.\n", (1, 0)),
        ("It is positive, I think", None),
        ('{"class": "neutral"}', None),
        ("", None),
    ],
)
def test_a_chat_names_a_class_or_abstains(
    serve: Callable[[Reply], Served], content: str, expected: tuple[float, ...] | None
) -> None:
    served = serve(lambda asked, request: chat(content))
    (said,) = ask(chatting(served, access=Access(key="secret")), "a film {classes}")
    assert said.probabilities == expected
    assert (said.tokens_in, said.tokens_out) == (100, 2)
    (asked,) = served.asked
    told = asked["messages"][0]["content"]
    assert "Text: a film {classes}" in told
    assert "- negative\n- positive" in told


def test_probabilities_of_tokens_are_read(serve: Callable[[Reply], Served]) -> None:
    def token(text: str, p: float) -> dict[str, Any]:
        return {"token": text, "logprob": float(np.log(p))}

    def reply(asked: dict[str, Any], request: Request) -> bytes:
        told = [
            {**token('{"class": "', 1.0)},
            {**token("pos", 0.6), "top_logprobs": [token("pos", 0.6), token("neg", 0.2)]},
            {**token('itive"}', 1.0)},
        ]
        return chat('{"class": "positive"}', logprobs={"content": told})

    (said,) = ask(chatting(serve(reply)), "a film")
    assert said.probabilities == pytest.approx((0.25, 0.75))


def test_what_an_endpoint_refuses_is_left_out_from_then_on(
    serve: Callable[[Reply], Served],
) -> None:
    def reply(asked: dict[str, Any], request: Request) -> bytes:
        for name in ("response_format", "temperature"):
            if name in asked:
                return http(400, f"unknown field {name}".encode())
        return chat("positive")

    served = serve(reply)
    said = ask(chatting(served), "one", "two")
    assert [each.probabilities for each in said] == [(0, 1), (0, 1)]
    assert len(served.asked) == 4
    assert "logprobs" in served.asked[-1]


def test_an_endpoint_that_is_busy_is_asked_again(serve: Callable[[Reply], Served]) -> None:
    def reply(asked: dict[str, Any], request: Request) -> bytes:
        busy = http(429, b"slow down", retry_after="0"), http(503, retry_after="0")
        return (*busy, chat("negative"))[min(request.number, 3) - 1]

    (said,) = ask(chatting(serve(reply)), "a film")
    assert said.probabilities == (1, 0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(401, b"who are you"), OptionError),
        (http(404, b"no such model"), OptionError),
        (http(400, b"no"), OptionError),
        (http(302, b"", location="http://elsewhere"), OptionError),
        (http(200, b"<html>"), UnreachableError),
        (http(200, b"[" * 100_000), UnreachableError),
        (http(200, b'{"choices": []}'), UnreachableError),
        (http(200, b'{"choices": [{"message": {"content": 1}}]}'), UnreachableError),
    ],
)
def test_whatever_an_endpoint_says_is_one_sentence(
    serve: Callable[[Reply], Served], answer: bytes, kind: type[DimecError]
) -> None:
    with pytest.raises(kind) as caught:
        ask(chatting(serve(lambda asked, request: answer), access=Access(key="sk-123")), "a film")
    assert "sk-123" not in str(caught.value)


def test_scores_of_labels_are_read_by_name(serve: Callable[[Reply], Served]) -> None:
    scored = [{"label": "POSITIVE", "score": 0.9}, {"label": "bad", "score": 0.1}]
    served = serve(lambda asked, request: http(200, json.dumps(scored).encode()))
    with pytest.raises(OptionError, match="bad"):
        ask(PredictEndpoint(served.url, CLASSES), "a film")
    classes = Classes.of(("negative", "positive"), ["Bad=negative"])
    (said,) = ask(PredictEndpoint(served.url, classes), "a film")
    assert said.probabilities == pytest.approx((0.1, 0.9))
    with pytest.raises(OptionError):
        Classes.of(("negative", "positive"), ["bad=neutral"])


def test_an_answer_is_paid_for_once(serve: Callable[[Reply], Served], tmp_path: Path) -> None:
    """Money ends the first command after four answers; the second one goes on, and asks for the others alone."""
    served = serve(lambda asked, request: chat("positive"))
    texts = [(f"text {each % 10}",) for each in range(20)]
    price = Price.of("10/50")  # 100 tokens in and 2 out: 0.0011 dollars

    def go(most: float | None) -> list[Said]:
        with Kept(tmp_path / FILE) as kept:
            about: dict[str, Any] = {"n_classes": 2, "at_once": 1, "price": price}
            return ask_all(chatting(served), texts, kept, max_spend=most, **about)

    with pytest.raises(OptionError, match="4 of 10"):
        go(0.0045)
    assert len(served.asked) == 4
    assert [each.probabilities for each in go(None)] == [(0, 1)] * 20
    assert len(served.asked) == 10
    go(0.0)
    assert len(served.asked) == 10
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError):
        go(None)


def test_a_notebook_whose_loop_runs_asks_too(
    serve: Callable[[Reply], Served], tmp_path: Path
) -> None:
    served = serve(lambda asked, request: chat("positive"))

    async def cell() -> list[Said]:
        with Kept(tmp_path / FILE) as kept:
            return ask_all(chatting(served), [("a film",)] * 2, kept, n_classes=2)

    for _ in range(2):
        assert [each.probabilities for each in asyncio.run(cell())] == [(0, 1)] * 2
    assert len(served.asked) == 1


@pytest.mark.parametrize("price", ["", "a", "1/2/3", "-1", "inf", "1/nan"])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    with pytest.raises(OptionError):
        Price.of(price)


def rows_of(run: Run) -> list[tuple[str, int]]:
    splits = [RunTexts(run).of("validation"), RunTexts(run).of("test")]
    return [pair for each in splits for pair in zip(each.first, each.labels.tolist(), strict=True)]


def test_a_language_model_in_the_cloud(
    tiny_run: Run, serve: Callable[[Reply], Served], tmp_path: Path
) -> None:
    """The endpoint knows every label; the encoder answers before it, and calls are what it costs."""
    run = Run.open(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    names = tiny_run.config.task.label_names
    known = {text: names[label] for text, label in rows_of(tiny_run)}

    def reply(asked: dict[str, Any], request: Request) -> bytes:
        told = asked["messages"][0]["content"]
        text = told.rpartition("\nText: ")[2].rpartition("\nAnswer")[0]
        return chat(known[text])

    served = serve(reply)
    about: dict[str, Any] = {"cloud_model": f"chat:{served.url}#m", "model_price": "10/50"}
    found = api.evaluate(run, max_drop=2.0, shots=1, **about)
    told = found.recommendation
    assert told is not None
    assert told.cloud_model == about["cloud_model"]
    assert told.cloud_score == 1
    assert told.depths.cloud == tiny_run.config.n_layers + 1
    cloud = next(row for row in found.rows if row.policy == "all-cloud")
    assert cloud.cost == pytest.approx(0.0011)
    assert (found.unit, cloud.cost_vs_cloud) == ("money", 1)
    assert told.cost_vs_cloud == pytest.approx(told.shares.cloud)
    n_asked = len(served.asked)
    assert n_asked == len(known)
    api.plan(run, max_drop=5.0, shots=1, **about)
    assert len(served.asked) == n_asked
    assert (run.folder / FILE).is_file()
    with pytest.raises(OptionError, match="lambda"):
        api.evaluate(run, profile="laptop", unit="lambda", **about)


def test_a_log_and_a_function_say_the_same(tiny_run: Run, tmp_path: Path) -> None:
    """Half of the rows are logged; the function abstains on every third of them."""
    rows = dict(rows_of(tiny_run))
    names = tiny_run.config.task.label_names
    log = tmp_path / "log.csv"
    texts = list(rows)[::2]
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "answer", "cost", "ms"])
        writer.writerows([text, names[rows[text]].upper(), 0.5, 20] for text in texts)
    found = line_up(tiny_run, ModelOptions(cloud_model=f"table:{log}"), None, table=tiny_run.test)
    run, billing = found.run, found.billing
    assert billing is not None
    assert len(run.validation) + len(run.test) == len(texts)
    assert run.validation.right[:, -1].all()
    assert run.validation.layers == (*tiny_run.validation.layers, tiny_run.config.n_layers + 1)
    assert billing.profile.money.cloud_request == 0.5
    assert billing.profile.to_cloud.round_trip_ms == 20
    assert run.cuts()[-1]["ee"].mobile == run.cuts()[-1]["ee"].edge == tiny_run.config.n_layers

    def ask(given: Sequence[str]) -> list[list[float]]:
        return [
            [0.0, 0.0] if place % 3 == 0 else [float(rows[text] == label) for label in (0, 1)]
            for place, text in enumerate(given)
        ]

    found = line_up(tiny_run, ModelOptions(cloud_model=ask), None, table=None)
    asked, billing = found.run, found.billing
    assert billing is not None
    right = asked.validation.right[:, -1]
    assert (~right[::3]).all()
    assert right.sum() == len(right) - len(right[::3])
    assert len(asked.test) == 0
    assert billing.profile.money.currency == "calls"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"cloud_model": "chat:localhost#m"}, OptionError),
        ({"cloud_model": "chat:http://localhost:1"}, OptionError),
        ({"cloud_model": "tei:http://localhost:1#m"}, OptionError),
        ({"cloud_model": "table:{folder}/none.csv"}, DataError),
        ({"cloud_model": "table:{folder}/few.csv"}, OptionError),
        ({"cloud_model": "table:{folder}/other.csv"}, OptionError),
        ({"cloud_model": "tei:http://localhost:1", "max_spend": 1.0}, OptionError),
        ({"cloud_model": lambda texts: np.ones((len(texts), 5))}, OptionError),
        ({"cloud_model": "{folder}"}, OptionError),
        ({"cloud_model": "oip:http://localhost:1"}, DimecError),
        ({"mobile_model": "chat:http://localhost:1#m"}, DimecError),
        ({"mobile_model": "static:{folder}"}, DimecError),
        ({"edge_model": "bundle:{folder}"}, DimecError),
        ({"edge_model": "bundle:{folder}#edge"}, DimecError),
        ({"edge_model": "run:{folder}"}, DimecError),
        ({"edge_model": "chat:http://me:secret@localhost:1#m"}, DimecError),
    ],
)
def test_what_is_no_model_is_refused(
    tiny_run: Run, tmp_path: Path, given: dict[str, Any], kind: type[DimecError]
) -> None:
    text = RunTexts(tiny_run).of("validation").first[0]
    (tmp_path / "few.csv").write_text(f'text,label\n"{text}",positive\n')
    (tmp_path / "other.csv").write_text(f'text,label\n"{text}",neutral\n')
    filled = {
        name: value.format(folder=tmp_path) if isinstance(value, str) else value
        for name, value in given.items()
    }
    with pytest.raises(kind) as caught:
        line_up(tiny_run, ModelOptions(**filled), None, table=None)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_options_of_a_model_need_one() -> None:
    with pytest.raises(OptionError):
        api.evaluate("run", shots=2)
