"""Commands as processes that are forked from one which has loaded their libraries already.

That takes a second for each otherwise, and eight for what trains. A process has the environment, the folder and the
limit of open files of the test, as if the test had started it, and ends like any other.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WIDTH = 12
"""Bytes of a number that is told."""


class Forked:
    """A process, with what tests need of `subprocess.Popen`."""

    returncode: int | None = None

    def __init__(self, news: socket.socket) -> None:
        self._news = news
        self.pid = int(news.recv(WIDTH, socket.MSG_WAITALL))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            assert select.select([self._news], [], [], timeout)[0], f"{self.pid} still runs"
            self.returncode = int(self._news.recv(WIDTH, socket.MSG_WAITALL))
            self._news.close()
        return self.returncode

    def poll(self) -> int | None:
        over = self.returncode is None and select.select([self._news], [], [], 0)[0]
        return self.wait() if over else self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Loaded:
    """A process that has loaded modules, started when it is first needed."""

    def __init__(self, *modules: str, options: tuple[str, ...] = ()) -> None:
        self._command = [sys.executable, *options, "-m", "tests.forked", *modules]

    @cached_property
    def _orders(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(self._command, cwd=ROOT, stdin=theirs.fileno())
        theirs.close()

        def end() -> None:
            ours.close()
            process.wait()

        atexit.register(end)
        return ours

    def start(
        self,
        *arguments: object,
        out: int = subprocess.DEVNULL,
        err: int = subprocess.DEVNULL,
        given: int = subprocess.DEVNULL,
        program: str = "dimec",
        environment: Mapping[str, str] | None = None,
    ) -> Forked:
        """Start ``python -m PROGRAM ARGUMENTS`` with these descriptors as its outputs and its input."""
        order = {
            "argv": [program, *map(str, arguments)],
            "environment": {**os.environ, **(environment or {})},
            "folder": str(Path.cwd()),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        ours, theirs = socket.socketpair()
        with theirs, Path(os.devnull).open("r+b") as nothing:
            streams = [nothing.fileno() if each < 0 else each for each in (out, err, given)]
            sent = [theirs.fileno(), *streams]
            socket.send_fds(self._orders, [json.dumps(order).encode(), b"\n"], sent)
        return Forked(ours)


SERVES = Loaded("dimec.cli.app", "dimec.runtime.server.server", options=("-W", "error"))
TRAINS = Loaded("dimec.cli.app", "dimec.training.fitting", "accelerate")  # torch warns of itself


def forked(*arguments: object, said: Path, program: str = "dimec", **environment: str) -> Forked:
    """Start a command that trains; its output goes to a file, its errors to one beside it that ends in ``.err``."""
    with said.open("wb") as out, said.with_suffix(".err").open("wb") as err:
        return TRAINS.start(
            *arguments,
            out=out.fileno(),
            err=err.fileno(),
            program=program,
            environment=environment,
        )


# --- in the process that has loaded them


def next_order(orders: socket.socket) -> dict[str, Any]:
    """Fork for every order that comes, and return it in the process that is to follow it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        sent, descriptors, _, _ = socket.recv_fds(orders, 2**16, 4)
        if not sent:
            os._exit(0)
        while not sent.endswith(b"\n"):
            sent += orders.recv(2**16)
        if os.fork() == 0:
            break
        for each in descriptors:
            os.close(each)
    # This one tells how the next one ends.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    news, out, err, given = descriptors
    if process := os.fork():
        for each in (out, err, given):
            os.close(each)
        os.write(news, f"{process:{WIDTH}}".encode())
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.write(news, f"{ended:{WIDTH}}".encode())
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    orders.close()
    os.dup2(given, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for each in descriptors:
        os.close(each)
    # The streams were made for other files, which may be read and written in other ways.
    # Not closed with their objects, which -W error would have said at the end.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    found: dict[str, Any] = json.loads(sent)
    return found


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        order = next_order(socket.socket(fileno=os.dup(0)))
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    resource.setrlimit(resource.RLIMIT_NOFILE, order["files"])
    sys.argv = order["argv"]
    runpy.run_module(order["argv"][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
