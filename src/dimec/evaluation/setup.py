"""What an evaluation is about: a run, the samples, the costs, and what the tiers hold.

It is read once and evaluated at one price or at many; nothing in it depends on the price or on the policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.extras import needs_training
from dimec.core.guard_settings import GuardSettings, check_guarded
from dimec.core.options import command_line
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import Depths, Method, Tier
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.evaluation.classes import class_details
from dimec.evaluation.cuts import Cut
from dimec.evaluation.dial import RECOMMENDED, Choice, choose
from dimec.evaluation.options import EvaluateOptions, SetupOptions
from dimec.evaluation.recommendation import recommend
from dimec.evaluation.results import ClassDetails, Evaluation, NotRun, Recommendation
from dimec.evaluation.rows import Lineup
from dimec.evaluation.rows import evaluate as evaluate_table
from dimec.evaluation.tier_models import TierModel, with_models
from dimec.policies import POLICIES, Calibration, MissingInput, fit_policies, named
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runs.compressed import Compressed, CompressOptions, compress_command, compressed_in
from dimec.runs.exit_table import ExitTable, Restored, TierTables
from dimec.runs.run import Run

if TYPE_CHECKING:
    from dimec.data import TextDataset

USUAL_WIDTH = 16
"""The width of a bottleneck in the command that is suggested where there is none."""


@dataclass(frozen=True, eq=False)
class EvaluationSetup:
    """Everything that an evaluation reads.

    Attributes:
        dataset: The samples themselves; None where they are the run's test split.
        costs: The cost model that policies are fitted by.
        billing: The profile that says what they cost, and in which unit.
        options: What else was chosen: spread, guard, shuffles and seed.
    """

    run: Run
    table: ExitTable
    source: str
    dataset: TextDataset | None
    depths: Mapping[Method, Depths]
    costs: CostModel
    billing: Billing | None
    models: Mapping[Tier, TierModel]
    compressed: Sequence[Compressed]
    options: SetupOptions
    _restored: dict[str, tuple[Restored, Restored]] = field(default_factory=dict)

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
        task = run.config.task
        dataset = None
        if options.data is None:
            table = run.test
            source = f"test split ({run.config.split.words}) of {run.config.source}"
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
        models: Mapping[Tier, TierModel] = {}
        if options.has_models:
            # It loads an HTTP client, which an evaluation of the run alone does without.
            from dimec.evaluation.other_models import line_up

            found = line_up(run, options, billing, dataset=dataset, table=table, progress=progress)
            run, models, billing = found.run, found.models, found.billing
            table = run.test
        costs = fitting_costs(billing, options.costs, run.validation)
        depths = run.cut(mobile_layers=options.mobile_layers, edge_layers=options.edge_layers)
        behind = compressed_in(run)
        return cls(run, table, source, dataset, depths, costs, billing, models, behind, options)

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

    def choose(
        self,
        max_drop: float,
        *,
        cuts: str | None = None,
        like: str | Path | None = None,
        progress: Progress = SILENT,
    ) -> Choice:
        """Choose the cheapest way that validation expects to lose at most ``max_drop`` points against all-cloud.

        With ``like``, rows count by how much they look like the texts of that file.

        Raises:
            OptionError: If a cut is none, or cannot be had, or rows cannot be weighed.
            DataError: If the texts of ``like`` cannot be read.
        """
        compared: Sequence[Cut] = self.run.cuts(
            cuts, mobile_layers=self.options.mobile_layers, edge_layers=self.options.edge_layers
        )
        weights = None if like is None else self._weights(like, "validation", progress=progress)
        calibration, compared = with_models(
            replace(self.calibration(DEFAULT_PRICE), weights=weights), compared, self.models
        )
        return choose(
            calibration,
            compared,
            metric=self.run.config.task.metric,
            max_drop=max_drop,
            progress=progress,
        )

    def _weights(
        self, like: str | Path, split: Literal["validation", "test"], *, progress: Progress
    ) -> NDArray[np.float64] | None:
        with needs_training():
            from dimec.training.weighing import weigh_like
        return weigh_like(self.run, like, split=split, columns=self.options, progress=progress)

    def recommend(
        self,
        choice: Choice,
        max_drop: float,
        *,
        like: str | Path | None = None,
        progress: Progress = SILENT,
    ) -> Recommendation:
        """Say what a choice does on the samples, and on the test split weighed as validation was for the choice."""
        weights = None
        if like is not None and choice.weights is not None and self.dataset is None:
            weights = self._weights(like, "test", progress=progress)
        return recommend(
            choice,
            self._tables,
            weights=weights,
            metric=self.run.config.task.metric,
            max_drop=max_drop,
            costs=self._costs_of_models,
            billing=self.billing,
            cloud_model=self.run.cloud_model,
            seed=self.options.seed,
        )

    @cached_property
    def _tables(self) -> TierTables:
        """What every tier's exits say of the samples."""
        return TierTables(self.table, {tier: each.table for tier, each in self.models.items()})

    @property
    def _costs_of_models(self) -> CostModel:
        return with_models(self.calibration(DEFAULT_PRICE), (), self.models)[0].costs

    def classes(self, choice: Choice | None = None) -> ClassDetails:
        """Compare the full model with a choice on each class of the samples."""
        if choice is None:
            return class_details(self.table)
        played = replay(choice.policy, self._tables, costs=self._costs_of_models)
        return class_details(self.table, played.predictions, confidence=played.confidence)

    def evaluate(
        self,
        policies: Sequence[str] = (),
        *,
        price: float,
        choice: Choice | None = None,
        progress: Progress = SILENT,
        what: str = "Replaying",
    ) -> Evaluation:
        """Fit policies at a price and replay them, after what was chosen; without names and choice all policies.

        Raises:
            OptionError: If a policy is unknown, none of them can be run, or none has the guard that is set.
        """
        asked = [name for name in policies if name != "all"]
        names = list(named(asked or None))
        if choice is not None and not policies:
            names = [DimecCascade.name] if self.models else []
        check_guarded(self.options.guard_settings, names)
        calibration = self.calibration(price)
        fitted = fit_policies(calibration, names)
        wanted = [each for each in self.compressed if each.kind in names]
        finished = [each for each in wanted if each.finished]
        behind = [self._behind(each, calibration, progress=progress) for each in finished]
        learned = {each.kind for each in finished}
        not_run = [
            self._not_run(name, lack)
            for name in names
            if name not in learned
            and (lack := POLICIES[name].missing_input(calibration)) is not None
        ]
        not_run += [
            NotRun(
                policy=each.config.name,
                needs="the rest of its training",
                command=compress_command(self.run, each.config.options),
            )
            for each in wanted
            if not each.finished
        ]
        if names and not fitted and not behind:
            first = not_run[0]
            raise OptionError(
                f"{first.policy} needs {first.needs}: to run it, first {first.command}"
            )
        chosen = {} if choice is None else {RECOMMENDED: choice.policy}
        mixing = [name for name in names if POLICIES[name].any_model]
        lineups = behind
        lacking: Mapping[str, MissingInput | None]
        if self.models:
            other, _ = with_models(calibration, (), self.models)
            mixed = fit_policies(other, mixing) | chosen
            lineups = [Lineup(self._tables, mixed, other.costs, mark="+models"), *behind]
            lacking = {name: POLICIES[name].missing_input(other) for name in mixing}
        else:
            fitted |= chosen
            small = ("layers", self.depths["dc"].mobile)
            lack = MissingInput("another model on a tier", small, Tier.MOBILE)
            lacking = dict.fromkeys(mixing, lack)
        not_run += [self._not_run(f"{name}+models", lack) for name, lack in lacking.items() if lack]
        total = len(fitted) + sum(len(each.policies) for each in lineups)
        with progress.stage(what, total) as advance:
            found = evaluate_table(
                self.table,
                fitted,
                task=self.run.config.task.name,
                source=self.source,
                metric=self.run.config.task.metric,
                costs=self.costs,
                price=price,
                billing=self.billing,
                lineups=lineups,
                shuffles=self.options.shuffles,
                seed=self.options.seed,
                done=lambda: advance(1),
            )
        # Of what is recommended there is one row, whatever the tiers hold.
        marked = f"{RECOMMENDED}+models"
        rows = [
            row.model_copy(update={"policy": RECOMMENDED}) if row.policy == marked else row
            for row in found.rows
        ]
        about: dict[str, Any] = {
            "rows": rows,
            "label_mapping": {} if self.dataset is None else dict(self.dataset.label_mapping),
            "models": {str(tier): each.name for tier, each in self.models.items()},
            "not_run": not_run,
        }
        return found.model_copy(update=about)

    def _behind(
        self, compressed: Compressed, calibration: Calibration, *, progress: Progress
    ) -> Lineup:
        """Return the policy that a bottleneck is for; what the exits say behind it is read once.

        Raises:
            RunError: If it is damaged.
            MissingExtraError: If rows have to be tabulated and the training extra is not installed.
        """
        name = compressed.config.name
        if name not in self._restored:
            if self.dataset is None:
                evaluated = compressed.saved(self.run, "test")
            else:
                with needs_training():
                    from dimec.training.tabulate import tabulate_compressed
                table = tabulate_compressed(self.run, compressed, self.dataset, progress=progress)
                evaluated = compressed.restored(table)
            self._restored[name] = compressed.saved(self.run, "validation"), evaluated
        validation, evaluated = self._restored[name]
        policy = POLICIES[compressed.kind].fit(replace(calibration, restored=validation))
        return Lineup(TierTables(self.table, restored=evaluated), {name: policy}, self.costs)

    def _not_run(self, policy: str, lack: MissingInput) -> NotRun:
        """Name the command that would make a policy run: a fit of the same data with another option, then this."""
        run = str(self.run.folder)
        name, value = lack.option
        if lack.command == "compress":
            options = CompressOptions.model_validate(
                {name: value, "layer": self.depths["ee"].mobile, "width": USUAL_WIDTH}
            )
            command = compress_command(self.run, options)
            then = command_line("evaluate", EvaluateOptions(every_policy=True), run)
        else:
            fitted = f"{run}-{lack.tier or f'{name}-{value}'}"
            command = command_line("fit", self.run.config.options, **{name: value, "out": fitted})
            held = {f"{lack.tier}_model": fitted} if lack.tier else {}
            then = command_line(
                "evaluate", EvaluateOptions(every_policy=True), run if held else fitted, **held
            )
        return NotRun(policy=policy, needs=lack.needs, command=f"{command} && {then}")
