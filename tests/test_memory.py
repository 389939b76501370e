# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What ExpTest holds while training, whatever the size of the model."""

import gc
import multiprocessing

import pytest
import torch
from torch import nn
from toys import InOrder, classification_data, make_args, make_trainer
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback, ExpTestConfig, find_learning_rate
from hf_exptest.search import MIN_STEPS
from hf_exptest.stage import Stage

MIB = 2**20


class Classifier(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Meter(TrainerCallback):
    """Bytes of all live tensors at the end of a late step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 35:
            gc.collect()
            # Those that `torch.compile` leaves behind in another test have no memory.
            tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            self.bytes = sum(storages.values())


def live_bytes(path, width, callbacks):
    meter = Meter()
    make_trainer(path, [*callbacks, meter], model=Classifier(width), data=classification_data(64)).train()
    return meter.bytes


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("width", [512, 1024])
def test_training_holds_no_buffer_of_the_model_s_size(tmp_path, width, correction):
    model_bytes = 4 * width**2
    plain = live_bytes(tmp_path, width, [])
    # Parameters and AdamW's two moments at least, so the meter sees what there is.
    assert plain > 3 * model_bytes
    callback = ExpTestCallback(window=0.2, window_correction=correction)
    added = live_bytes(tmp_path, width, [callback]) - plain
    # The path's sample: indices of 8 bytes, values at its start and at its last step of 4 each.
    sample = 100_010 * 16 if correction else 0
    assert -0.1 * MIB < added < MIB + sample
    assert callback.search is not None


class Counted(torch.utils.data.Dataset):
    """As many rows as anybody wants; how many were read is told."""

    def __init__(self):
        self.rows = classification_data()
        self.read = lambda: None

    def __len__(self):
        return 10**6

    def __getitem__(self, i):
        self.read()
        return self.rows[i % len(self.rows)]


@pytest.fixture
def kept(monkeypatch):
    """The batches that a search keeps, by batch in held-out and training ones."""
    found = []
    init = Stage.__init__

    def spy(self, *args):
        init(self, *args)
        found.append((list(self._eval_batches), list(self._train_batches)))

    monkeypatch.setattr(Stage, "__init__", spy)
    return found


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("max_steps", [100, 8000])
def test_a_search_keeps_so_many_batches_whatever_the_length_of_the_run(
    tmp_path, kept, monkeypatch, max_steps, accumulation
):
    # In place of 268.
    monkeypatch.setattr("hf_exptest.stage.MAX_BATCHES", 40 + 12)
    data, read = Counted(), []
    data.read = lambda: read.append(1)
    args = make_args(
        tmp_path, max_steps=max_steps, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation
    )
    config = ExpTestConfig(warmup=10 / max_steps)
    search = find_learning_rate(InOrder(model=Classifier(4), args=args, train_dataset=data), config)
    for_bound, for_look = kept
    # As many as a trial is long, and some to hold out; of any length, so many at most.
    assert [len(batches) for batches in for_bound] == [1, 3]
    assert sum(map(len, for_look)) == (MIN_STEPS + 12 if max_steps == 100 else 40 + 12)
    assert len(for_look[0]) == (MIN_STEPS + 12) // 4 if max_steps == 100 else 12
    assert {len(micro_batches) for part in kept for micro_batches, _ in part[0] + part[1]} == {accumulation}
    # Accelerate reads one micro-batch ahead, in the training too.
    num_batches = 4 + sum(map(len, for_look)) + search.step
    assert len(read) == 2 * (num_batches * accumulation + 3)
    # Longer trials read the same batches anew.
    assert {trial.num_steps for trial in search.trials} == {MIN_STEPS if max_steps == 100 else 256}


def test_a_search_keeps_so_many_bytes(tmp_path, kept, monkeypatch):
    # A batch of 8 rows of 8 floats and a label.
    batch_bytes = 8 * (8 * 4 + 8)
    monkeypatch.setattr("hf_exptest.stage.MAX_BYTES", 10 * batch_bytes + 1)
    find_learning_rate(make_trainer(tmp_path, [], model=Classifier(4)))
    monkeypatch.setattr("hf_exptest.stage.MAX_BYTES", 1)
    find_learning_rate(make_trainer(tmp_path, [], model=Classifier(4)))
    # For the bound and for the look, each time.
    assert [(len(held_out), len(rest)) for held_out, rest in kept] == [(1, 3), (2, 8), (1, 1), (1, 1)]


class Workers(TrainerCallback):
    """Processes at the end of each step, and the loaders that Accelerate keeps."""

    def __init__(self):
        self.seen = set()

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.add(len(multiprocessing.active_children()))


def test_the_loader_of_the_search_and_its_workers_are_gone(tmp_path):
    workers = Workers()
    callback = ExpTestCallback()
    trainer = make_trainer(
        tmp_path,
        [callback, workers],
        max_steps=10,
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
    )
    trainer.train()
    assert [entry["test"] for entry in callback.history] == ["below_bound", "look"]
    assert workers.seen == {2}
    assert len(trainer.accelerator._dataloaders) == 1
