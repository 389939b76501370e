# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Everything comes back: a run with a look is, bit for bit, a plain one with the same rates at the same steps."""

import collections
import copy
import functools
import io
import itertools
import math
import queue
import random
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from toys import (
    GivenRates,
    ToyClassifier,
    assert_same,
    assert_same_weights,
    classification_data,
    decisions,
    language_data,
    language_model,
    logged,
    make_args,
    make_trainer,
    outcome,
    weights,
)
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from hf_exptest import ExpTestCallback, find_learning_rate
from hf_exptest.places import Places
from hf_exptest.snapshot import NotRestored, Snapshot, random_states, set_random_states
from hf_exptest.stage import open_stage

RATE_SHARE = {"max_steps": 30}


class Teacher(ToyClassifier):
    """Batch norm, dropout, and a frozen teacher that follows the student in the forward pass."""

    def __init__(self, how="in place"):
        super().__init__()
        self.teacher = nn.Linear(8, 3).requires_grad_(False)
        self.student = nn.Linear(8, 3)
        self.how = how

    def forward(self, x, labels=None):
        if self.training:
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                if self.how == "in place":
                    with torch.no_grad():
                        old.mul_(0.9).add_(new, alpha=0.1)
                elif self.how == "data":
                    old.data.mul_(0.9).add_(new.data, alpha=0.1)
                else:
                    old.data = 0.9 * old.data + 0.1 * new.data
        output = super().forward(x, labels)
        distance = nn.functional.mse_loss(self.student(x), self.teacher(x).detach() + 1.0)
        return {"loss": output["loss"] + distance, "logits": output["logits"]}


class Buffers(ToyClassifier):
    """A buffer that is rebound, one that is resized, one that is made in the first pass, and plain tensors."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("grid", torch.arange(8.0).view(1, 8).expand(2, -1))
        self.moment = torch.zeros(8)
        self.codes = np.zeros(3)

    def forward(self, x, labels=None):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            self.moment += x.square().mean(0)
            self.seen.resize_(len(self.seen) + 1).fill_(len(self.seen))
            self.codes += 1
            if not hasattr(self, "first"):
                self.register_buffer("first", x.mean(0))
        shift = 0.1 * self.mean + 0.01 * self.moment + 0.001 * len(self.seen) + 0.001 * self.codes[0]
        return super().forward(x + shift + 0.01 * getattr(self, "first", 0) + 0 * self.grid.sum(), labels)


class Counters(ToyClassifier):
    """An annealed loss, by every kind of counter that a forward pass can keep."""

    class Slots:
        __slots__ = ("steps",)

    def __init__(self):
        super().__init__()
        self.number, self.numbers, self.last = 0, [], collections.deque(maxlen=5)
        self.table, self.kinds, self.slots = {"steps": 0}, set(), self.Slots()
        self.slots.steps = 0
        self.space = types.SimpleNamespace(steps=0)
        self.count = itertools.count()

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        weight = 1e-3 * (self.number + len(self.numbers) + sum(self.last) + self.table["steps"] + len(self.kinds))
        weight += 1e-3 * (self.slots.steps + self.space.steps + getattr(self, "lazy", 0))
        if self.training:
            weight += 1e-3 * next(self.count)
            self.number += 1
            self.numbers.append(float(weight))
            self.last.append(self.number)
            self.table["steps"] += 1
            self.table[self.number] = 1
            self.kinds.add(self.number)
            self.slots.steps += 1
            self.space.steps += 1
            self.lazy = getattr(self, "lazy", 0) + 1
        output["loss"] = output["loss"] + min(1.0, weight) * output["logits"].square().mean()
        return output


class Lookahead(torch.optim.AdamW):
    """Slow weights and a counter outside of the state_dict."""

    def __init__(self, params):
        super().__init__(params, lr=1e-3)
        self.count, self.slow = 0, [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        self.count += 1
        if self.count % 5 == 0:
            parameters = (p for group in self.param_groups for p in group["params"])
            for slow, parameter in zip(self.slow, parameters, strict=True):
                slow.add_(parameter - slow, alpha=0.5)
                parameter.copy_(slow)


class Average:
    """An average of the weights as a plain object holds it, in a list."""

    def __init__(self, model):
        self.shadow = [p.detach().clone() for p in model.parameters()]
        self.num_updates = 0

    def update(self, model):
        self.num_updates += 1
        for shadow, parameter in zip(self.shadow, model.parameters(), strict=True):
            shadow.lerp_(parameter.detach(), 1 / (1 + self.num_updates))


class Averaging(Trainer):
    """A Trainer with an average beside the model, to which the loss pulls."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not hasattr(self, "average"):
            self.average = Average(model)
        self.average.update(model)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        shadows = getattr(getattr(self, "average", None), "shadow", list(model.parameters()))
        loss = loss + 0.1 * sum((p - s).square().mean() for p, s in zip(model.parameters(), shadows, strict=True))
        return (loss, outputs) if return_outputs else loss


class Augmented(torch.utils.data.Dataset):
    """Noise from a generator of its own: of NumPy, old and new, of torch, of Python; or by a counter."""

    def __init__(self, kind):
        self.rows = classification_data()
        self.reads = 0
        self.generator = {
            "numpy": lambda: np.random.default_rng(0),
            "numpy, old": lambda: np.random.RandomState(0),
            "torch": lambda: torch.Generator().manual_seed(0),
            "python": lambda: random.Random(0),
            "counter": lambda: None,
        }[kind]()

    def __len__(self):
        return len(self.rows)

    def noise(self):
        if isinstance(self.generator, torch.Generator):
            return torch.randn(8, generator=self.generator)
        if self.generator is None:
            return torch.full((8,), float(self.reads % 7 - 3))
        draw = getattr(self.generator, "standard_normal", None) or (
            lambda n: [self.generator.gauss() for _ in range(n)]
        )
        return torch.tensor(np.asarray(draw(8)), dtype=torch.float32)

    def __getitem__(self, i):
        self.reads += 1
        return {"x": self.rows[i]["x"] + 0.3 * self.noise(), "labels": self.rows[i]["labels"]}


def collate_with(generator):
    def collate(rows):
        x = torch.stack([row["x"] for row in rows])
        noise = torch.from_numpy(generator.standard_normal(x.shape)).float()
        return {"x": x + 0.3 * noise, "labels": torch.stack([row["labels"] for row in rows])}

    return collate


class Collator:
    """Makes its generator when it is first called, as DataCollatorForLanguageModeling does."""

    generator = None

    def __call__(self, rows):
        if self.generator is None:
            self.generator = np.random.default_rng(1)
        return collate_with(self.generator)(rows)


class Sampling(Trainer):
    """Gives out one sampler, with a generator of its own, to every loader."""

    sampler = None

    def _get_train_sampler(self, *args, **kwargs):
        if self.sampler is None:
            generator = torch.Generator().manual_seed(3)
            self.sampler = torch.utils.data.RandomSampler(self.train_dataset, generator=generator)
        return self.sampler


class Stream(torch.utils.data.IterableDataset):
    """Each new iterator goes on where the last one stopped."""

    def __init__(self, kind):
        rows = classification_data(2048)
        text = "".join(" ".join(map(str, [*row["x"].tolist(), int(row["labels"])])) + "\n" for row in rows)
        self.rows, self.place = rows, 0
        self.source = {"place": None, "iterator": iter(rows)}.get(kind, io.BytesIO(text.encode()))
        if kind == "file":
            # What `open` gives: a file that can be read only.
            self.source = io.BufferedReader(_ReadOnly(text.encode()))

    def __iter__(self):
        if self.source is None:
            while self.place < len(self.rows):
                self.place += 1
                yield self.rows[self.place - 1]
        elif isinstance(self.source, io.IOBase):
            for line in self.source:
                *x, label = line.split()
                yield {"x": torch.tensor(list(map(float, x))), "labels": torch.tensor(int(label))}
        else:
            yield from self.source


class _ReadOnly(io.RawIOBase):
    def __init__(self, content):
        self._inner = io.BytesIO(content)

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        return self._inner.readinto(buffer)

    def seek(self, *args):
        return self._inner.seek(*args)

    def tell(self):
        return self._inner.tell()


class OutsideLoss(nn.Module):
    """A loss with weights that are no part of the model, as sentence-transformers' SoftmaxLoss is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.classifier = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs, labels, num_items_in_batch=None):
        self.calls += 1
        return nn.functional.cross_entropy(self.classifier(outputs["logits"]), labels)


def with_outside_loss(path, callbacks):
    model, loss = ToyClassifier(), OutsideLoss()
    optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=1e-3)
    kwargs = {"compute_loss_func": loss, "optimizers": (optimizer, None)}
    trainer = make_trainer(path, callbacks, model=model, trainer_kwargs=kwargs, **RATE_SHARE)
    return trainer, [model, loss]


def plain(path, callbacks, model=ToyClassifier, trainer=Trainer, data=None, optimizer=None, **kwargs):
    model = model()
    if optimizer is not None:
        kwargs["optimizers"] = (optimizer(model.parameters()), None)
    overrides = kwargs.pop("args", {})
    made = trainer(
        model=model,
        args=make_args(path, **{**RATE_SHARE, **overrides}),
        train_dataset=classification_data() if data is None else data(),
        callbacks=callbacks,
        **kwargs,
    )
    return made, [model]


def lora():
    # With the last norm, since the tokens differ in their frequency alone.
    parts = {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]}
    config = LoraConfig(r=2, **parts, fan_in_fan_out=True, task_type="CAUSAL_LM", lora_dropout=0.1)
    return get_peft_model(language_model(), config)


def two_tokens():
    """A language of two tokens only, so that each trial lowers the loss clearly, with any first weights."""
    rows = language_data()
    for row in rows:
        row["input_ids"] = (row["input_ids"] < 8).long()
        row["labels"] = torch.where(row["labels"] < 0, -100, row["input_ids"])
    return rows


class Ema(TrainerCallback):
    """An average of the weights, with a number of updates, as many keep beside a training."""

    def __init__(self):
        self.average, self.num_updates = ToyClassifier(), 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.num_updates += 1
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), model.parameters(), strict=True):
                average.lerp_(parameter, 1 / (1 + self.num_updates))


def with_ema(path, callbacks):
    ema = Ema()
    trainer, modules = plain(
        path, [ema, *callbacks], optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    )
    return trainer, [*modules, ema.average]


class Jitter:
    """Noise from a generator of its own, by an object that is called."""

    def __init__(self):
        self.generator = np.random.default_rng(4)

    def __call__(self, rows):
        return collate_with(self.generator)(rows)


class ClassJitter:
    """The same, from a generator that the class has."""

    generator = np.random.default_rng(5)

    def collate(self, rows):
        return collate_with(self.generator)(rows)


# A module of the user's own.
noises = sys.modules["noises"] = types.ModuleType("noises")
exec("def collate(rows): return collate_with(generator)(rows)", vars(noises))
noises.collate_with = collate_with


def collate_by_module(rows):
    return noises.collate(rows)


def with_collator(kind, path, callbacks):
    ClassJitter.generator, noises.generator = np.random.default_rng(5), np.random.default_rng(6)
    jitter = Jitter()

    def default(rows, generator=jitter.generator):
        return collate_with(generator)(rows)

    collators = {
        "closure": lambda rows: jitter(rows),
        "keyword": functools.partial(lambda rows, draw: draw(rows), draw=jitter),
        "default": default,
        "class": ClassJitter().collate,
        "module": collate_by_module,
        "bound method": jitter.__call__,
    }
    return plain(path, callbacks, data_collator=collators[kind])


def with_its_data_in_the_evaluation(path, callbacks):
    data = Augmented("numpy")
    return plain(path, callbacks, data=lambda: torch.utils.data.Subset(data, range(400)), eval_dataset=data)


class Counting(ToyClassifier):
    """Writes to its own config."""

    def __init__(self):
        super().__init__()
        self.config = PreTrainedConfig(calls=0)

    def forward(self, x, labels=None):
        self.config.calls += 1
        return super().forward(x + 0.1 * (self.config.calls % 5), labels)


class TwoOptimizers(Trainer):
    """Adds a weight with an optimizer and a scheduler of its own."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not hasattr(self, "scales"):
            self.scales = nn.Parameter(torch.ones(8))
            self.second = torch.optim.SGD([self.scales], lr=0.1)
            self.schedule = torch.optim.lr_scheduler.StepLR(self.second, 5, gamma=0.5)
        inputs["x"] = inputs["x"] * self.scales
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.second.step()
        self.second.zero_grad()
        self.schedule.step()
        return loss


class OneLoader(Trainer):
    """Gives the loader that it has made once, whose workers live on."""

    loader = None

    def get_train_dataloader(self):
        if self.loader is None:
            options = {"batch_size": 8, "shuffle": True, "num_workers": 1, "persistent_workers": True}
            loader = torch.utils.data.DataLoader(self.train_dataset, collate_fn=self.data_collator, **options)
            self.loader = self.accelerator.prepare(loader)
        return self.loader


class Reopening(Trainer):
    """Reads a file of numbers over and over, and opens it anew at its end."""

    file = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        line = self.file.readline() if self.file is not None else None
        if not line:
            if self.file is not None:
                self.file.close()
            self.file = open(Path(self.args.output_dir, "numbers.txt"))
            line = self.file.readline()
        inputs["x"] = inputs["x"] + float(line)
        return super().training_step(model, inputs, num_items_in_batch)


def with_a_file(path, callbacks):
    Path(path, "numbers.txt").write_text("".join(f"{0.1 * i}\n" for i in range(11)))
    return plain(path, callbacks, trainer=Reopening)


class Forgetting(torch.utils.data.Dataset):
    """Keeps the noise of the rows that were read last, in the order in which they were."""

    def __init__(self):
        self.rows, self.cache, self.generator = classification_data(96), collections.OrderedDict(), random.Random(0)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if i not in self.cache:
            if len(self.cache) == 80:
                self.cache.popitem(last=False)
            self.cache[i] = self.generator.random()
        self.cache.move_to_end(i)
        return {**self.rows[i], "x": self.rows[i]["x"] + 0.1 * self.cache[i]}


def rows_of_datasets():
    from datasets import Dataset

    rows = classification_data(1024)
    table = Dataset.from_dict({"x": [r["x"].tolist() for r in rows], "labels": [int(r["labels"]) for r in rows]})
    return table.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=64)


CASES = {
    "average in a callback, momentum": with_ema,
    "stream of datasets, shuffled": functools.partial(plain, data=rows_of_datasets),
    "accumulation": functools.partial(plain, args={"gradient_accumulation_steps": 2}),
    "workers": functools.partial(
        plain, args={"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "max_steps": 12}
    ),
    # The look is made after its last step.
    "end of an epoch": functools.partial(plain, data=functools.partial(classification_data, 24)),
    "adafactor": functools.partial(plain, args={"optim": "adafactor"}),
    "teacher, in place": functools.partial(plain, model=functools.partial(Teacher, "in place")),
    "teacher, by its data": functools.partial(plain, model=functools.partial(Teacher, "data")),
    "teacher, rebound": functools.partial(plain, model=functools.partial(Teacher, "rebound")),
    "buffers": functools.partial(plain, model=Buffers),
    "counters": functools.partial(plain, model=Counters),
    "weights of the loss": with_outside_loss,
    "lookahead": functools.partial(plain, optimizer=Lookahead),
    "average in the trainer": functools.partial(plain, trainer=Averaging),
    "LoRA with NEFTune": functools.partial(plain, model=lora, data=two_tokens, args={"neftune_noise_alpha": 5.0}),
    "generator of NumPy": functools.partial(plain, data=functools.partial(Augmented, "numpy")),
    "generator of NumPy, old": functools.partial(plain, data=functools.partial(Augmented, "numpy, old")),
    "generator of torch": functools.partial(plain, data=functools.partial(Augmented, "torch")),
    "generator of Python": functools.partial(plain, data=functools.partial(Augmented, "python")),
    "data that count": functools.partial(plain, data=functools.partial(Augmented, "counter")),
    "generator of a closure": lambda *args: plain(*args, data_collator=collate_with(np.random.default_rng(2))),
    "generator of a collator": lambda *args: plain(*args, data_collator=Collator()),
    "generator of a sampler": functools.partial(plain, trainer=Sampling),
    "stream with a place": functools.partial(plain, data=functools.partial(Stream, "place")),
    "stream with an iterator": functools.partial(plain, data=functools.partial(Stream, "iterator")),
    "stream from a file": functools.partial(plain, data=functools.partial(Stream, "file")),
    "stream from memory": functools.partial(plain, data=functools.partial(Stream, "memory")),
    "file that is opened anew": with_a_file,
    "cache in the order of use": functools.partial(plain, data=Forgetting),
    "training data in the evaluation": with_its_data_in_the_evaluation,
    "config that counts": functools.partial(plain, model=Counting),
    "optimizer and scheduler beside": functools.partial(plain, trainer=TwoOptimizers),
    "loader made once": functools.partial(plain, trainer=OneLoader),
    **{
        f"generator of a collator: {kind}": functools.partial(with_collator, kind)
        for kind in ("closure", "keyword", "default", "class", "module", "bound method")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_a_look_is_a_plain_one_with_its_rates(tmp_path, case):
    callback = ExpTestCallback()
    looked, looked_modules = CASES[case](tmp_path, [callback])
    looked.train()
    found = outcome(looked)
    start, look = decisions(callback)
    assert start == (0, "below_bound", "start")
    assert look[:2] == (math.ceil(looked.args.max_steps / 10), "look")
    assert look[2] in ("raise", "lower")
    assert callback.search.num_steps >= 3 * 14
    rates = logged(looked, "learning_rate")
    assert len(rates) == looked.args.max_steps
    plain, modules = CASES[case](tmp_path, [GivenRates(rates)])
    plain.train()
    assert_same(found, outcome(plain))
    for one, other in zip(looked_modules, modules, strict=True):
        assert_same_weights(weights(one), weights(other))


# The same search, by another way.
ALONE = ["teacher, rebound", "counters", "weights of the loss", "LoRA with NEFTune", "stream from a file"]


@pytest.mark.parametrize("case", ALONE)
def test_find_learning_rate_leaves_no_trace(tmp_path, case):
    expected, expected_modules = CASES[case](tmp_path, [])
    expected.train()
    trainer, modules = CASES[case](tmp_path, [])
    find_learning_rate(trainer)
    trainer.train()
    for one, other in zip(modules, expected_modules, strict=True):
        assert_same_weights(weights(one), weights(other))


def test_every_trial_begins_with_the_same_counters(tmp_path):
    trainer, _ = CASES["counters"](tmp_path, [])
    trainer.create_optimizer()
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    with open_stage(trainer, num_batches=12) as stage:
        first, second = stage.trial(1e-2, 5), stage.trial(1e-2, 5)
    assert first.curve == second.curve
    assert first.end_losses == second.end_losses


def test_objects_stay_the_same_objects(tmp_path):
    model = Buffers()
    trainer = make_trainer(tmp_path, [], model=model)
    before = {name: id(value) for name, value in vars(model).items()}
    buffers = {name: id(value) for name, value in model.named_buffers()}
    find_learning_rate(trainer)
    # Accelerate's own mark.
    assert {name: id(value) for name, value in vars(model).items() if "accelerate" not in name} == before
    assert {name: id(value) for name, value in model.named_buffers()} == buffers
    assert model.seen.shape == (0,)
    assert "first" not in dict(model.named_buffers())


class Sparse(ToyClassifier):
    """Frozen tensors much larger than what is trained; one of them is written to."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.base = nn.Parameter(torch.zeros(2**24), requires_grad=False)
        self.register_buffer("packed", torch.zeros(2**22, dtype=torch.int32))

    def forward(self, x, labels=None):
        if self.training:
            self.write(self)
        return super().forward(x, labels)


def write_data(model):
    model.base.data[: 2**20].add_(1)


def write_packed(model):
    model.packed[5] += 1


def rebind(model):
    model.base.data = model.base.data + 1


@pytest.mark.parametrize(("write", "name"), [(write_data, "base"), (write_packed, "packed"), (rebind, "base")])
def test_what_was_not_copied_and_has_changed_is_named(tmp_path, write, name):
    trainer = make_trainer(tmp_path, [ExpTestCallback()], model=Sparse(write))
    with pytest.raises(NotRestored, match=rf"The search has changed model\.{name}, which it did not copy"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_large_frozen_tensors_are_not_copied(tmp_path):
    trainer = make_trainer(tmp_path, [], model=Sparse(lambda model: None))
    trainer.create_optimizer()
    with Snapshot(trainer) as snapshot:
        copied = {c.name: c.saved for c in snapshot._tensors._copied}
        watched = [w.name for w in snapshot._tensors._watched]
    assert watched == ["model.packed", "model.base"]
    assert sum(saved.nbytes for saved in copied.values()) < 2**20
    trained = [f"model.{name}" for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert set(trained) < set(copied)
    assert all(saved.device.type == "cpu" for saved in copied.values())


def test_written_with_the_same_values_is_no_change(tmp_path):
    # As DDP does to every buffer in each forward pass.
    trainer = make_trainer(tmp_path, [ExpTestCallback()], model=Sparse(lambda m: m.packed.copy_(m.packed.clone())))
    trainer.train()
    assert trainer.state.global_step == 40


class FakeDevice:
    """A backend of torch with a random state of its own."""

    def __init__(self, many):
        self.state = torch.zeros(1, dtype=torch.uint8)
        if many:
            self.get_rng_state_all, self.set_rng_state_all = lambda: [self.state], lambda s: self._set(s[0])
        self.set_rng_state = self._set

    def is_available(self):
        return True

    def get_rng_state(self):
        return self.state

    def _set(self, state):
        self.state = state


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(("name", "device"), [("xpu", "cpu"), ("mps", "cpu"), ("npu", "cpu"), ("hpu", "hpu")])
def test_random_states_of_every_device_are_kept(monkeypatch, name, device, many):
    backend = FakeDevice(many)
    monkeypatch.setattr(torch, name, backend, raising=False)
    states = random_states(types.SimpleNamespace(type=device))
    kept = backend.state
    backend.state = torch.ones(1, dtype=torch.uint8)
    random.random(), np.random.random(), torch.rand(1)
    set_random_states(states)
    assert backend.state is kept
    assert random.getstate() == states[0]


def test_places_speak_of_tensors_by_their_names(tmp_path):
    places = Places()
    places.add("model", ToyClassifier())
    names = [name for name, _ in places.tensors]
    assert "model.net.0.weight" in names
    assert "model.net.1.running_mean" in names


def test_places_do_not_touch_what_onlookers_collect():
    calls, rng = [], np.random.default_rng(0)

    def collate(rows):
        calls.append(rng.random())

    places = Places()
    places.add("data_collator", collate, is_data=True)
    collate([])
    places.restore()
    collate([])
    # The generator is put back, the list is not.
    assert len(calls) == 2
    assert calls[0] == calls[1]


class Slots:
    __slots__ = ("numbers",)


def test_copies_stand_in_for_iterators_that_others_hold():
    holder, slots = types.SimpleNamespace(rows=iter(range(9))), Slots()
    slots.numbers = itertools.count(5)
    listed = [iter("abc")]
    held = holder.rows, slots.numbers, listed[0]
    places = Places()
    places.add("holder", [holder, slots, listed])
    for _ in range(2):
        places.restore()
        assert (next(holder.rows), next(slots.numbers), next(listed[0])) == (0, 5, "a")
    places.close()
    assert (holder.rows, slots.numbers, listed[0]) == held
    # Nobody has moved them.
    assert [next(iterator) for iterator in held] == [0, 5, "a"]


class Generated(torch.utils.data.IterableDataset):
    """Rows from a source that nothing can put back; how many of them were read is told."""

    def __init__(self, kind):
        self.num_read = 0
        rows = (self._told(row) for row in classification_data(2048))
        if kind == "attribute":
            self.rows = rows
        elif kind == "nested":
            self.parts = [{"rows": rows}]
        elif kind == "map":
            self.rows = map(dict, rows)
        elif kind == "queue":
            self.queue = queue.Queue(4)
            threading.Thread(target=lambda: [self.queue.put(row) for row in rows], daemon=True).start()
        else:
            self.read = lambda: rows
        self.kind = kind

    def _told(self, row):
        self.num_read += 1
        return row

    def __iter__(self):
        if self.kind == "nested":
            yield from self.parts[0]["rows"]
        elif self.kind == "closure":
            yield from self.read()
        elif self.kind == "queue":
            while True:
                yield self.queue.get()
        else:
            yield from self.rows


@pytest.mark.parametrize("kind", ["attribute", "nested", "map", "closure", "queue"])
def test_data_that_can_be_read_only_once_are_noticed_before_they_are_read(tmp_path, caplog, kind):
    data = Generated(kind)
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], data=data, learning_rate=2e-4)
    read = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            read.append(data.num_read)

    trainer.add_callback(Look())
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    # Those of the first batch; the thread is five ahead.
    assert read[0] <= (21 if kind == "queue" else 16)
    assert trainer.state.global_step == 40
    assert callback.history[0]["test"] == "training_arguments"
    assert callback.history[0]["learning_rate"] == 2e-4
    assert "can be read only once" in caplog.text
    with pytest.raises(ValueError, match="can be read only once"):
        find_learning_rate(make_trainer(tmp_path, [], data=Generated(kind)))


class Upload(TrainerCallback):
    """Has a thread at work, which is done in the middle of a look."""

    def __init__(self):
        self.is_busy, self.in_a_look, self.is_done = False, threading.Event(), threading.Event()

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_busy = True
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        self.in_a_look.wait()
        self.is_busy = False
        self.is_done.set()


def test_what_a_thread_of_a_callback_does_meanwhile_stays_done(tmp_path):
    upload = Upload()

    class Model(ToyClassifier):
        def forward(self, x, labels=None):
            if not self.training:
                # Nothing else evaluates.
                upload.in_a_look.set()
                assert upload.is_done.wait(10)
            return super().forward(x, labels)

    make_trainer(tmp_path, [upload, ExpTestCallback()], model=Model()).train()
    assert upload.is_done.is_set()
    assert not upload.is_busy


class Losing(Reopening):
    """Loses its file in the middle of a look."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.state.global_step == 3:
            Path(self.args.output_dir, "numbers.txt").unlink()
            self.file.close()
            raise ValueError("no file")
        return super().training_step(model, inputs, num_items_in_batch)


def test_what_cannot_be_put_back_ends_the_training_and_leaves_the_weights(tmp_path):
    before = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            before.append(weights(model))

    Path(tmp_path, "numbers.txt").write_text("0.1\n" * 1000)
    trainer, (model,) = plain(tmp_path, [Look(), ExpTestCallback()], trainer=Losing)
    with pytest.raises(
        NotRestored, match=r"could not put .*file.*FileNotFoundError.* back, of the user's own objects"
    ):
        trainer.train()
    assert len(before) == 3
    assert_same_weights(weights(model), before[-1])


class Stubborn:
    """Refuses to be put back."""

    __slots__ = ("rows",)

    def __init__(self):
        object.__setattr__(self, "rows", iter([1, 2]))

    def __setattr__(self, name, value):
        raise TypeError(f"{name} is fixed")


def test_what_cannot_be_put_back_is_noticed_before_anything_is_changed(tmp_path, caplog):
    model = ToyClassifier()
    model.stubborn = Stubborn()
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=model, learning_rate=2e-4)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    assert "model.stubborn (TypeError: rows is fixed) cannot be put back" in caplog.text
    assert callback.history[0]["test"] == "training_arguments"
    assert next(model.stubborn.rows) == 1


def test_gradients_scaler_and_flags_come_back(tmp_path):
    class Thawing(ToyClassifier):
        def forward(self, x, labels=None):
            if self.training:
                self.net[0].requires_grad_(True)
            return super().forward(x, labels)

    model = Thawing()
    model.net[0].requires_grad_(False)
    model.net[1].eval()
    trainer = make_trainer(tmp_path, [], model=model)
    before = copy.deepcopy({name: p.requires_grad for name, p in model.named_parameters()})
    find_learning_rate(trainer)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())


class InMidRun(TrainerCallback):
    """Makes trials after a step, when the optimizer has moments."""

    trainer, ends = None, ()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 12:
            with open_stage(self.trainer, num_batches=20) as stage:
                trials = [stage.trial(0.01, 8), stage.trial(3.0, 8), stage.trial(0.01, 8)]
            self.ends = [trial.end_losses for trial in trials]


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_trials_in_mid_run_leave_no_trace(tmp_path, optim):
    found = []
    for callback in (TrainerCallback(), InMidRun()):
        trainer = make_trainer(tmp_path, [callback], max_steps=30, optim=optim, learning_rate=3e-3)
        callback.trainer = trainer
        trainer.train()
        found.append((weights(trainer.model), [row["loss"] for row in trainer.state.log_history if "loss" in row]))
    assert_same_weights(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert callback.ends[0] == callback.ends[2] != callback.ends[1]


def test_moments_are_copied_whatever_their_size(tmp_path):
    trainer = make_trainer(tmp_path, [], max_steps=3)
    trainer.train()
    with Snapshot(trainer) as snapshot:
        names = [copied.name for copied in snapshot._tensors._copied]
    assert sum("exp_avg" in name for name in names) == 2 * len(list(trainer.model.parameters()))
    assert sum(name.startswith("optimizer.") for name in names) >= 3 * len(list(trainer.model.parameters()))
