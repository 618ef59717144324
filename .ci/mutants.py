"""Mutation testing: which single faults in a module, made by mutmut, the tests named for it do not notice.

`make mutants MODULE=policies/pools` takes one module, without MODULE all of them in turn, which takes hours. ONLY is
a pattern of mutants' names, such as '*[05]' for a fifth of them. Each module gets a copy of the tree under
build/mutants, where `mutmut show NAME` prints a mutant.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"

# Where a silent error hurts, and which files of tests have to notice it.
TESTS: dict[str, tuple[str, ...]] = {
    "evaluation/cuts": ("test_cuts",),
    "evaluation/dial": ("test_dial",),
    "deploying/promise": ("test_promise",),
    "evaluation/controls": ("test_evaluation",),
    "evaluation/meter": ("test_measured",),
    "evaluation/results": ("test_measured",),
    "policies/betting": ("test_guarded",),
    "policies/cascade": ("test_cascade",),
    "policies/cascade_fit": ("test_cascade", "test_dial"),
    "policies/centroids": ("test_complexity", "test_policies"),
    "policies/dimec_dc": ("test_complexity", "test_policies"),
    "policies/dimee": ("test_complexity", "test_policies"),
    "core/guard_settings": ("test_guarded",),
    "policies/guarded": ("test_guarded",),
    "policies/pools": ("test_complexity",),
    "policies/splitee": ("test_systems",),
    "policies/thresholds": ("test_complexity", "test_systems"),
    "policies/replay": ("test_policies", "test_evaluation", "test_cascade", "test_systems"),
    "runs/exit_zero": ("test_exit_zero",),
    "runtime/device/sample": (
        "../integration/test_bottleneck_live",
        "../integration/test_device_faults",
        "../integration/test_sample",
        "../integration/test_split_live",
    ),
    "runtime/device/state": ("test_state",),
    "training/exit_zero": ("test_exit_zero",),
}

# Which tests of these files, as pytest's -k takes it: each mutant is run against them, so they are to be quick.
_DECISIONS = (
    "TestDecisions or adaptive or another_bottleneck or at_the_limit or break_the_contract or dimee_leaves or "
    "mean_use or most_confident or nearest_pool or no_samples or searched_rewards"
)
QUICK = {
    "deploying/promise": "not covers and not errs and not is_kept and not sequence",
    "evaluation/controls": "chance_at_a_cost or dearer or hull or majority or oracle or shuffles_keep or single_exit",
    "evaluation/cuts": "unlike or every_row or not_tried or own_cut",
    "evaluation/dial": "another_simulation or by_hand or few_rows or own_cut or edge_alone or that_count or whole",
    "evaluation/meter": "differently or own_size or picked or reads_embeddings or standard_errors or text_by_text",
    "evaluation/results": "standard_errors",
    "policies/betting": "TestDrift or TestEvidence",
    "policies/cascade": "TestDecisions or TestPoints or TestStrangeTexts",
    "policies/cascade_fit": "TestLikeAllCloud or TestWays or other_borders or of_their_own or weight_three",
    "policies/dimec_dc": "by_hand or cheapest or beta or map or nearest_pool",
    "policies/dimee": "by_hand or charged or dimee or exit_grid or search_charges",
    "core/guard_settings": "settings",
    "policies/guarded": (
        "TestByHand or TestKeeping or by_the_cloud or estimate_is or never_topped_up or scaled_down or stated_limit"
    ),
    "policies/splitee": "split or searched_rewards",
    "policies/replay": _DECISIONS,
    "runs/exit_zero": "documented or roberta or weigh_nothing or dense_part_survives or cannot_be_read",
    "runtime/device/sample": "test_sample or (l2w3p2q8 and (in_process or what_is_sent)) or not_run_as",
    "runtime/device/state": "not kill_9 and not restart",
    "training/exit_zero": "class_without_rows or scikit or group or better or dense_part_knows",
}

# Whose tests fit and export models: no fixture runs the module itself, so that all mutants may share what they made.
SHARED = ("runtime/device/sample",)


def settings_for(module: str) -> str:
    """Return mutmut's section of pyproject.toml."""
    tests = [os.path.normpath(f"tests/unit/{each}.py") for each in TESTS[module]]
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "-k", QUICK.get(module, "test")]
    if module in SHARED:
        options += ["-p", "keep_fixtures", "-o", "tmp_path_retention_count=100000"]
    return f"""
[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/dimec/{module}.py"]
pytest_add_cli_args = {json.dumps(options)}
pytest_add_cli_args_test_selection = {json.dumps(tests)}
use_git_change_detection = false
"""


def try_mutants(module: str, only: list[str]) -> None:
    """Try the mutants of one module and print what became of them."""
    folder = BUILD / module
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("src", "tests", "docs", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (ROOT / "pyproject.toml").read_text() + settings_for(module)
    (folder / "pyproject.toml").write_text(settings)
    mutmut = [sys.executable, "-m", "mutmut"]
    children = os.environ.get("JOBS", "1")
    run = [*mutmut, "run", "--max-children", children, *only]
    # Where keep_fixtures is, and folders that no other run of pytest clears away.
    own = {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DEBUG_TEMPROOT": str(folder)}
    with (folder / "log").open("w") as log:
        ended = subprocess.run(
            run, cwd=folder, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT
        )
    if ended.returncode:
        sys.exit(f"{module}: mutmut stopped; {folder / 'log'} says why")
    told = subprocess.run(
        [*mutmut, "results", "--all", "true"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    results = [line.strip().split(": ") for line in told.stdout.splitlines() if ": " in line]
    tried = [(name, what) for name, what in results if what != "not checked"]
    caught = [name for name, what in tried if what in ("killed", "timeout", "segfault")]
    print(f"{module}: {len(results)} mutants, {len(tried)} tried, {len(caught)} noticed")
    for name, what in tried:
        if name not in caught:
            print(f"  {what}: {name}")


if __name__ == "__main__":
    module, *only = (each for each in sys.argv[1:] if each)
    if module != "all" and module not in TESTS:
        sys.exit(f"MODULE={module}: choose one of {', '.join(TESTS)}")
    moved = [each for each in TESTS if not (ROOT / "src" / "dimec" / f"{each}.py").is_file()]
    if moved:
        sys.exit(f"{', '.join(moved)}: no such module under src/dimec; correct TESTS in this file")
    for each in TESTS if module == "all" else [module]:
        try_mutants(each, only)
