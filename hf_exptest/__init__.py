# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""ExpTest for the Hugging Face Trainer: fine-tuning without choosing a learning rate."""

from .bounds import learning_rate_upper_bound
from .callback import ExpTestCallback
from .config import ExpTestConfig
from .controller import ExpTestController
from .finder import find_learning_rate
from .report import Report
from .scheduler import ExpTestScheduler
from .search import LearningRateSearch
from .statistics import ExponentialDecayResult, SlopeResult, TestResult, exponential_decay_test, slope_test
from .training_args import ExpTestArgumentsMixin, ExpTestTrainingArguments
from .trial import Trial

__version__ = "0.1.0"

__all__ = [
    "ExpTestArgumentsMixin",
    "ExpTestCallback",
    "ExpTestConfig",
    "ExpTestController",
    "ExpTestScheduler",
    "ExpTestTrainingArguments",
    "ExponentialDecayResult",
    "LearningRateSearch",
    "Report",
    "SlopeResult",
    "TestResult",
    "Trial",
    "exponential_decay_test",
    "find_learning_rate",
    "learning_rate_upper_bound",
    "slope_test",
]
