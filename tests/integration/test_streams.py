"""Streams answer as soon as they can, lose nothing at a fault, and devices go on in forked children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import always, with_policy
from tests.commands import COMMAND, dimec
from tests.misbehaving import BadServer, Honest
from tests.servers import PATIENCE_S, TierServer, tier_server, wait_for

from dimec.bundle import Bundle
from dimec.cli.app import app
from dimec.core.errors import DataError
from dimec.core.tiers import Tier
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings

SETTINGS = DeviceSettings(threads=1, deadline_ms=60_000)
GOOD = [f"my invoice number {number} is wrong" for number in range(12)]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a bundle that sends everything to the cloud."""
    folder = tmp_path_factory.mktemp("all-cloud") / "bundle"
    return with_policy(tiny_bundle, folder, always(Tier.CLOUD, tiny_bundle))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[TierServer]:
    with tier_server("cloud", bundle.folder) as running:
        yield running


def started(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a classification of standard input."""
    return subprocess.Popen(
        [*COMMAND, "classify", *arguments, "-", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_an_answer_does_not_wait_for_the_next_text(bundle: Bundle, server: TierServer) -> None:
    given = threading.Semaphore(1)

    def texts() -> Iterator[str]:
        for text in GOOD:
            assert given.acquire(timeout=PATIENCE_S), "the answer before was not given"
            yield text

    with Device(bundle, cloud=server.url, settings=SETTINGS) as device:
        for _ in device.stream(texts()):
            given.release()


@pytest.mark.parametrize("where", ["in-process", "server"])
def test_the_command_answers_each_line_at_once(
    where: str, bundle: Bundle, server: TierServer
) -> None:
    options = [] if where == "in-process" else ["--cloud", server.url]
    process = started(str(bundle.folder), *options)
    assert process.stdin is not None and process.stdout is not None
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    try:
        for text in GOOD[:3]:
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(b'{"index"')
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize("where", ["in-process", "server"])
def test_what_came_before_a_fault_is_answered(
    where: str, bundle: Bundle, server: TierServer
) -> None:
    def broken() -> Iterator[str]:
        yield from GOOD
        raise LookupError

    url = None if where == "in-process" else server.url
    with Device(bundle, cloud=url, settings=SETTINGS) as device:
        faults: list[tuple[Any, type[Exception]]] = [
            (broken(), LookupError),
            ([*GOOD, None, "x"], DataError),
            (iter([*GOOD, 3, "x"]), DataError),
        ]
        for texts, kind in faults:
            answered = []
            with pytest.raises(kind):
                for answer in device.stream(texts):
                    answered.append(answer.index)
            assert answered == list(range(len(GOOD)))


def test_a_bad_line_and_ctrl_c_lose_no_answer(bundle: Bundle) -> None:
    assert bundle.cloud is not None
    slow = Honest(bundle.cloud, delay_s=lambda request: 0.3)
    with BadServer(slow) as cloud:
        command = (str(bundle.folder), "--cloud", cloud.url, "--deadline-ms", "60000")
        blank = "".join(f"{text}\n" for text in [*GOOD, "", "x"])
        done = dimec("classify", *command, "-", "--json", stdin=blank, code=2)
        assert done.stdout.count("\n") == len(GOOD)
        assert "line 13" in done.stderr
        asked = len(cloud.requests)
        process = started(*command)
        assert process.stdin is not None
        process.stdin.write("".join(f"{text}\n" for text in GOOD).encode())
        process.stdin.flush()
        wait_for(lambda: len(cloud.requests) == asked + len(GOOD), "all texts under way")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out.count(b"\n"), errors) == (130, len(GOOD), b"")


BAD = {
    "latin-1": b"caf\xe9",
    "a byte too long": b"x" * 1_000_001,
    "far too long": b"x" * 2_500_000,
    "too many characters": b"x" * 100_001,
    "empty": b"",
    "utf-16": b"\xff\xfe",
}


@pytest.mark.parametrize("way", ["-", "--file"])
def test_bad_lines_can_be_left_out(way: str, bundle: Bundle, tmp_path: Path) -> None:
    content = b"".join(bad + b"\nfine\n" for bad in BAD.values())
    (tmp_path / "a.txt").write_bytes(content)
    source = ["-"] if way == "-" else ["--file", str(tmp_path / "a.txt")]
    done = dimec("classify", bundle.folder, *source, "--json", "--skip-bad", stdin=content)
    answered = [json.loads(line)["index"] for line in done.stdout.splitlines()]
    assert answered == [2 * number + 1 for number in range(len(BAD))]
    assert f"{len(BAD)} left out by --skip-bad" in done.stderr
    assert "line 1:" in done.stderr


@pytest.mark.parametrize("name", BAD)
def test_else_a_bad_line_is_named_with_the_option(
    name: str, bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"fine\n" + BAD[name] + b"\n")
    with pytest.raises(DataError, match=r"line 2: .*--skip-"):
        app(["classify", str(bundle.folder), "--file", str(file)], standalone_mode=False)


FORKS = """
import multiprocessing, os, signal, sys
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings

def tier_of(text):
    return str(device.classify([text])[0].tier)

device = Device(sys.argv[1], cloud=sys.argv[2], settings=DeviceSettings(threads=2, deadline_ms=60_000))
print(*[str(each.tier) for each in device.classify(["a"] * 20)], flush=True)
before = device.stream(["a"] * 40)
next(before)
child = os.fork()
if child == 0:
    signal.alarm(100)
    print(tier_of("b"), device.traffic["cloud"].requests, flush=True)
    try:
        list(before)
    except Exception as exc:
        print(type(exc).__name__, flush=True)
    device.close()
    sys.exit(0)
print(os.waitpid(child, 0)[1], flush=True)
signal.alarm(100)
print(len(list(before)), tier_of("c"), flush=True)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(tier_of, ["d", "e", "f"]), flush=True)
device.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_device_goes_on_in_forked_children(bundle: Bundle, server: TierServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(bundle.folder), server.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.stdout.splitlines() == [
        " ".join(["cloud"] * 20),
        "cloud 1",
        "OptionError",
        "0",
        "39 cloud",
        "cloud cloud cloud",
    ], done.stderr
    assert done.returncode == 0


def test_a_device_keeps_no_cookies(bundle: Bundle) -> None:
    assert bundle.cloud is not None
    baker = Honest(bundle.cloud, headers={"Set-Cookie": "who=you; Path=/"})
    with BadServer(baker) as cloud, Device(bundle, cloud=cloud.url, settings=SETTINGS) as device:
        answers = device.classify(GOOD)
    assert {answer.degraded for answer in answers} == {None}
    assert not any("cookie" in request.headers for request in cloud.requests)
