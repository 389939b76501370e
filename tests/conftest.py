"""Settings that hold for every test and for the processes that tests start."""

import gc
import os

# huggingface_hub and OpenMP read these once, when they are imported, so they must be set before any test imports
# transformers or torch. Nothing in the tests may depend on the Hub, or report to it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# The tests' models are so small that threads only wait for each other; and one thread sums in one order, so every run
# gives the same numbers. A variable, unlike torch.set_num_threads, also reaches the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Figures are drawn into memory: there may be no screen.
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import settings

# No time limit per example, since a busy machine is no failure; and the same examples every run, so that a failure
# comes back when the tests are run again.
settings.register_profile("hf_exptest", deadline=None, derandomize=True)
settings.load_profile("hf_exptest")


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage_collection():
    """
    Garbage collections pass over what was there before the first test of a file, libraries above all.

    Each training begins with a collection, and each search makes some. To look at all objects of the libraries takes
    longer than the training itself.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_figures(request, monkeypatch):
    """Trainings end without their figure, which takes longer than they do; `@pytest.mark.figures` asks for it."""
    if "figures" not in request.keywords:
        monkeypatch.setattr("hf_exptest.Report.save_figure", lambda self, folder: None)
