# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import errno
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from reports import (
    FALLBACK_HISTORY,
    GIVEN,
    HISTORY,
    INCONCLUSIVE_SEARCH,
    LATER_SEARCH,
    LOSSES,
    SEARCH,
    TWO_LOOKS_HISTORY,
    entry,
    look,
    look_alone,
    make_report,
    start,
)
from toys import StopAt, make_trainer
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback, ExpTestConfig, Report
from hf_exptest.cli import main
from hf_exptest.report import log_values, search_from_dict, search_to_dict, write
from hf_exptest.words import describe


def test_starting_rate_is_the_one_that_was_used():
    found = make_report(searches=[SEARCH])
    assert (found.starting_rate, found.rate_source) == (0.3, "search")
    # A later look does not change what the warm-up led to.
    twice = make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH])
    assert (twice.starting_rate, twice.rate_source) == (0.3, "search")
    # A look that finds nothing better has not found the rate.
    kept = make_report([HISTORY[0], look(10, "keep", 0.03, p_value=0.2), *TWO_LOOKS_HISTORY[2:]])
    assert (kept.starting_rate, kept.rate_source) == (0.03, "below_bound")
    stopped = make_report(HISTORY[:1])
    assert (stopped.starting_rate, stopped.rate_source) == (0.03, "below_bound")
    # The look has a rate all the same, which nobody used.
    fallback = make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH])
    assert (fallback.starting_rate, fallback.rate_source) == (5e-5, "training_arguments")
    bound = make_report([start("first_update_bound", 0.2), *HISTORY[2:]])
    assert (bound.starting_rate, bound.rate_source) == (0.2, "first_update_bound")
    # As releases without looks left it in a checkpoint.
    before = make_report([start("search", 0.2)])
    assert (before.starting_rate, before.rate_source) == (0.2, "search")
    # A given rate is not in the history, whose first entry may already have lowered it.
    given = make_report([entry(60, "decay", learning_rate=0.1)], config=GIVEN)
    assert (given.starting_rate, given.rate_source) == (0.7, "given")
    # Nor is it used where a checkpoint of a run without ExpTest goes on.
    taken_over = make_report([start("checkpoint", 0.02)], config=GIVEN)
    assert (taken_over.starting_rate, taken_over.rate_source) == (0.02, "checkpoint")


def test_rate_at_a_step_is_the_one_decided_on_before():
    assert [make_report().rate_at(step) for step in (0, 9, 10, 59, 60, 100)] == [0.03, 0.03, 0.3, 0.3, 0.1, 0.1]
    assert [make_report(FALLBACK_HISTORY).rate_at(step) for step in (9, 10)] == [0.03, 5e-5]
    twice = make_report(TWO_LOOKS_HISTORY)
    assert [twice.rate_at(step) for step in (59, 60)] == [0.3, 0.1]
    given = make_report([entry(60, "decay", learning_rate=0.1)], config=GIVEN)
    assert [given.rate_at(step) for step in (59, 60)] == [0.7, 0.1]


def test_a_report_without_a_start_goes_by_the_log():
    # Resumed without a rate from a checkpoint whose rate was given: no entry says it, and no training may end by that.
    resumed = make_report([])
    assert (resumed.starting_rate, resumed.rate_source) == (0.3, "checkpoint")
    assert resumed.summary().startswith("Training started from the learning rate of a checkpoint, 0.3")
    assert math.isnan(dataclasses.replace(resumed, steps=[], losses=[], learning_rates=[]).starting_rate)


def test_summary_says_how_the_rate_was_found():
    lines = make_report(searches=[SEARCH]).summary().splitlines()
    assert lines[:2] == [
        "ExpTest found the learning rate 0.3 while training at step 10.",
        "At step 10 of 100 it tried rates on the weights of the run (rate until then 0.03, upper bound 0.9):",
    ]
    assert [line.split(maxsplit=2) for line in lines[3:8]] == [
        ["9.00e-01", "4", "diverged"],
        ["3.00e-01", "24", "0.5000"],
        ["1.00e-01", "24", "0.5625"],
        ["3.00e-02", "24", "0.7188"],
        ["untouched", "0", "0.7500"],
    ]
    assert lines[8:10] == [
        "The best of them ends lower than the untouched model (p = 0.002); carried over from 24 steps to the 90 that"
        " were left, it gives 0.3.",
        "The look took 96 steps in 12 s, 20 of them for the upper bound; then the model was put back as it was.",
    ]


def test_summary_says_how_far_a_training_came_that_is_not_at_its_end():
    found = make_report(searches=[SEARCH])
    lines = dataclasses.replace(found, num_steps_made=18).summary().splitlines()
    assert lines.pop(1) == "Training has made 18 of 100 steps."
    assert lines == found.summary().splitlines()
    assert dataclasses.replace(found, num_steps_made=100).summary() == found.summary()
    # The steps of a finder are undone.
    assert dataclasses.replace(look_alone(), num_steps_made=10).summary() == look_alone().summary()


@pytest.mark.parametrize(("stop", "words"), [(12, ["Training has made 12 of 40 steps."]), (40, [])])
def test_a_training_that_was_stopped_says_so(tmp_path, stop, words):
    make_trainer(tmp_path, [ExpTestCallback(), StopAt(stop)]).train()
    assert [line for line in Report.load(tmp_path).summary().splitlines() if "has made" in line] == words


def test_files_of_before_do_not_say_how_far_a_training_came(tmp_path):
    dataclasses.replace(make_report(), num_steps_made=18).save(tmp_path)
    file = tmp_path / "exptest.json"
    values = json.loads(file.read_text())
    assert values.pop("num_steps_made") == 18
    file.write_text(json.dumps(values))
    assert Report.load(tmp_path) == make_report()
    assert not Report.load(tmp_path).is_unfinished


def test_summary_has_each_look():
    lines = make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH]).summary().splitlines()
    assert lines[0] == "ExpTest found the learning rate 0.3 while training at step 10."
    assert lines[1:10] == make_report(searches=[SEARCH]).summary().splitlines()[1:10]
    assert lines[10] == "At step 60 of 100 it tried rates on the weights of the run (rate until then 0.3):"
    assert [line.split() for line in lines[12:16]] == [
        ["9.00e-01", "14", "0.6250"],
        ["3.00e-01", "14", "0.5000"],
        ["1.00e-01", "14", "0.4375"],
        ["untouched", "0", "0.5625"],
    ]
    assert lines[16:] == [
        "The best of them ends lower than the rate until then, 0.3 (p = 0.01); carried over from 14 steps to the 40"
        " that were left, it gives 0.1.",
        "The look took 42 steps in 4 s; then the model was put back as it was.",
        "Decisions:",
        "    starts with learning rate 0.03 (a thirtieth of the upper bound)",
        "    step 10: a look finds a higher rate better (p = 0.002): learning rate 0.03 -> 0.3",
        "    step 20: loss still falls (p = 0.01 over 20 steps): learning rate stays 0.3",
        "    step 40: too few or too noisy losses to tell whether the loss falls (p = 0.2 over 20 steps):"
        " learning rate stays 0.3",
        "    step 60: loss no longer falls, time for a look (p = 0.4 over 20 steps): learning rate stays 0.3",
        "    step 60: a look finds a lower rate better (p = 0.01): learning rate 0.3 -> 0.1",
    ]


@pytest.mark.parametrize(
    ("search", "rival"),
    [
        (dataclasses.replace(SEARCH, learning_rate=0.03, p_value=0.2), "the untouched model"),
        (dataclasses.replace(LATER_SEARCH, learning_rate=0.3, p_value=0.2), "the rate until then, 0.3"),
    ],
)
def test_summary_of_a_look_that_keeps_the_rate_gives_none(search, rival):
    history = [start("below_bound", learning_rate=0.03), look(10, "keep", learning_rate=0.03, p_value=0.2)]
    lines = make_report(history, [search]).summary().splitlines()
    assert "Training went on with a thirtieth of the upper bound along the first update, 0.03." in lines[0]
    (result,) = [line for line in lines if "p = 0.2" in line and not line.startswith(" ")]
    assert result == f"None ends lower than {rival} by more than chance (p = 0.2)."
    assert lines[-1] == "    step 10: a look finds no other rate better (p = 0.2): learning rate stays 0.03"


def test_a_look_that_finds_the_present_rate_has_found_one():
    search = dataclasses.replace(SEARCH, previous_rate=0.03, learning_rate=0.03, p_value=1e-10)
    history = [start("below_bound", learning_rate=0.03), look(10, "keep", learning_rate=0.03, p_value=1e-10)]
    report = make_report(history, [search])
    assert (report.starting_rate, report.rate_source) == (0.03, "search")
    lines = report.summary().splitlines()
    assert lines[0] == "ExpTest found the learning rate 0.03 while training at step 10."
    (result,) = [line for line in lines if line.startswith("The best of them")]
    assert result.startswith("The best of them ends lower than the untouched model (p = 1e-10); carried over from ")
    assert result.endswith(" that were left, it gives 0.03.")


def test_a_rate_that_was_moved_was_found_whatever_the_level_is_now():
    report = dataclasses.replace(make_report(searches=[SEARCH]), config=ExpTestConfig(alpha=1e-9))
    assert SEARCH.p_value > 1e-9
    assert (report.starting_rate, report.rate_source) == (0.3, "search")
    assert "The best of them ends lower than the untouched model" in report.summary()


def test_summary_of_an_inconclusive_look_after_which_the_rate_stays_claims_none():
    search = dataclasses.replace(INCONCLUSIVE_SEARCH, learning_rate=0.03, p_value=0.9)
    history = [start("below_bound", learning_rate=0.03), look(10, "keep", learning_rate=0.03, p_value=0.9)]
    lines = make_report(history, [search]).summary().splitlines()
    assert lines[0] == (
        "ExpTest tried 4 learning rates and found none that lowers the loss on held-out batches significantly."
        " Training went on with a thirtieth of the upper bound along the first update, 0.03."
    )
    assert lines[8:10] == [
        "The look took 96 steps in 12 s, 20 of them for the upper bound; then the model was put back as it was.",
        "Decisions:",
    ]


def test_summary_of_a_resumed_run_tells_of_the_look_and_of_the_checkpoint():
    lines = make_report([start("checkpoint", 0.1)], [SEARCH]).summary().splitlines()
    assert lines[0] == (
        "ExpTest found the learning rate 0.3 while training at step 10."
        " Training went on with the learning rate of a checkpoint, 0.1."
    )
    assert lines[8].endswith("it gives 0.3.")


def test_summary_lists_every_decision():
    lines = make_report(searches=[SEARCH]).summary().splitlines()
    assert lines[10:] == [
        "Decisions:",
        "    starts with learning rate 0.03 (a thirtieth of the upper bound)",
        "    step 10: a look finds a higher rate better (p = 0.002): learning rate 0.03 -> 0.3",
        "    step 20: loss still falls (p = 0.01 over 20 steps): learning rate stays 0.3",
        "    step 40: loss still falls (p = 0.01 over 20 steps): learning rate stays 0.3",
        "    step 60: loss no longer falls (p = 0.4 over 20 steps): learning rate 0.3 -> 0.1",
    ]


def test_summary_of_an_inconclusive_search_claims_no_rate():
    summary = make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH]).summary()
    lines = summary.splitlines()
    assert lines[0] == (
        "ExpTest tried 4 learning rates and found none that lowers the loss on held-out batches significantly."
        " Training went on with TrainingArguments.learning_rate, 5e-05."
    )
    rates = [line.split()[0] for line in lines[3:8]]
    assert rates == ["9.00e-01", "3.00e-01", "1.00e-01", "3.00e-02", "untouched"]
    assert lines[8:] == [
        "The look took 96 steps in 12 s, 20 of them for the upper bound; then the model was put back as it was.",
        "Decisions:",
        "    starts with learning rate 0.03 (a thirtieth of the upper bound)",
        "    step 10: goes on with learning rate 5e-05 (TrainingArguments.learning_rate)",
    ]


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (
            make_report(FALLBACK_HISTORY),
            "Training started from TrainingArguments.learning_rate, 5e-05: there was no look at other rates.",
        ),
        (
            make_report([start("first_update_bound", 0.2)]),
            "Training started from the upper bound along the first update, 0.2: there was no look at other rates.",
        ),
        (
            make_report([start("below_bound", 0.02)]),
            "Training started from a thirtieth of the upper bound along the first update, 0.02: there was no look at"
            " other rates.",
        ),
        (
            make_report([start("checkpoint", 0.02)]),
            "Training started from the learning rate of a checkpoint, 0.02: there was no look at other rates.",
        ),
        # Resumed from a checkpoint that does not tell of the look.
        (make_report(), "ExpTest found the learning rate 0.3 while training."),
        (
            make_report([], config=GIVEN),
            "Training started from the given learning rate, 0.7: there was no look at other rates.",
        ),
    ],
)
def test_summary_without_a_look(report, sentence):
    assert report.summary().splitlines()[0] == sentence


def test_summary_without_decisions():
    assert make_report([], config=GIVEN).summary().splitlines()[1:] == ["No test was made while training."]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"decision": "start", "test": "first_update_bound"},
            "step 400: goes on with learning rate 0.1 (the upper bound)",
        ),
        (
            {"decision": "detected", "test": "exponential_decay"},
            "step 400: loss decays exponentially (p = 0.31 over 120 steps): learning rate stays 0.1",
        ),
        (
            {"decision": "decay", "test": "exponential_decay"},
            "step 400: loss does not decay exponentially (p = 0.31 over 120 steps): learning rate 0.3 -> 0.1",
        ),
        ({"decision": "continue"}, "step 400: loss still falls (p = 0.31 over 120 steps): learning rate stays 0.1"),
        (
            {"decision": "undecided", "left_out": 2},
            "step 400: too few or too noisy losses to tell whether the loss falls (p = 0.31 over 120 steps, 2 left"
            " out): learning rate stays 0.1",
        ),
        (
            {"decision": "look"},
            "step 400: loss no longer falls, time for a look (p = 0.31 over 120 steps): learning rate stays 0.1",
        ),
        (
            {"decision": "raise", "test": "look", "learning_rate": 0.9},
            "step 400: a look finds a higher rate better (p = 0.31): learning rate 0.3 -> 0.9",
        ),
        (
            {"decision": "lower", "test": "look"},
            "step 400: a look finds a lower rate better (p = 0.31): learning rate 0.3 -> 0.1",
        ),
        (
            {"decision": "keep", "test": "look", "learning_rate": 0.3},
            "step 400: a look finds no other rate better (p = 0.31): learning rate stays 0.3",
        ),
        (
            {"decision": "start", "test": "training_arguments", "p_value": None},
            "step 400: goes on with learning rate 0.1 (TrainingArguments.learning_rate)",
        ),
        (
            {"decision": "start", "test": "below_bound", "step": 0},
            "starts with learning rate 0.1 (a thirtieth of the upper bound)",
        ),
    ],
)
def test_decisions_in_words(changes, text):
    last = {**entry(400, "decay", learning_rate=0.1, p_value=0.31, window=120), **changes}
    assert describe(last, look(10, "raise")) == text


def test_a_new_rate_without_the_one_before_is_told_alone():
    assert describe(look(10, "raise")) == (
        "step 10: a look finds a higher rate better (p = 0.002): learning rate becomes 0.3"
    )


def test_log_values_are_of_the_last_test_on_a_window():
    assert log_values(TWO_LOOKS_HISTORY[:1], 0) == {"exptest_phase": 0, "exptest_decays": 0}
    values = log_values(TWO_LOOKS_HISTORY[:4], 2)
    assert values == {"exptest_phase": 2, "exptest_decays": 0, "exptest_p_value": 0.2, "exptest_window": 20}
    # A look's p-value is of another test, and it has no window.
    assert log_values(TWO_LOOKS_HISTORY, 2)["exptest_window"] == 20
    assert log_values(HISTORY, 3)["exptest_decays"] == 1


def test_divergence_in_words():
    last = entry(7, "decay", learning_rate=0.1, test="divergence", p_value=1.0, window=0)
    assert describe(last, start("given")) == (
        "step 7: loss is not finite, so the weights may be lost: learning rate 0.3 -> 0.1"
    )


def test_smoothed_losses_average_a_twentieth_around_each_point():
    losses = np.random.default_rng(0).normal(size=80).tolist()
    expected = [np.mean([losses[j] for j in range(80) if abs(i - j) <= 2]) for i in range(80)]
    np.testing.assert_allclose(make_report(losses=losses).smoothed_losses, expected)


def test_smoothed_losses_of_a_few_points_are_the_losses():
    assert make_report(losses=[3.0, 1.0, 2.0]).smoothed_losses == [3.0, 1.0, 2.0]
    assert make_report(losses=[]).smoothed_losses == []


def test_report_survives_its_file(tmp_path):
    report = make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH], losses=[*LOSSES[:-1], float("inf")])
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report
    assert loaded.summary() == report.summary()
    assert loaded.searches == [SEARCH, LATER_SEARCH]
    assert loaded.search == SEARCH
    assert [search.is_conclusive for search in loaded.searches] == [True, True]
    assert make_report().search is None
    assert "Infinity" not in (tmp_path / "exptest.json").read_text()


def test_files_of_version_4_have_no_setup(tmp_path):
    make_report(searches=[SEARCH]).save(tmp_path)
    file = tmp_path / "exptest.json"
    values = json.loads(file.read_text())
    del values["setup"], values["config"]["reuse"]
    file.write_text(json.dumps({**values, "version": 4}))
    assert Report.load(tmp_path) == make_report(searches=[SEARCH])
    assert Report.load(tmp_path).setup == {}


def test_the_file_itself_can_be_named(tmp_path):
    make_report().save(tmp_path)
    (tmp_path / "exptest.json").rename(tmp_path / "first.json")
    assert Report.load(tmp_path / "first.json") == make_report()
    with pytest.raises(ValueError, match=r"second\.json' has no exptest\.json"):
        Report.load(tmp_path / "second.json")


def test_a_look_alone_has_its_rate_and_no_decisions(tmp_path):
    report = look_alone()
    assert report.is_look_alone
    assert (report.starting_rate, report.rate_source, report.rate_at(50)) == (0.3, "search", 0.3)
    lines = report.summary().splitlines()
    assert lines[0] == "ExpTest found the learning rate 0.3, and trained nothing."
    assert lines[1:] == make_report(searches=[SEARCH]).summary().splitlines()[1:10]
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    assert not any(run.is_look_alone for run in (make_report(searches=[SEARCH]), make_report([], config=GIVEN)))


@pytest.mark.parametrize(
    ("search", "last"),
    [
        (INCONCLUSIVE_SEARCH, "The look took 96 steps"),
        # Conclusive at 5 %, but not at the level that the user asked for.
        (
            dataclasses.replace(SEARCH, trials=[*3 * [SEARCH.trials[0]], SEARCH.trials[3]], alpha=1e-3),
            "The look took 96 steps",
        ),
    ],
)
def test_a_look_alone_that_found_nothing_has_no_rate(search, last):
    report = look_alone(search)
    assert (math.isnan(report.starting_rate), report.rate_source) == (True, "search")
    lines = report.summary().splitlines()
    assert lines[0] == "ExpTest tried 4 learning rates and found none that is better."
    assert lines[-1].startswith(last)
    assert "trained" not in report.summary()


def test_a_reused_rate_names_its_file():
    report = make_report([start("reused", 0.3)], config=dataclasses.replace(GIVEN, learning_rate=0.3, reuse="found"))
    assert (report.starting_rate, report.rate_source) == (0.3, "reused")
    assert report.summary().splitlines() == [
        "Training started from the learning rate of an earlier run (found), 0.3: there was no look at other rates.",
        "Decisions:",
        "    starts with learning rate 0.3 (reused)",
    ]
    # Resumed without naming the file again.
    assert "of an earlier run, 0.3" in dataclasses.replace(report, config=GIVEN).summary()


def change(values, *path, **changes):
    """The values of a report with some of those at `path` changed, or taken out where the new one is `None`."""
    for key in path:
        values = values[key]
    values.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del values[key]


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ((), {"version": 99}, "it has version 99; this release reads versions 4 and 5"),
        ((), {"version": None}, "it has version None"),
        ((), {"losses": None}, "'losses'"),
        ((), {"searches": None}, "'searches'"),
        ((), {"num_training_steps": None}, "'num_training_steps'"),
        # A report holds no paths, so there are none to follow.
        ((), {"figure": "../../secret.png"}, "'figure'"),
        ((), {"steps": [1, 2]}, r"\[2, 100, 100\] steps, losses and learning rates"),
        (("searches", 0), {"previous_rate": None}, "'previous_rate'"),
        (("searches", 0, "trials", 1), {"momentum": 0.9}, "'momentum'"),
        (("config",), {"momentum": 0.9}, r"Unknown ExpTest settings \['momentum'\]"),
        (("config",), {"alpha": 2.0}, "alpha=2.0"),
        (("config",), {"learning_rate": -1.0}, "learning_rate=-1.0"),
        ((), {"setup": 3}, "'int' object is not iterable"),
        (("history", 0), {"test": "oracle"}, "a learning rate from 'oracle', not one of"),
        (("history", 1), {"p_value": None, "window": None}, r"history lacks \['p_value', 'window'\]"),
    ],
)
def test_reports_with_other_keys_or_values_are_refused(tmp_path, path, changes, message):
    make_report(searches=[SEARCH]).save(tmp_path)
    file = tmp_path / "exptest.json"
    values = json.loads(file.read_text())
    change(values, *path, **changes)
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read: .*" + message):
        Report.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_reports_are_refused(tmp_path, share):
    make_report(searches=[SEARCH]).save(tmp_path)
    file = tmp_path / "exptest.json"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read: .*line"):
        Report.load(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"7", b"\x80\x04\x95pickle", b'{"version": 1}'])
def test_other_files_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"has no exptest\.json"):
        Report.load(tmp_path)
    (tmp_path / "exptest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read"):
        Report.load(tmp_path)


def test_search_survives_as_plain_values():
    diverged = dataclasses.replace(SEARCH.trials[3], curve=[0.75, math.inf])
    search = dataclasses.replace(SEARCH, untouched_losses=[math.inf] * 12, trials=[*SEARCH.trials[:3], diverged])
    values = json.loads(json.dumps(search_to_dict(search), allow_nan=False))
    assert values["trials"][3]["end_losses"] == [None] * 12
    assert values["trials"][3]["curve"] == [0.75, None]
    assert search_from_dict(values) == search
    assert search_from_dict(json.loads(json.dumps(search_to_dict(LATER_SEARCH)))) == LATER_SEARCH


FOUND = make_report(searches=[SEARCH])


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.figures
def test_write_leaves_both_files(tmp_path, caplog):
    write(FOUND, tmp_path / "new", with_figure=True)
    assert names(tmp_path / "new") == {"exptest.json", "exptest.png"}
    assert caplog.messages == []


def test_write_leaves_no_figure_at_a_save(tmp_path):
    write(FOUND, tmp_path, with_figure=False)
    assert names(tmp_path) == {"exptest.json"}


@pytest.mark.figures
def test_a_look_alone_has_a_figure(tmp_path):
    write(look_alone(), tmp_path, with_figure=True)
    assert names(tmp_path) == {"exptest.json", "exptest.png"}
    assert look_alone().plot().get_title() == "Look at step 10 (p = 0.002)"
    assert len(look_alone().plot().figure.axes) == 1


@pytest.mark.figures
@pytest.mark.parametrize("with_figure", [True, False])
def test_folder_that_cannot_be_written_costs_a_warning_a_file(tmp_path, caplog, with_figure):
    # A file is in its place: what is read-only for others is not so for root.
    folder = tmp_path / "file"
    folder.write_text("")
    write(FOUND, folder, with_figure=with_figure)
    files = ["exptest.json", "exptest.png"] if with_figure else ["exptest.json"]
    assert [message.split(": ")[0] for message in caplog.messages] == [
        f"ExpTest could not write '{folder / file}'" for file in files
    ]
    assert "FileExistsError" in caplog.messages[0]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.figures
def test_full_disk_keeps_older_files(tmp_path, caplog, monkeypatch):
    write(FOUND, tmp_path, with_figure=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: write_half(path))
    write(make_report(FALLBACK_HISTORY), tmp_path, with_figure=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert Report.load(tmp_path) == FOUND
    assert caplog.messages == [
        f"ExpTest could not write '{tmp_path / name}': OSError: [Errno 28] No space left on device"
        for name in ("exptest.json", "exptest.png")
    ]


@pytest.mark.figures
def test_figure_that_cannot_be_drawn_costs_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hf_exptest.figure.draw", lambda report, path: 1 / 0)
    write(FOUND, tmp_path, with_figure=True)
    assert names(tmp_path) == {"exptest.json"}
    (message,) = caplog.messages
    assert message == f"ExpTest could not write '{tmp_path / 'exptest.png'}': ZeroDivisionError: division by zero"


@pytest.mark.figures
def test_a_look_has_a_figure_where_no_loss_was_logged(tmp_path):
    write(dataclasses.replace(FOUND, steps=[], losses=[], learning_rates=[]), tmp_path, with_figure=True)
    assert names(tmp_path) == {"exptest.json", "exptest.png"}


@pytest.mark.figures
def test_without_matplotlib_or_anything_to_draw_there_is_no_figure(tmp_path, caplog, monkeypatch):
    write(dataclasses.replace(make_report(), steps=[], losses=[], learning_rates=[]), tmp_path, with_figure=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write(FOUND, tmp_path, with_figure=True)
    assert names(tmp_path) == {"exptest.json"}
    assert caplog.messages == []


@pytest.mark.figures
def test_a_training_leaves_a_report_and_logs_its_numbers(tmp_path, capsys):
    class Reporter(TrainerCallback):
        """What TensorBoard and the others get."""

        def __init__(self):
            self.rows = []

        def on_log(self, args, state, control, logs, **kwargs):
            self.rows.append(dict(logs))

    callback, reporter = ExpTestCallback(), Reporter()
    make_trainer(tmp_path, [callback, reporter], max_steps=200).train()
    rows = [row for row in reporter.rows if "loss" in row]
    assert len(rows) == 200
    # A row is logged after its step, when the scheduler already speaks of the next one.
    assert [row["exptest_phase"] for row in rows] == [0] * 19 + [2] * 40 + [3] * 141
    began, looked, tested = callback.history
    assert [(entry["step"], entry["test"]) for entry in callback.history] == [
        (0, "below_bound"),
        (20, "look"),
        (60, "slope"),
    ]
    assert [row["exptest_decays"] for row in rows] == [0] * 59 + [tested["decision"] == "decay"] * 141
    assert not any("exptest_p_value" in row or "exptest_window" in row for row in rows[:59])
    assert [row["exptest_p_value"] for row in rows[59:]] == [tested["p_value"]] * 141
    assert [row["exptest_window"] for row in rows[59:]] == [40] * 141
    assert all(isinstance(value, (int, float)) for row in rows for value in row.values())
    report = Report.load(tmp_path)
    assert report == callback.report()
    assert report.steps == list(range(1, 201))
    assert report.searches == [callback.search]
    assert report.starting_rate == looked["learning_rate"] == callback.search.learning_rate > began["learning_rate"]
    assert plt.imread(tmp_path / "exptest.png").shape[:2] == (750, 1650)

    capsys.readouterr()
    main(["show", str(tmp_path)])
    assert capsys.readouterr().out.rstrip() == report.summary()
    main(["plot", str(tmp_path), "--output", str(tmp_path / "again.png")])
    assert plt.imread(tmp_path / "again.png").shape[:2] == (750, 1650)
