"""What an evaluation is about: a run, the samples, the costs, and what the tiers hold.

It is read once and evaluated at one price or at many; nothing in it depends on the price or on the policies.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dimec.core.errors import OptionError
from dimec.core.extras import needs_training
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import Depths, Method, Tier
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.model import CostModel
from dimec.costs.pricing import Unit
from dimec.costs.profiles import CostProfile
from dimec.evaluation import Evaluation, Lineup, NotRun
from dimec.evaluation import evaluate as evaluate_table
from dimec.evaluation.bottlenecks import Bottlenecks
from dimec.evaluation.rows import SHUFFLES
from dimec.evaluation.tier_models import TierModel, read_tier_model
from dimec.policies import POLICIES, Calibration, MissingInput, fit_policies, named
from dimec.policies.cartography import Spread
from dimec.policies.guard_settings import GuardSettings, check_guarded
from dimec.runs.compressed import CompressOptions, compress_command
from dimec.runs.exit_table import ExitTable, TierTables
from dimec.runs.run import FitOptions, Run

PRICES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
"""What a sweep tries by default: from free to a full model worth all of a confidence."""

USUAL_WIDTH = 16
"""The width of a bottleneck in the command that is suggested where there is none."""


@dataclass(frozen=True, eq=False)
class EvaluationSetup:
    """Everything that an evaluation reads.

    Attributes:
        run: The run.
        table: The samples' exit table.
        source: Where the samples come from, in words.
        label_mapping: Which class each label of theirs was taken for that is no class's name.
        depths: Each method's depths.
        costs: The cost model that policies are fitted by.
        billing: The profile that says what they cost, and in which unit that is told.
        models: What other models some tiers hold.
        bottlenecks: The run's learned bottlenecks.
        spread: What beta is held against in data cartography.
        guard: How closely dimec-guarded watches itself; None where nothing was asked for.
        shuffles: Over how many orders of the samples a policy that learns arms is averaged.
        seed: For the random policy, bootstrap and shuffles.
    """

    run: Run
    table: ExitTable
    source: str
    label_mapping: Mapping[str, str]
    depths: Mapping[Method, Depths]
    costs: CostModel
    billing: Billing | None
    models: Mapping[Tier, TierModel]
    bottlenecks: Bottlenecks
    spread: Spread
    guard: GuardSettings | None
    shuffles: int
    seed: int

    @classmethod
    def of(
        cls,
        run: Run | str | Path,
        *,
        data: str | Path | None = None,
        costs: CostModel | None = None,
        profile: CostProfile | str | Path | None = None,
        unit: Unit = "lambda",
        spread: Spread = "deviation",
        mobile_layers: int | None = None,
        edge_layers: int | None = None,
        mobile_model: str | Path | None = None,
        edge_model: str | Path | None = None,
        text_column: str | None = None,
        pair_column: str | None = None,
        label_column: str | None = None,
        skip_empty: bool = False,
        skip_unlabelled: bool = False,
        guard: GuardSettings | None = None,
        shuffles: int = SHUFFLES,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> EvaluationSetup:
        """Read a run and the samples.

        Args:
            run: A finished run or its folder.
            data: A labelled file or folder; without it, the held-out test split.
            costs: The cost model; the papers' by default.
            profile: Hardware and links, by name or as a file, that say what everything costs in time, bytes, energy
                and money.
            unit: What costs are told in; other than in lambda, policies are fitted by the profile's prices in it.
            spread: What beta is held against in data cartography: the standard deviation, or the variance.
            mobile_layers: The mobile tier's last layer, instead of the run's.
            edge_layers: The edge tier's last layer, instead of the run's.
            mobile_model: A run, a folder or a hub name: the model on the device in place of a prefix of the encoder.
            edge_model: The same for the edge.
            text_column: Column of ``data`` with the (first) text.
            pair_column: Column of ``data`` with the second text.
            label_column: Column of ``data`` with the label.
            skip_empty: Leave out rows of ``data`` without text instead of stopping at them.
            skip_unlabelled: The same for rows without label.
            guard: How closely dimec-guarded watches itself.
            shuffles: Over how many orders of the samples a policy that learns arms is averaged.
            seed: For the random policy, bootstrap and shuffles.
            progress: Is told what happens.

        Raises:
            RunError: If there is no finished run, or its model is too small for three tiers.
            OptionError: If a depth has no exit, a model does not fit, or the profile cannot be used.
            DataError: If ``data`` cannot be used.
        """
        billing = Billing.of(profile, unit, costs=costs)
        run = run if isinstance(run, Run) else Run.open(run)
        costs = fitting_costs(billing, costs, run.validation)
        depths = run.cut(mobile_layers=mobile_layers, edge_layers=edge_layers)
        task = run.config.task
        dataset = None
        if data is None:
            table = run.test
            source = f"test split ({run.config.options.split}) of {run.config.source}"
        else:
            with needs_training():
                from dimec.data import load_labelled
                from dimec.training import tabulate_dataset
            dataset = load_labelled(
                task.name,
                data=data,
                label_names=task.label_names,
                pairs=task.pairs,
                reader="the run was fitted on",
                text_column=text_column,
                pair_column=pair_column,
                label_column=label_column,
                skip_empty=skip_empty,
                skip_unlabelled=skip_unlabelled,
                progress=progress,
            )
            table = tabulate_dataset(run, dataset, progress=progress)
            source = dataset.source
        models = {
            tier: read_tier_model(
                run, name, option=f"--{tier}-model", dataset=dataset, progress=progress
            )
            for tier, name in ((Tier.MOBILE, mobile_model), (Tier.EDGE, edge_model))
            if name is not None
        }
        return cls(
            run,
            table,
            source,
            {} if dataset is None else dataset.label_mapping,
            depths,
            costs,
            billing,
            models,
            Bottlenecks(run, dataset=dataset),
            spread,
            guard,
            shuffles,
            seed,
        )

    def calibration(self, price: float) -> Calibration:
        """Return what policies are fitted from at a price."""
        return Calibration(
            self.run.validation,
            self.depths,
            costs=self.costs,
            price=price,
            spread=self.spread,
            seed=self.seed,
            guard=self.guard or GuardSettings(),
        )

    def evaluate(
        self,
        policies: Sequence[str] = (),
        *,
        price: float,
        progress: Progress = SILENT,
        what: str = "Replaying",
    ) -> Evaluation:
        """Fit policies at a price and replay them.

        Raises:
            OptionError: If a policy is unknown, none of them can be run, or none has the guard that is set.
        """
        names = list(named([name for name in policies if name != "all"]))
        check_guarded(self.guard, names)
        calibration = self.calibration(price)
        fitted = fit_policies(calibration, names)
        behind = self._behind_bottlenecks(calibration, names, progress=progress)
        learned = {kind for each in behind.values() for kind in each.policies}
        not_run = [
            self._not_run(name, lack)
            for name in names
            if name not in learned
            and (lack := POLICIES[name].missing_input(calibration)) is not None
        ]
        not_run += self._unfinished(names)
        if not fitted and not behind:
            first = not_run[0]
            raise OptionError(
                f"{first.policy} needs {first.needs}: to run it, first {first.command}"
            )
        mixing = [name for name in names if POLICIES[name].any_model]
        lineup = None
        if self.models:
            other = self._calibration_of_models(calibration)
            tables = TierTables(
                self.table, {tier: each.table for tier, each in self.models.items()}
            )
            lineup = Lineup(tables, fit_policies(other, mixing), other.costs)
            lacking = ((name, POLICIES[name].missing_input(other)) for name in mixing)
        else:
            small = ("layers", self.depths["dc"].mobile)
            lacking = (
                (name, MissingInput("another model on a tier", small, Tier.MOBILE))
                for name in mixing
            )
        not_run += [self._not_run(f"{name}+models", lack) for name, lack in lacking if lack]
        total = len(fitted) + len(behind) + (len(lineup.policies) if lineup else 0)
        with progress.stage(what, total) as advance:
            return evaluate_table(
                self.table,
                fitted,
                task=self.run.config.task.name,
                source=self.source,
                metric=self.run.config.task.metric,
                costs=self.costs,
                price=price,
                billing=self.billing,
                models=lineup,
                bottlenecks=behind,
                label_mapping=self.label_mapping,
                model_names={str(tier): each.name for tier, each in self.models.items()},
                not_run=not_run,
                shuffles=self.shuffles,
                seed=self.seed,
                done=lambda: advance(1),
            )

    def _calibration_of_models(self, calibration: Calibration) -> Calibration:
        """Return the calibration of policies for tiers of which some hold another model, run to its end."""
        last = {str(tier): each.table.n_layers for tier, each in self.models.items()}
        work: dict[str, Any] = {
            f"{tier}_work": each.layer_work for tier, each in self.models.items()
        }
        return replace(
            calibration,
            depths={method: replace(own, **last) for method, own in self.depths.items()},
            costs=replace(self.costs, **work),
            models={tier: each.validation for tier, each in self.models.items()},
        )

    def _behind_bottlenecks(
        self, calibration: Calibration, names: Sequence[str], *, progress: Progress
    ) -> dict[str, Lineup]:
        """Return a line-up for each of the run's bottlenecks that a named policy is for, by what marks its rows."""
        lineups = {}
        for each in self.bottlenecks.finished(names):
            read = self.bottlenecks.read(each, progress=progress)
            fitted = fit_policies(replace(calibration, restored=read.validation), [each.kind])
            tables = TierTables(self.table, restored=read.evaluated)
            mark = each.config.name
            lineups[mark] = Lineup(tables, fitted, self.costs)
        return lineups

    def _unfinished(self, names: Sequence[str]) -> list[NotRun]:
        """Name the commands that go on with bottlenecks whose training was stopped."""
        return [
            NotRun(
                policy=each.config.name,
                needs="the rest of its training",
                command=compress_command(self.run, each.config.options),
            )
            for each in self.bottlenecks.unfinished(names)
        ]

    def _not_run(self, policy: str, lack: MissingInput) -> NotRun:
        """Name the command that would make a policy run: a fit of the same data with another option, then this."""
        run = str(self.run.folder)
        name, value = lack.option
        if lack.command == "compress":
            options = CompressOptions.model_validate(
                {name: value, "layer": self.depths["ee"].mobile, "width": USUAL_WIDTH}
            )
            command = compress_command(self.run, options.resolved())
            command += " && " + shlex.join(["dimec", "evaluate", run])
            return NotRun(policy=policy, needs=lack.needs, command=command)
        fitted = f"{run}-{lack.tier or f'{name}-{value}'}"
        command = fit_command(self.run.config.options, out=fitted, **{name: value})
        command += " && " + shlex.join(
            ["dimec", "evaluate", run, f"--{lack.tier}-model", fitted]
            if lack.tier
            else ["dimec", "evaluate", fitted]
        )
        return NotRun(policy=policy, needs=lack.needs, command=command)


def fit_command(options: FitOptions, *, out: str, **changes: str | int) -> str:
    """Return the command line of a fit with some options changed."""
    words = ["dimec", "fit", options.task]
    for name, value in {**options.model_dump(exclude_defaults=True), **changes}.items():
        flag = "--" + name.replace("_", "-")
        if name == "keep_texts":
            words.append("--no-texts")
        elif value is True:
            words.append(flag)
        elif value is not None and name != "task":
            words += [flag, str(value)]
    return shlex.join([*words, "--out", out])
