"""What a ``fit`` command line would run, without running it: its run's id and folder."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from wsbench.cli.parser import find_dataset, fit_parser, plain, prepared, recipe_defaults
from wsbench.configuration.choice import RecipeChoice, choose
from wsbench.datamodules import BenchmarkData
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.sampling import accumulation
from wsbench.grid.cells import Resolved
from wsbench.norms import NormSpec
from wsbench.options import UsageError
from wsbench.records import DataIdentity
from wsbench.run import identity
from wsbench.tasks.base import PRETRAINED
from wsbench.tasks.initialize import parse_source


class Resolver:
    """Resolves command lines of ``fit``; keeps parsers and the identities of datasets, so that a grid takes seconds.

    Raises:
        ChoiceError: no such task or recipe, or a field or value that does not exist.
        BatchError: the batch numbers contradict each other.
    """

    def __init__(self) -> None:
        self._parsers: dict[tuple[str, ...], LightningArgumentParser] = {}
        self._defaults: dict[tuple[str, ...], dict[str, Any]] = {}
        self._data: dict[str, DataIdentity | str] = {}

    def _parsed(self, argv: Sequence[str]) -> tuple[RecipeChoice, Namespace]:
        choice = choose(argv, find_dataset)
        if choice.configs not in self._parsers:
            self._parsers[choice.configs] = fit_parser(choice, choice.configs)
            self._defaults[choice.configs] = recipe_defaults(choice)
        try:
            settings: Namespace = self._parsers[choice.configs].parse_args(list(argv))
        except argparse.ArgumentError as error:
            raise UsageError(" ".join(str(error).split())) from error
        settings.task, settings.recipe = choice.task, choice.recipe
        return choice, settings

    def read(self, argv: Sequence[str]) -> tuple[Namespace, BenchmarkData]:
        """The settings of ``fit`` with these arguments, and the data as it would read it.

        Raises:
            DatasetError: the data cannot be read.
        """
        choice, settings = self._parsed(argv)
        return settings, prepared(choice.task, settings.data, "fit")

    def __call__(self, argv: Sequence[str]) -> Resolved:
        """What ``fit`` with these arguments would run."""
        choice, settings = self._parsed(argv)
        data, trainer = settings.data, settings.trainer
        devices = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
        accumulation(data.effective_batch, data.micro_batch, devices * trainer.num_nodes)
        missing = None
        if settings.model.init_from not in (None, "torchvision", PRETRAINED):
            _, weights = parse_source(settings.model.init_from)
            if not weights.is_file():
                missing = f"the weights '{weights}' of model.init_from are not there"
        read = self._identity(choice.task, data)
        name = None
        if not isinstance(read, str):
            digest = identity.recipe_digest(choice.recipe_content())
            sources = NormSpec.parse(settings.norm).sources
            changed = identity.overrides(plain(settings), self._defaults[choice.configs], sources)
            name = identity.run_id(choice.task, choice.recipe, digest, changed, settings.norm,
                                   settings.seed_everything, read, sources)  # fmt: skip
        return Resolved(
            task=choice.task,
            recipe=choice.recipe,
            runs=Path(settings.runs),
            id=name,
            problem=read if isinstance(read, str) else missing,
            steps=trainer.max_steps if trainer.max_steps > 0 else None,
        )

    def _identity(self, task: str, options: Namespace) -> DataIdentity | str:
        """Of the dataset; the reason where it cannot be read."""
        fields = {k: v for k, v in options.as_dict().items() if k != "seed"}  # draws samples, does not choose them
        key = json.dumps([task, fields], sort_keys=True, default=str)
        if key not in self._data:
            try:
                self._data[key] = prepared(task, options, "fit").identity()
            except DatasetError as error:
                self._data[key] = str(error)
        return self._data[key]
