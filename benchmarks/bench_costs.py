"""What each system costs a text under ready profiles: accuracy, bytes, milliseconds and energy, as a Markdown table.

    python benchmarks/bench_costs.py runs/sst2 runs/mrpc [--unit lambda|ms|joules] [--profile phone-4g …]

Policies are fitted on validation, in the unit: by the papers' prices in lambda, else by each profile's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dimec
from dimec.evaluation import Evaluation

SYSTEMS = (
    "neurosurgeon",
    "splitee",
    "bottlenet",
    "bottlenet-pp",
    "bottlefit",
    "early-exit",
    "deebert",
    "dimec-dc-fixed",
    "dimee-fixed",
    "dimec-cascade",
)
CONTROLS = ("all-mobile", "all-edge", "all-cloud", "bert-on-mobile")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="+", type=Path)
    options.add_argument(
        "--unit", default="lambda", choices=("lambda", "ms", "bytes", "joules", "money")
    )
    options.add_argument("--profile", nargs="+", default=["phone-4g", "phone-wifi"])
    chosen = options.parse_args()
    for run in chosen.runs:
        found = {
            profile: dimec.evaluate(run, policies=SYSTEMS, profile=profile, unit=chosen.unit)
            for profile in chosen.profile
        }
        n = next(iter(found.values())).n
        print(f"\n{run.name}, fitted in {chosen.unit}, {n:,} test rows")
        # In lambda all profiles price the same policies; in their own unit each has its own.
        for group in [list(found)] if chosen.unit == "lambda" else [[name] for name in found]:
            print()
            print_table({name: found[name] for name in group})


def print_table(found: dict[str, Evaluation]) -> None:
    first = next(iter(found.values()))
    columns = ["accuracy", *(["λ"] if first.unit == "lambda" else []), "m/e/c %", "bytes"]
    columns += [f"{name}: {unit}" for name in found for unit in ("ms", "mJ")]
    columns += ["USD a million"]
    print(f"| | {' | '.join(columns)} |\n|---|{len(columns) * '---|'}")
    policies = [
        row.policy for row in first.rows if row.kind == "policy"
    ]  # a row for each bottleneck
    for name in (*CONTROLS, *policies):
        # Where the methods have different depths, a control stands there twice: the first counts.
        rows = [next(row for row in each.rows if row.policy == name) for each in found.values()]
        row = rows[0]
        assert row.shares is not None and row.measured is not None
        shares = (row.shares.mobile, row.shares.edge, row.shares.cloud)
        cells = [f"{100 * row.accuracy:.2f}"]
        cells += [f"{row.cost:.2f}"] if first.unit == "lambda" else []
        cells += ["/".join(f"{100 * each:.0f}" for each in shares)]
        cells += [amount(row.measured.bytes_sent.mean)]
        for each in rows:
            assert each.measured is not None
            cells += [amount(each.measured.ms.mean), amount(1000 * each.measured.joules.mean)]
        cells += [f"{1e6 * row.measured.money.mean:.3f}"]
        point = row.operating_point or {}
        cut = f" (cut {point['layer']:g})" if "layer" in point else ""
        print(f"| {name}{cut} | {' | '.join(cells)} |")


def amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


if __name__ == "__main__":
    main()
