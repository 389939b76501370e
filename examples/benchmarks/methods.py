# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
The methods that the benchmark compares, each used as its own documentation says.

Everything that a method does not bring is the task's: model, data order, batch, weight decay, gradient clipping, and
the optimizer. Where a method's documentation leaves a setting open, the docstring here says what was chosen. GreedyLR
and the plateau rule read the loss of the very data that the metric is taken on, which is in their favour.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_exptest import ExpTestCallback, ExpTestConfig
from hf_exptest.search import search_steps

from .tasks import GRIDS

# Warm-up over 10 % of the steps that are left for training, then linear decay.
LINEAR = {"lr_scheduler_type": "linear", "warmup_steps": 0.1}
# Evaluations in a run, for the methods that read the validation loss.
EVALUATIONS = {"eval_strategy": "steps", "eval_steps": 0.05}
# The knobs of the paper, as far as its claim of robustness goes.
ALPHAS, BETAS = (0.1, 0.05, 0.01), (1 / 2, 0.33, 0.1, 0.05)
# ExpTest as a user runs it: its looks come on top of the budget, and the training has all of it.
ON_TOP = "exptest on top"


def _no_preparation(trainer: Trainer) -> tuple[int, dict[str, Any]]:
    return 0, {}


@dataclass(frozen=True)
class Setup:
    """
    What a method gives to the Trainer.

    Attributes:
        arguments (`dict`): for `TrainingArguments`.
        prepare (`Callable`):
            Called with the Trainer before it trains, to search, to add callbacks or to set the optimizer. Returns the
            optimizer steps that it spent, and the settings that neither the arguments nor the optimizer show.
        training_steps (`int`, *optional*): length of the training; by default what is left of the budget.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Trainer], tuple[int, dict[str, Any]]] = _no_preparation
    training_steps: int | None = None


def grid_rates(task: str) -> list[float]:
    """Seven rates by a factor of three (1, 3, 10, ...), with the middle of the task's own grid in their middle."""
    middle = GRIDS[task][(len(GRIDS[task]) - 1) // 2]
    place = round(2 * math.log10(middle))
    return [float(f"{10 ** (i / 2):.0g}") for i in range(place - 3, place + 4)]


def single_rate(rate: float) -> str:
    """The method that is one rate, with warm-up and linear decay."""
    return f"grid {rate:g}"


def third_of_budget(rate: float) -> str:
    """The same, trained for a third of the steps."""
    return f"third {rate:g}"


def knob_name(preset: str, alpha: float, beta: float) -> str:
    """The method that is a preset, `"exptest"` or `"exptest paper"`, with other knobs."""
    return f"{preset} alpha={alpha:g} beta={beta:g}"


def with_grid(methods: Sequence[str], task: str) -> list[str]:
    """
    `methods`, with one method a rate, `"grid 0.001"` for example, in the place of `"grid"`, and one a choice of alpha
    and beta in the place of `"exptest knobs"` and `"exptest paper knobs"`.
    """
    several = {"grid": [single_rate(rate) for rate in grid_rates(task)]}
    for preset in ("exptest", "exptest paper"):
        several[f"{preset} knobs"] = [knob_name(preset, alpha, beta) for alpha in ALPHAS for beta in BETAS]
    return [name for method in methods for name in several.get(method, [method])]


def make_setup(method: str, num_steps: int) -> Setup:
    """
    The set-up of `method`.

    Args:
        method (`str`): a key of `METHODS`, a `single_rate`, a `third_of_budget`, a `knob_name`, or `ON_TOP`.
        num_steps (`int`): optimizer steps that the method may spend, its search included.
    """
    if method.startswith(("grid ", "third ")):
        part, rate = method.split()
        training_steps = num_steps // 3 if part == "third" else None
        return Setup({"learning_rate": float(rate), **LINEAR}, training_steps=training_steps)
    if method == ON_TOP:
        return exptest(num_steps, is_on_top=True)
    name, *knobs = re.split(r" (?=alpha=|beta=)", method)
    return METHODS[name](num_steps, **{k: float(v) for k, v in (knob.split("=") for knob in knobs)})


def default(num_steps: int) -> Setup:
    """`TrainingArguments` as they come: 5e-5, linear decay, no warm-up."""
    return Setup()


def greedylr(num_steps: int) -> Setup:
    """
    The settings of the fine-tuning example in transformers' `examples/scheduler/README.md`, 20 evaluations a run too.

    The class's own `min_lr` of 1e-3 is above every rate of fine-tuning.
    """
    kwargs = {"patience": 2, "factor": 0.9, "min_lr": 1e-7}
    return Setup({"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": kwargs, "learning_rate": 5e-5, **EVALUATIONS})


def plateau(num_steps: int) -> Setup:
    """PyTorch's rule from the Trainer's default rate; its patience of 10 would be half of the 20 evaluations, so 2."""
    kwargs = {"patience": 2}
    return Setup({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": kwargs, **EVALUATIONS})


def ramp_finder(num_steps: int) -> Setup:
    """
    torch-lr-finder's range test with the settings of its README for Adam, 1e-7 to 100 in 100 steps, and the rate that
    its `plot` suggests; then the schedule of the grid.

    The package wants pairs of inputs and labels, and a model of one argument. For batches that are dicts it documents
    a subclass of `TrainDataLoaderIter`; a module around the model that returns the loss does the rest.
    """
    package = _peer("torch_lr_finder")
    ramp = {"end_lr": 100.0, "num_iter": 100}

    class Batches(package.TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch_data: Any) -> tuple[Any, None]:
            return batch_data, None

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        from matplotlib.figure import Figure

        optimizer = trainer.create_optimizer()
        finder = package.LRFinder(
            _Loss(trainer.model), optimizer, criterion=lambda loss, labels: loss, device=trainer.args.device
        )
        loader = DataLoader(
            trainer.train_dataset, trainer.args.train_batch_size, shuffle=True, collate_fn=trainer.data_collator
        )
        # So that data order and dropout are those of a run without a search.
        with torch.random.fork_rng():
            finder.range_test(Batches(loader), **ramp)
        _, rate = finder.plot(ax=Figure().subplots())
        num_spent = len(finder.history["lr"])
        finder.reset()
        for group in optimizer.param_groups:
            group["lr"] = rate
        return num_spent, {"start_lr": 1e-7, **ramp, "suggestion": rate}

    return Setup({"learning_rate": 1e-7, **LINEAR}, prepare)


class _Loss(nn.Module):
    """A model as a function of one batch, whose output is the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch)["loss"]


def prodigy(num_steps: int) -> Setup:
    """Prodigy with `lr=1` and cosine annealing without warm-up."""
    return _own_optimizer(_peer("prodigyopt").Prodigy, {"lr": 1.0}, "cosine")


def dadapt(num_steps: int) -> Setup:
    """DAdaptAdam with `lr=1` and AdamW's weight decay; it says to use the usual schedule: here cosine, as Prodigy."""
    return _own_optimizer(_peer("dadaptation").DAdaptAdam, {"lr": 1.0, "decouple": True}, "cosine")


def _own_optimizer(optimizer: type[torch.optim.Optimizer], settings: dict[str, Any], schedule: str) -> Setup:
    """An optimizer of the method's own, on the parameter groups that the Trainer makes for weight decay."""

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        trainer.optimizer_cls_and_kwargs = optimizer, settings
        return 0, {}

    return Setup({"learning_rate": settings["lr"], "lr_scheduler_type": schedule}, prepare)


def mechanic(num_steps: int) -> Setup:
    """
    Mechanic (arXiv 2306.00144) around the task's own optimizer, with its default settings and `lr=1`.

    It scales a schedule, whatever it is: here that of the grid.
    """
    mechanize = _peer("mechanic_pytorch").mechanize

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        usual = Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
        optimizer, settings = trainer.optimizer_cls_and_kwargs or usual
        trainer.optimizer_cls_and_kwargs = mechanize(optimizer), settings
        return 0, {}

    return Setup({"learning_rate": 1.0, **LINEAR}, prepare)


def adamg(num_steps: int) -> Setup:
    """AdamG (arXiv 2405.04376) with its default `lr=1` and no weight decay; of a schedule its package says nothing:
    here cosine, as Prodigy."""
    return _own_optimizer(_peer("pytorch_optimizer").AdamG, {"lr": 1.0, "weight_decay": 0.0}, "cosine")


def prodigy_schedule_free(num_steps: int) -> Setup:
    """
    ProdigyPlusScheduleFree with its default settings, a constant schedule and no clipping, as it says.

    It scales its own updates. The Trainer switches between training and evaluation only what it makes itself.
    """
    setup = _own_optimizer(
        _peer("prodigyplus.prodigy_plus_schedulefree").ProdigyPlusScheduleFree, {"lr": 1.0}, "constant"
    )

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        trainer.add_callback(_TrainAndEval())
        if _has_batch_norm(trainer.model):
            trainer.add_callback(_BatchNormRefresh())
        trainer.args.max_grad_norm = 0.0
        return setup.prepare(trainer)

    return Setup(setup.arguments, prepare)


class _TrainAndEval(TrainerCallback):
    """Averaged weights for evaluation, the others for training."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].train()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].eval()


def dog(num_steps: int, optimizer: str = "DoG") -> Setup:
    """
    DoG on all parameters as one vector, or LDoG, without weight decay; the average of the weights is evaluated.

    `reps_rel` is 1e-6, and 1e-4 for a model with batch normalization, as the package says.
    """
    package = _peer("dog")

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        reps_rel = 1e-4 if _has_batch_norm(trainer.model) else 1e-6
        trainer.optimizer = getattr(package, optimizer)(parameters, reps_rel=reps_rel)
        averager = package.PolynomialDecayAverager(trainer.model)
        trainer.add_callback(_Averaging(averager))
        return 0, {"averager": "PolynomialDecayAverager", "gamma": averager.gamma}

    return Setup({"learning_rate": 1.0, "lr_scheduler_type": "constant"}, prepare)


class _Averaging(TrainerCallback):
    """Average the weights after each step, and put the average in the model at the end."""

    def __init__(self, averager: Any) -> None:
        self.averager = averager

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.averager.step()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.averager.base_model.load_state_dict(self.averager.averaged_model.state_dict())


def schedule_free(num_steps: int) -> Setup:
    """
    AdamWScheduleFree with its default rate of 0.0025, and warm-up over 10 % of the steps as it recommends.

    The Trainer switches the optimizer between training and evaluation; batch normalization needs one thing more.
    """
    _peer("schedulefree")
    arguments = {
        "optim": "schedule_free_adamw",
        "lr_scheduler_type": "constant",
        "learning_rate": 0.0025,
        # The optimizer's own, which takes no share.
        "warmup_steps": num_steps // 10,
    }

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        # A task's own optimizer would come before `optim`.
        trainer.optimizer_cls_and_kwargs = None
        if _has_batch_norm(trainer.model):
            trainer.add_callback(_BatchNormRefresh())
        return 0, {}

    return Setup(arguments, prepare)


class _BatchNormRefresh(TrainerCallback):
    """Running statistics of the averaged weights, from 50 batches, as the package's README says."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].train()
        kwargs["optimizer"].eval()
        with torch.no_grad():
            for batch in itertools.islice(kwargs["train_dataloader"], 50):
                kwargs["model"](**batch)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def exptest(num_steps: int, is_on_top: bool = False, **knobs: float) -> Setup:
    """
    ExpTest's default preset.

    Its looks are made in the training. Unless they come on top, the training is the longest that leaves the steps that
    they may take; those that they then do without are nobody's.
    """
    config = ExpTestConfig(**knobs)
    training_steps = num_steps
    while not is_on_top and training_steps > 1 and training_steps + search_steps(config, training_steps) > num_steps:
        training_steps -= 1

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        _add(ExpTestCallback(config), trainer)
        return 0, config.to_dict()

    return Setup(prepare=prepare, training_steps=training_steps)


def exptest_paper(num_steps: int, **knobs: float) -> Setup:
    """ExpTest's paper preset, from the bound along the first update, which takes one optimizer step."""

    def prepare(trainer: Trainer) -> tuple[int, dict[str, Any]]:
        callback = ExpTestCallback(ExpTestConfig.paper(**knobs))
        _add(callback, trainer)
        return 1, callback.config.to_dict()

    return Setup(prepare=prepare)


def _add(callback: ExpTestCallback, trainer: Trainer) -> None:
    trainer.add_callback(callback)
    callback.set_trainer(trainer)


def _peer(module: str) -> ModuleType:
    """A package of the extra `peers`, which only its own method needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This method needs the package {module}: pip install -e '.[peers]'") from error


METHODS: dict[str, Callable[..., Setup]] = {
    "default 5e-5": default,
    "ramp finder": ramp_finder,
    "greedylr": greedylr,
    "plateau": plateau,
    "prodigy": prodigy,
    "dadapt": dadapt,
    "mechanic": mechanic,
    "dog": dog,
    "ldog": functools.partial(dog, optimizer="LDoG"),
    "schedule-free": schedule_free,
    "adamg": adamg,
    "prodigy schedule-free": prodigy_schedule_free,
    "exptest": exptest,
    "exptest paper": exptest_paper,
}
# Those that find their rate themselves; the others use one that somebody chose.
LEARNING_RATE_FREE = ["ramp finder", "prodigy", "dadapt", "mechanic", "dog", "ldog", "adamg", "prodigy schedule-free"]
LEARNING_RATE_FREE += ["exptest", "exptest paper"]
# The distribution whose version belongs to a method's results.
PACKAGES = {
    "ramp finder": "torch-lr-finder",
    "prodigy": "prodigyopt",
    "dadapt": "dadaptation",
    "mechanic": "mechanic-pytorch",
    "dog": "dog-optimizer",
    "ldog": "dog-optimizer",
    "schedule-free": "schedulefree",
    "adamg": "pytorch-optimizer",
    "prodigy schedule-free": "prodigy-plus-schedule-free",
}
