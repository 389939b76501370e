# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What ExpTest holds while training, whatever the size of the model."""

import gc

import pytest
import torch
from torch import nn
from toys import classification_data, make_trainer
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback

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
            tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
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
