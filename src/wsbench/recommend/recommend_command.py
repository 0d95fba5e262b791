"""``python -m wsbench recommend``: the user's own answer, within a budget of time."""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wsbench.cli.resolver import Resolver
from wsbench.errors import UserError
from wsbench.extras import altair, jinja2, vl_convert
from wsbench.grid import drive
from wsbench.grid import plan as plans
from wsbench.grid.cells import status
from wsbench.grid.definition import load
from wsbench.grid.resources import memory
from wsbench.grid.sweep_command import launcher_of
from wsbench.grid.tuned import DIVERGED
from wsbench.leaderboard.logs import find_logs
from wsbench.leaderboard.page.render import render
from wsbench.leaderboard.wide import groups
from wsbench.options import UsageError
from wsbench.recommend import advice as advices
from wsbench.recommend import measure
from wsbench.recommend.budget import FEWEST_NORMS, Cost, Plan, Size, plan_for
from wsbench.recommend.inputs import (
    budget_of,
    candidates,
    folder_of,
    jobs_of,
    norms_of,
    require_unplanned,
    size_of,
    unless_wrong,
)
from wsbench.recommend.networks import full_name, what_its_weights_mean
from wsbench.records import write_text_atomically
from wsbench.registry import TASKS
from wsbench.run.lock import claimed
from wsbench.run.report import banner, console, duration

#: in the folder of an answer
PLAN, PAGE, ANSWER, RUNS, LOCK = "plan.json", "answer.html", "answer.json", "runs", "recommend.lock"
RECIPE = "small"
_MIB = 2**20


class _Written(BaseModel):
    """What was decided, so that the same command continues with it."""

    model_config = ConfigDict(extra="forbid")

    question: str
    micro_batch: int
    costs: list[dict[str, Cost]]
    size: Size
    jobs: int
    plan: Plan


class _Answering:
    """A question on its way to an answer.

    Args:
        args: the command line.
        further: options of ``fit`` for every run.
        resolver: says which run a command line is.
    """

    def __init__(self, args: argparse.Namespace, further: Sequence[str], resolver: Resolver) -> None:
        self.args, self.further, self.resolver = args, list(further), resolver
        require_unplanned(further)
        self.task: str = args.task
        self.norms = norms_of(args.norms, self.task)
        self.budget = budget_of(args.budget)
        root = args.root.expanduser()
        self.name = root.resolve().name
        self.out: Path = args.out or Path("recommend") / f"{self.task}-{self.name}"
        if self.out.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"--out '{self.out}' lies in the data's folder '{root}' and would be taken for data; name "
                             "another folder by --out")  # fmt: skip
        self.launcher = launcher_of(args)
        asked = [name for name in (args.networks or "").split(",") if name]
        with unless_wrong(self.out):
            self._read(root, asked)

    def _read(self, root: Path, asked: Sequence[str]) -> None:
        """The data and the settings of its runs."""
        args = self.args
        self.root, self.said = folder_of(self.task, root, self.out)
        self.settings, self.data = self.resolver.read(self._line())
        networks = [full_name(self.task, name, args.pretrained) for name in asked] or [self.settings.model.network]
        self.networks = list(dict.fromkeys(networks))
        if args.pretrained and not asked:
            raise UsageError("--pretrained needs --networks: the recipe's own network has no weights")
        self.size = size_of(self.data, self.settings)
        candidates(self.size.effective_batch, args.micro_batch)

    def _line(self) -> list[str]:
        return ["--task", self.task, "--recipe", RECIPE, "--data.root", str(self.root), *self.further]

    @property
    def options(self) -> dict[str, Any]:
        """Options that all runs of the plan share."""
        weights: dict[str, Any] = {}
        if self.args.pretrained:
            weights = {"model.init_from": "pretrained", "model.init_from_any_norm": True}
        return {"task": self.task, "data.root": str(self.root), **weights}

    @property
    def question(self) -> str:
        """SHA-256 of what decides the plan."""
        parts = [
            self.task, self.data.identity().model_dump(), self.norms, self.networks, self.budget, self.further,
            self.args.micro_batch, self.args.pretrained, jobs_of(self.launcher), self.size.model_dump(),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _sweep(self, name: str, text: str) -> plans.SweepRequest:
        path = self.out / f"{name}.yaml"
        write_text_atomically(path, text)
        return plans.SweepRequest(str(path), RECIPE, runs=self.out / RUNS, further=self.further)

    # -- the plan -------------------------------------------------------------------------------------------------

    def _measured(self, micro_batch: int) -> list[dict[str, Cost]] | None:
        """What runs cost; None where they do not fit into memory.

        Raises:
            UserError: a run failed for another reason, or jobs were submitted and are not done.
        """
        text = measure.definition(self.options, self.norms, self.networks, micro_batch)
        choice = self._sweep("measure", text)
        plan = plans.make(choice, self.resolver, [*DIVERGED, *self.launcher.options()])
        try:
            drive.run(plan, self.launcher)
        except drive.UnfinishedError:
            if any(measure.ran_out_of_memory(cell) for cell in plan.cells):
                return None
            ended = [one for one in map(status, plan.cells) if one.state in ("stopped", "failed") and one.note]
            if not ended:
                raise
            raise UserError(f"a run that was to be measured {ended[0].state}: {ended[0].note}") from None
        records = [(cell, cell.record()) for cell in plan.cells]
        if any(record is None for _, record in records):
            raise _SubmittedError("submitted; the same command resumes when these have ended")
        by_network: dict[str, dict[str, Cost]] = {name: {} for name in self.networks}
        for cell, record in records:
            assert record is not None
            by_network[cell.options["model.network"]][cell.options["norm"]] = measure.cost_of(cell, record)
        costs = list(by_network.values())
        peak = max(cost.memory for of in costs for cost in of.values()) * jobs_of(self.launcher) * _MIB
        on_cpu = all("CPU" in record.provenance.hardware for _, record in records if record is not None)
        return None if on_cpu and self.launcher.name == "local" and peak > memory() else costs

    def decide(self) -> _Written:
        """The plan as it was decided, or what is measured now says."""
        path = self.out / PLAN
        if path.is_file():
            try:
                written = _Written.model_validate_json(path.read_bytes())
            except ValidationError:  # of another version, or torn by hand: it can be made again
                written = None
            if written is not None and written.question == self.question:
                console().print(f"continues with the plan in '{path}'", markup=False)
                return written
        began = time.monotonic()
        costs, micro_batch = None, 0
        for micro_batch in candidates(self.size.effective_batch, self.args.micro_batch):
            costs = self._measured(micro_batch)
            if costs is not None:
                break
            console().print(f"{micro_batch} at a time do not fit into memory", markup=False)
        if costs is None:
            raise UserError(f"not even {micro_batch} sample(s) at a time fit into memory; take a smaller network, or "
                            f"smaller samples (-- {TASKS[self.task].sample_size} ...)")  # fmt: skip
        left = self.budget - (time.monotonic() - began)
        fewest = FEWEST_NORMS if self.args.norms is None else None
        jobs = jobs_of(self.launcher)
        plan = plan_for(left, costs, self.size, jobs, self.norms, fewest, TASKS[self.task].sample_size)
        written = _Written(question=self.question, micro_batch=micro_batch, costs=costs, size=self.size, jobs=jobs,
                           plan=plan)  # fmt: skip
        write_text_atomically(path, written.model_dump_json(indent=1) + "\n")
        return written

    def show_plan(self, written: _Written) -> None:
        """Print what will be run, and what it takes."""
        plan, size = written.plan, written.size
        first, second = (n * len(self.networks) for n in plan.runs)
        longest = max(size.seconds(of[norm], plan.epochs, False) for of in written.costs for norm in plan.norms)
        accumulate = size.effective_batch // written.micro_batch
        facts = {
            "data": f"{self.name}: {size.train} train, {size.val} val, {len(self.data.classes)} classes "
                    f"({', '.join(self.data.classes[:6])}{' ...' if len(self.data.classes) > 6 else ''})",
            "networks": ", ".join(self.networks),
            "norms": ", ".join(plan.norms),
            "batch": f"{written.micro_batch} per device x {accumulate} micro-steps = {size.effective_batch}",
            "length": f"{size.length(plan.epochs)} ({plan.epochs} of the recipe's {size.epochs} epochs); "
                      f"a run takes up to {duration(longest)}",
            "rates": f"{', '.join(f'{r:g}' for r in plan.rates)}, and {plan.most_rates - len(plan.rates)} more where "
                     "the best lies at an end",
            "stage 1": f"{first} runs to choose rates on held-out training data, {plan.tuning_seeds} seed(s) each",
            "stage 2": f"{second} runs with {plan.seeds} fresh seeds each, scored on val",
            "at a time": f"{written.jobs} runs",
            "time": f"about {duration(plan.seconds)} at most, of a budget of {duration(self.budget)}",
        }  # fmt: skip
        banner(facts, [f"left out, for want of time: {norm}" for norm in self.norms if norm not in plan.norms])

    def tuned(self, written: _Written) -> str:
        """The sweep that answers, as its YAML's content."""
        plan = written.plan
        options = {**self.options, "data.micro_batch": written.micro_batch, "trainer.max_epochs": plan.epochs}
        milestones = self.settings.model.get("milestones")
        if milestones and plan.epochs != self.size.epochs and all(m >= 1 for m in milestones):
            options["model.milestones"] = _scaled(milestones, plan.epochs / self.size.epochs)
        grid = {
            "options": options, "axes": {"norm": [*plan.norms], "model.network": [*self.networks]},
            "rates": [*plan.rates], "most_rates": plan.most_rates, "share": self.size.share,
            "tuning_seeds": list(range(1000, 1000 + plan.tuning_seeds)), "seeds": list(range(100, 100 + plan.seeds)),
        }  # fmt: skip
        content = {"about": f"which norm on {self.name}", "tuned": {RECIPE: grid}}
        return str(yaml.safe_dump(content, sort_keys=False))

    # -- the answer -----------------------------------------------------------------------------------------------

    def run(self, dry_run: bool) -> None:
        """Decide, say, run, answer."""
        for text in self.said:
            console().print(text, markup=False)
        for network in self.networks:
            for line in what_its_weights_mean(network, self.norms, self.args.pretrained):
                console().print(line, markup=False)
        with claimed(self.out / LOCK) as free:
            if not free:
                raise UserError(f"another process works in '{self.out}'; wait for it, or name another folder by --out")
            written = self.decide()
            self.show_plan(written)
            choice = self._sweep("tuned", self.tuned(written))
            if dry_run:
                return
            ended = drive.tune(choice, load(choice.name), self.resolver, self.launcher, dry_run=False)
            if ended is not None:
                self._answer(written, ended)

    def _answer(self, written: _Written, ended: Any) -> None:
        protocol, stage = ended
        records = [record for cell in protocol.cells(stage) if (record := cell.record()) is not None]
        grouped = groups(records)
        final = [group for group in grouped if not group.is_trial]
        plan = written.plan
        trials = max((len(r.tuning.trials) for r in records if r.tuning is not None), default=0)
        facts = (
            f"It rests on {trials} learning rates and {plan.seeds} fresh seeds per norm, "
            f"{written.size.length(plan.epochs)}, {written.micro_batch} at a time; it holds for this data, this "
            "network and runs of this length.",
            f"Intervals and p are over seeds; that val has {written.size.val} samples and rates were chosen on "
            f"{round(written.size.share * written.size.train)} is not in them.",
            f"The schedule, and what heads and biases have of their own, are those of the recipe: conf/{self.task}/"
            f"{RECIPE}.yaml, {plan.epochs} epochs.",
        )
        advice = advices.advise(final, self.name, self._optimizer(), self._shape(), facts)
        page = self.out / PAGE
        write_text_atomically(page, render(grouped, find_logs([self.out / RUNS]), advice))
        answer = {"title": advice.title, "sentences": [*advice.sentences], "code": advice.code,
                  "records": [record.id for record in records]}  # fmt: skip
        write_text_atomically(self.out / ANSWER, json.dumps(answer, indent=1) + "\n")
        advices.show(advice, final, [page, self.out / ANSWER])

    def _optimizer(self) -> advices.Optimizer:
        model: Mapping[str, Any] = self.settings.model.as_dict()
        named = [name for name in ("momentum", "weight_decay") if model.get(name)]
        kind = str(model.get("optimizer") or ("SGD" if "momentum" in model else "Adam")).upper()
        kind = "Adam" if kind == "ADAM" else kind
        named = [name for name in named if not (kind == "Adam" and name == "momentum")]
        return advices.Optimizer(kind, "".join(f", {name}={model[name]:g}" for name in named))

    def _shape(self) -> tuple[int, ...]:
        data = self.settings.data
        if "points" in data:
            return (1, data.points, 3)
        side = data.get("crop") or self.settings.model.get("min_size") or 224
        return (1, *([data.segments] if "segments" in data else []), 3, side, side)


def _scaled(milestones: Sequence[float], factor: float) -> list[int]:
    """Milestones of a shorter run: at the same shares of it."""
    return sorted({max(1, round(m * factor)) for m in milestones})


class _SubmittedError(UserError):
    """Nothing is wrong: jobs wait in a queue."""

    label = ""
    exit_status = 0


def main(args: argparse.Namespace, further: Sequence[str]) -> int:
    """Answer; returns 0.

    Args:
        args: the command line.
        further: what stands behind ``--``.
    """
    for part in (altair, jinja2, vl_convert):  # said before hours are spent, not after
        part()
    _Answering(args, further, Resolver()).run(args.dry_run)
    return 0
