"""What an evaluation is about: a run, the samples, the costs, and what the tiers hold.

It is read once and evaluated at one price or at many; nothing in it depends on the price or on the policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dimec.core.errors import OptionError
from dimec.core.extras import needs_training
from dimec.core.options import command_line
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import Depths, Method, Tier
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.model import CostModel
from dimec.evaluation import Evaluation, Lineup, NotRun
from dimec.evaluation import evaluate as evaluate_table
from dimec.evaluation.bottlenecks import Bottlenecks
from dimec.evaluation.options import EvaluateOptions, SetupOptions
from dimec.evaluation.tier_models import TierModel, read_tier_model
from dimec.policies import POLICIES, Calibration, MissingInput, fit_policies, named
from dimec.policies.guard_settings import GuardSettings, check_guarded
from dimec.runs.compressed import CompressOptions, compress_command
from dimec.runs.exit_table import ExitTable, TierTables
from dimec.runs.run import Run

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
        billing: The profile that says what they cost, and in which unit.
        models: What other models some tiers hold.
        bottlenecks: The run's learned bottlenecks.
        options: What else was chosen: spread, guard, shuffles and seed.
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
    options: SetupOptions

    @classmethod
    def of(
        cls,
        run: Run | str | Path,
        options: SetupOptions | None = None,
        *,
        progress: Progress = SILENT,
    ) -> EvaluationSetup:
        """Read a run, or the run of a folder, and the samples.

        Raises:
            RunError: If there is no finished run, or its model is too small for three tiers.
            OptionError: If a depth has no exit, a model does not fit, or the profile cannot be used.
            DataError: If ``data`` cannot be used.
        """
        options = options or SetupOptions()
        billing = Billing.of(options.profile, options.unit, costs=options.costs)
        run = Run.of(run)
        costs = fitting_costs(billing, options.costs, run.validation)
        depths = run.cut(mobile_layers=options.mobile_layers, edge_layers=options.edge_layers)
        task = run.config.task
        dataset = None
        if options.data is None:
            table = run.test
            source = f"test split ({run.config.options.split}) of {run.config.source}"
        else:
            with needs_training():
                from dimec.data import load_labelled
                from dimec.training import tabulate_dataset
            dataset = load_labelled(
                task.name,
                data=options.data,
                label_names=task.label_names,
                pairs=task.pairs,
                reader="the run was fitted on",
                columns=options,
                progress=progress,
            )
            table = tabulate_dataset(run, dataset, progress=progress)
            source = dataset.source
        models = {
            tier: read_tier_model(
                run, name, option=f"--{tier}-model", dataset=dataset, progress=progress
            )
            for tier, name in (
                (Tier.MOBILE, options.mobile_model),
                (Tier.EDGE, options.edge_model),
            )
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
            options,
        )

    def calibration(self, price: float) -> Calibration:
        """Return what policies are fitted from at a price."""
        return Calibration(
            self.run.validation,
            self.depths,
            costs=self.costs,
            price=price,
            spread=self.options.spread,
            seed=self.options.seed,
            guard=self.options.guard_settings or GuardSettings(),
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
        check_guarded(self.options.guard_settings, names)
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
                shuffles=self.options.shuffles,
                seed=self.options.seed,
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
            command = compress_command(self.run, options)
            then = command_line("evaluate", EvaluateOptions(), run)
        else:
            fitted = f"{run}-{lack.tier or f'{name}-{value}'}"
            command = command_line("fit", self.run.config.options, **{name: value, "out": fitted})
            held = {f"{lack.tier}_model": fitted} if lack.tier else {}
            then = command_line("evaluate", EvaluateOptions(), run if held else fitted, **held)
        return NotRun(policy=policy, needs=lack.needs, command=f"{command} && {then}")
