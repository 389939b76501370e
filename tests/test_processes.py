# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import torch
from toys import FakeAccelerator

from hf_exptest import ExpTestConfig, ExpTestScheduler
from hf_exptest.processes import check_agreement, fewest_over_processes, mean_over_processes


class Disagreeing(FakeAccelerator):
    """Processes of which some have something else."""

    def __init__(self, num_processes, others):
        super().__init__(num_processes)
        self.others = others

    def gather(self, tensor):
        gathered = super().gather(tensor)
        gathered[self.others] += torch.arange(1, len(self.others) + 1)
        return gathered


def test_one_process_needs_no_collective():
    class Alone:
        num_processes = 1

    values = torch.tensor([1.0, 2.0])
    for accelerator in (None, Alone()):
        assert mean_over_processes(values, accelerator) is values
        check_agreement({"learning_rate": 1e-3}, accelerator, "at step 3")
    assert fewest_over_processes(7, Alone()) == 7


def test_agreement_passes_in_silence_and_disagreement_names_the_ranks():
    check_agreement({"learning_rate": 1e-3}, FakeAccelerator(4), "at step 120")
    with pytest.raises(RuntimeError, match=r"at step 120: of 4 processes, rank 2 differs from the rest.*0\.001"):
        check_agreement({"learning_rate": 1e-3}, Disagreeing(4, [2]), "at step 120")
    with pytest.raises(RuntimeError, match="of 8 processes, rank 0, 5 differ from the rest"):
        check_agreement({"learning_rate": 1e-3}, Disagreeing(8, [0, 5]), "at step 120")


def test_the_process_with_the_fewest_batches_sets_the_pace():
    assert fewest_over_processes(7, FakeAccelerator(4)) == 7

    class Short(FakeAccelerator):
        def gather(self, tensor):
            return torch.tensor([7, 7, 3, 7])

    assert fewest_over_processes(7, Short(4)) == 3


@pytest.mark.parametrize("when", ["settings", "decision"])
def test_the_scheduler_compares_settings_and_decisions(when):
    class FromThen(FakeAccelerator):
        num_gathered = 0

        def gather(self, tensor):
            self.num_gathered += 1
            gathered = super().gather(tensor)
            if self.num_gathered > (0 if when == "settings" else 2):
                gathered[3] = 0
            return gathered

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    config = ExpTestConfig(learning_rate=0.1, cooldown=0.5, window=0.4)

    def train():
        scheduler = ExpTestScheduler(optimizer, config, num_training_steps=100, accelerator=FromThen(4))
        for loss in np.linspace(2, 1, 100):
            scheduler.observe(float(loss))
            scheduler.step()

    step = {"settings": 0, "decision": 50}[when]
    with pytest.raises(RuntimeError, match=rf"at step {step}: of 4 processes, rank 3 differs"):
        train()


@pytest.fixture(scope="module")
def recorded_losses():
    """Losses of every sample in 400 steps of softmax regression on global batches of 512, which converges."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(8, 3)
    torch.nn.init.zeros_(model.weight)
    truth = torch.randn(8, 3, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(400):
        x = torch.randn(512, 8, generator=generator)
        y = (x @ truth + torch.randn(512, 3, generator=generator)).argmax(-1)
        loss = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return torch.stack(losses)


class Ranks(FakeAccelerator):
    """Rank 0 asks; the mean over all ranks, each with its part of every global batch, answers."""

    def __init__(self, losses, num_ranks):
        super().__init__(num_ranks)
        self.means = losses.view(len(losses), num_ranks, -1).mean(2)
        self.num_reduced = 0

    def reduce(self, tensor, reduction):
        first, self.num_reduced = self.num_reduced, self.num_reduced + len(tensor)
        assert torch.equal(tensor, self.means[first : self.num_reduced, 0])
        return self.means[first : self.num_reduced].mean(1)


def decisions(losses, num_ranks):
    accelerator = Ranks(losses, num_ranks)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    config = ExpTestConfig(search=False, warmup=0.0, cooldown=0.0, window=0.1)
    scheduler = ExpTestScheduler(optimizer, config, num_training_steps=len(losses), accelerator=accelerator)
    for loss in accelerator.means[:, 0]:
        scheduler.observe(loss)
        scheduler.step()
    return scheduler.history


@pytest.mark.parametrize("num_ranks", [8, 64, 512])
def test_the_number_of_ranks_does_not_change_a_decision(recorded_losses, num_ranks):
    one, many = decisions(recorded_losses, 1), decisions(recorded_losses, num_ranks)
    assert {entry["decision"] for entry in one} == {"detected", "continue", "undecided", "decay"}
    keys = ("step", "phase", "test", "window", "decision", "learning_rate")
    assert [[e[k] for k in keys] for e in many] == [[e[k] for k in keys] for e in one]
    assert [e["p_value"] for e in many] == pytest.approx([e["p_value"] for e in one], rel=1e-3)
