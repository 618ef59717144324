"""``dimec classify``: the device on the command line; texts in, answers out, one by one."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimec.cli.console import (
    SECONDS_BETWEEN_LINES,
    ConsoleProgress,
    err,
    open_bars,
    pace,
    say_json,
    say_line,
)
from dimec.cli.generate import BundleFolder, Restart
from dimec.cli.table import cost_words
from dimec.core.errors import OptionError, printable
from dimec.core.options import checked
from dimec.core.outputs import check_output_file
from dimec.core.tiers import TIERS, Answer, Tier
from dimec.runtime.device.options import ClassifyOptions

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from dimec.data import unlabelled as sources
    from dimec.runtime.device.device import Device
    from dimec.runtime.device.lines import AnswerFile

TOKEN = "DIMEC_TOKEN"


def classify(
    given: dict[str, Any],
    bundle: BundleFolder,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts; - or nothing for the lines of a pipe. The two of a pair are separated by a tab.",
            show_default=False,
        ),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Write JSON lines to this file; the same command goes on after a kill."
        ),
    ] = None,
    restart: Restart = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line per text.")] = False,
) -> None:
    """Classify texts on the cheapest tier that the bundle's policy finds: on this device, at the edge or in the cloud.

    A tier that does not answer costs accuracy or cost, never an answer: another one stands in, and `degraded` says why.

    **Example**: `dimec classify bundles/sst2 "a gripping film" "two hours too long"`

    **A long file, with servers; the same command goes on after a kill**:
    `dimec classify bundles/sst2 --file reviews.csv --edge http://edge:8101 --cloud https://cloud --out answers.jsonl`

    **A stream**: `tail -f lines.txt | dimec classify bundles/sst2 --json`

    **Watched by Prometheus**:
    `tail -f lines.txt | dimec classify bundles/sst2 --json --metrics-file /var/lib/node_exporter/dimec.prom`
    """
    from dimec.core.tracing import set_up_tracing
    from dimec.runtime.device.device import Device
    from dimec.runtime.device.lines import MARK, AnswerFile
    from dimec.runtime.device.metrics import MetricsFile
    from dimec.runtime.device.stream import AHEAD

    if fault := set_up_tracing("dimec-device"):
        err.print(fault)
    options = checked(ClassifyOptions, given)
    if not text and options.file is None and _is_piped():
        text = ["-"]
    _check_inputs(text, options.file)
    if restart and out_file is None:
        raise OptionError("--restart replaces the file of --out: give --out too")
    reads: dict[str, Path | None] = {
        "--file": options.file,
        "standard input": Path("/dev/stdin") if text == ["-"] else None,
        "--token-file": options.token_file,
        "--ca-file": options.ca_file,
        "--certificate-file": options.certificate_file,
        "--key-file": options.key_file,
        "--state": options.state,
        **{f"BUNDLE/{each}": bundle / each for each in TIERS},
    }
    if out_file is not None:
        check_output_file(out_file, inputs=reads, beside=(MARK,))
    if options.metrics_file is not None:
        check_output_file(
            options.metrics_file, option="--metrics-file", inputs={**reads, "--out": out_file}
        )
    with ExitStack() as stack:
        device = stack.enter_context(
            Device(
                bundle,
                edge=options.edge,
                cloud=options.cloud,
                token=_read_token(options.token_file),
                state=options.state,
                settings=options,
                at_need=True,
            )
        )
        if options.state is not None and not device.policy.learns:
            err.print(f"The policy {device.policy.name} learns nothing: --state is not used.")
        texts = _texts(text or [], options, pairs=device.pairs)
        job = {
            "texts": texts.fingerprint,
            "bundle": device.fingerprint,
            "text_column": options.text_column,
            "pair_column": options.pair_column,
            "skip_empty": str(options.skip_empty),
        } | ({"skip_bad": "True"} if options.skip_bad else {})
        lines = None
        if out_file is not None:
            lines = stack.enter_context(AnswerFile(out_file, job=job, restart=restart))
        if options.metrics_file is not None:
            warn = ConsoleProgress().warn
            stack.enter_context(MetricsFile(options.metrics_file, device.metrics, warn=warn))
        ahead = None if text == ["-"] else AHEAD
        _run(device, texts, lines, ahead=ahead, as_json=as_json)


def _texts(arguments: list[str], options: ClassifyOptions, *, pairs: bool) -> sources.Texts:
    """Return the texts of the file, of standard input, or of the command line."""
    from dimec.data import unlabelled as sources

    skip_bad, progress = options.skip_bad, ConsoleProgress()
    if options.file is not None:
        return sources.of_file(
            options.file, pairs=pairs, columns=options, skip_bad=skip_bad, progress=progress
        )
    if arguments == ["-"]:
        return sources.of_stdin(pairs=pairs, columns=options, skip_bad=skip_bad, progress=progress)
    # Where the locale is not UTF-8, Python keeps the bytes of UTF-8 arguments as half characters.
    decoded = [os.fsencode(each).decode(errors="surrogateescape") for each in arguments]
    return sources.of_arguments(decoded, pairs=pairs)


def _run(
    device: Device,
    texts: sources.Texts,
    lines: AnswerFile | None,
    *,
    ahead: int | None,
    as_json: bool,
) -> None:
    """Classify and write; what an earlier process has answered is left out."""
    from dimec.runtime.device.lines import answer_line

    done, n_done = (-1, 0) if lines is None else (lines.done, lines.n_done)
    if n_done:
        err.print(f"Going on after {n_done:,} answers.")
    waiting: deque[tuple[int, sources.Text]] = deque()

    def left() -> Iterator[sources.Text]:
        for index, text in texts.read():
            if index > done:
                waiting.append((index, text))
                yield text

    total = None if texts.total is None else texts.total - n_done
    tally = _Tally(total, device=device, live=lines is not None)
    with tally.bars or nullcontext():
        for answer in device.stream(left(), ahead=ahead):
            index, text = waiting.popleft()
            if lines is not None:
                lines.write(answer_line(answer, device.label_names, index=index))
            elif as_json:
                say_json(answer_line(answer, device.label_names, index=index))
            else:
                say_line(_for_people(answer, text, currency=device.manifest.currency))
            tally.add(answer)
    if lines is not None:
        lines.finish()
    if texts.n_left_out:
        err.print(
            f"{texts.n_left_out:,} left out by --skip-bad; the first: {texts.why_left_out}",
            soft_wrap=True,
        )
    if lines is not None or not as_json:
        err.print(tally.summary(), soft_wrap=True)
        if guard := device.guard:
            err.print(_watched(guard), soft_wrap=True)


def _check_inputs(text: list[str] | None, file: Path | None) -> None:
    if file is not None and text:
        raise OptionError("texts and --file are given: give one of them")
    if file is None and not text:
        raise OptionError(
            "there is nothing to classify: give texts, --file FILE, or - for standard input"
        )
    if text and "-" in text and text != ["-"]:
        raise OptionError("- stands for standard input: give it alone, or texts")


def _is_piped() -> bool:
    """Tell whether standard input is a pipe or a file, rather than a terminal or nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or of a program that runs this one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"--token-file {file} cannot be read: check path and rights") from exc


def _for_people(answer: Answer, text: sources.Text, *, currency: str | None) -> str:
    shown = printable((text if isinstance(text, str) else " | ".join(text))[:1_000])
    shown = shown if len(shown) <= 48 else f"{shown[:47]}…"
    place, cost = f"{answer.tier} {answer.layer}", cost_words(answer.cost, currency)
    line = f"{printable(answer.label):<12} {answer.confidence:6.1%}  {place:<9} {cost:>8}  {shown}"
    return line if answer.degraded is None else f"{line}\n             {printable(answer.degraded)}"


def _watched(guard: dict[str, Any]) -> str:
    """Say what a policy that watches itself has found."""
    words = [
        f"Guard: {guard['audits']:,} of {guard['samples']:,} samples audited, {guard['differing']:,} differed from the "
        f"cloud ({guard['allowed_disagreement']:.1%} are allowed)"
    ]
    for each in guard["estimates"]:
        if each["rung"] == guard["rung"]:
            low, high = each["disagreement_ci95"]
            words.append(
                f"since the last move {each['disagreement']:.1%} ({low:.1%} to {high:.1%})"
            )
    words.append(
        f"{guard['alarms_by_drift']} alarms by drift, {guard['alarms_by_audits']} by audits, {guard['returns']} returns"
    )
    words.append(guard["alarm"] or "no alarm now")
    return "; ".join(words) + "."


class _Tally:
    """Shares and cost so far: on a bar where there is a terminal, else in a line now and then."""

    def __init__(self, total: int | None, *, device: Device, live: bool) -> None:
        self._total = total
        self._reference = device.reference_cost
        self._currency = device.manifest.currency
        self._tiers: Counter[Tier] = Counter()
        self._cost = 0.0
        self._degraded = 0
        self._began = self._spoke = time.monotonic()
        self.bars: Bars | None = None
        if live and err.is_terminal:
            self.bars = open_bars()
            self._task = self.bars.add_task("Classifying", total=total)

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self._tiers[answer.tier] += 1
        self._cost += answer.cost
        self._degraded += answer.degraded is not None
        now = time.monotonic()
        if self.bars is not None:
            self.bars.update(self._task, advance=1, description=self._so_far())
        elif now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            n = self._tiers.total()
            of = "" if self._total is None else f" of {self._total:,}"
            err.print(
                f"{n:,}{of} classified, {pace(n, now - self._began)}: {self._so_far()}",
                soft_wrap=True,
            )

    def _so_far(self) -> str:
        n = self._tiers.total()
        shares = ", ".join(f"{tier} {self._tiers[tier] / n:.0%}" for tier in TIERS)
        if self._currency is not None:
            of_cloud = self._cost / n / self._reference
            return f"{shares}; cost {self._cost:.3g} {self._currency}, {of_cloud:.2f} of asking the cloud every time"
        return (
            f"{shares}; cost {self._cost / n / self._reference:.2f} of the full model on the device"
        )

    def summary(self) -> str:
        """Say it all in a line or two."""
        n = self._tiers.total()
        if not n:
            return "Nothing was left to classify."
        degraded = (
            f"; {self._degraded:,} not as the policy wanted, see `degraded`"
            if self._degraded
            else ""
        )
        return f"{n:,} text{'s' if n > 1 else ''} classified: {self._so_far()}{degraded}."
