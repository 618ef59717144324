"""An endpoint with OpenAI's chat completions in a process of its own, whose model is a classifier of ours.

    python tests/chat_endpoint.py ROWS.csv

The classifier is fitted to the rows of the file, columns text and label, so that it knows them.

It prints its port, wants the key of CHAT_KEY, counts a token a word, and says at /count how many answers it gave.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimec.bundle import Bundle
    from dimec.policies.replay import Replay
    from dimec.runs.run import Run

KEY = "sk-of-these-tests"
PRICE = "1000/2000"
"""A thousandth of a dollar a token that is read."""
WAIT_S = float(os.environ.get("CHAT_WAIT_S", "0"))


def text_in(prompt: str) -> str:
    """Return the text of our own prompt, of a pair both with a slash between."""
    _, is_pair, pair = prompt.rpartition("\nFirst text: ")
    text = (pair if is_pair else prompt.rpartition("\nText: ")[2]).rpartition("\nAnswer")[0]
    return text.replace("\nSecond text: ", " / ", 1) if is_pair else text


@dataclass
class Endpoint:
    """The process."""

    url: str

    @property
    def n_answers(self) -> int:
        import httpx

        return int(httpx.get(f"{self.url}/count").text)


@contextlib.contextmanager
def chat_endpoint(rows: Path, *, wait_s: float = 0.0) -> Iterator[Endpoint]:
    """Start the process, and make sure that it is gone in the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(rows)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CHAT_KEY": KEY, "CHAT_WAIT_S": str(wait_s)},
    )
    try:
        assert process.stdout is not None
        yield Endpoint(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class Asking:
    """A run, an endpoint that knows its rows, and the options that put it into the cloud."""

    run: Run
    endpoint: Endpoint

    @property
    def about(self) -> dict[str, Any]:
        return {"cloud_model": f"chat:{self.endpoint.url}#m", "model_price": PRICE}

    @property
    def model(self) -> tuple[str, str]:
        """The option of a server that says whom it asks."""
        return "--model", str(self.about["cloud_model"])

    def played(self, bundle: Bundle, n: int | None = None) -> Replay:
        """Replay a bundle's policy over what the model said of the first test rows, by default of all."""
        import numpy as np

        from dimec.evaluation.options import ModelOptions
        from dimec.evaluation.other_models import line_up
        from dimec.policies.replay import replay

        table = line_up(self.run, ModelOptions(**self.about), None, table=self.run.test).run.test
        rows = np.arange(len(table) if n is None else n)
        costs = bundle.mobile.manifest.costs
        return replay(bundle.mobile.policy(), table.take(rows), costs=costs)


@contextlib.contextmanager
def asking(run: Run, folder: Path, *, wait_s: float = 0.0) -> Iterator[Asking]:
    """Start an endpoint for a copy of a run in a folder, and have its key in the environment."""
    import pytest

    from dimec.runs.run import Run

    own = Run.open(shutil.copytree(run.folder, folder / "run"))
    rows = write_rows(own, folder / "rows.csv")
    with pytest.MonkeyPatch.context() as patch, chat_endpoint(rows, wait_s=wait_s) as endpoint:
        patch.setenv("OPENAI_API_KEY", KEY)
        yield Asking(own, endpoint)


def write_rows(run: Run, path: Path) -> Path:
    """Write all rows of a run as the process reads them."""
    from dimec.training.texts import RunTexts

    names = run.config.task.label_names
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for split in ("train", "validation", "test"):
            rows = RunTexts(run).of(split)
            texts = list(rows.first)
            if rows.second is not None:
                texts = [" / ".join(pair) for pair in zip(texts, rows.second, strict=True)]
            writer.writerows(
                (text, names[label]) for text, label in zip(texts, rows.labels, strict=True)
            )
    return path


def main() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    with Path(sys.argv[1]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=1000.0))
    model.fit([row["text"] for row in rows], [row["label"] for row in rows])
    n_answers, lock = 0, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.say(200, str(n_answers))

        def do_POST(self) -> None:
            nonlocal n_answers
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.headers.get("authorization") != f"Bearer {os.environ['CHAT_KEY']}":
                self.say(401, {"error": f"wrong key: {self.headers.get('authorization')}"})
                return
            prompt = body["messages"][-1]["content"]
            [label] = model.predict([text_in(prompt)])
            time.sleep(WAIT_S)
            message = {"role": "assistant", "content": json.dumps({"class": str(label)})}
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 1}
            with lock:
                n_answers += 1
            self.say(200, {"choices": [{"index": 0, "message": message}], "usage": usage})

        def say(self, status: int, content: Any) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
