# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Takes one protection out of the package at a time, and asks whether a test notices.

    python tests/mutations.py [WORD ...]

works on a copy, with the mutants whose names contain one of the words, or all; ends with an error if one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is lost, the file, the code, what takes its place, and the tests that should fail.
MUTANTS = [
    (
        "spikes are left out of a test",
        "statistics.py",
        "values[1:-1] - np.maximum(values[:-2], values[2:]) > 2 * (rest.max() - rest.min())",
        "False",
        "tests/test_faults.py -k one_bad_loss",
    ),
    (
        "one loss that is not finite is no divergence",
        "controller.py",
        "\nDIVERGED_AFTER = 2",
        "\nDIVERGED_AFTER = 1",
        "tests/test_faults.py -k one_bad_loss",
    ),
    (
        "the rate stays positive however often it is lowered",
        "controller.py",
        "max(self.config.beta * self.learning_rate, _LOWEST_RATE)",
        "self.config.beta * self.learning_rate",
        "tests/test_properties.py -k never_rises",
    ),
    (
        "a resumed run does not search again",
        "callback.py",
        "        elif scheduler.last_epoch == 0 and self.config.learning_rate is None:\n",
        "        elif self.config.learning_rate is None:\n",
        "tests/test_resume.py -k not_looked",
    ),
    (
        "losses not yet reduced are in the checkpoint",
        "scheduler.py",
        '"buffer": _stack(self._buffer).tolist() if self._buffer else []',
        '"buffer": []',
        "tests/test_scheduler.py -k resume",
    ),
    (
        "a trial's loss does not tell of the lag of running averages",
        "stage.py",
        "        elif self._batch_norms:\n",
        "        elif False:\n",
        "tests/test_search.py -k lag",
    ),
    (
        "running averages that the user froze are kept",
        "stage.py",
        "isinstance(m, _BatchNorm) and m.training and m.track_running_stats",
        "isinstance(m, _BatchNorm) and m.track_running_stats",
        "tests/test_search.py -k lag",
    ),
    (
        "in fine-tuning, a rate that may have had luck is lowered once",
        "search.py",
        "    if reading.is_fine_tuning:\n",
        "    if False:\n",
        "tests/test_search.py -k luck",
    ),
    (
        "an error in the search restores the model",
        "snapshot.py",
        "        self.reset()\n        if self._engine",
        "        if exc is None:\n            self.reset()\n        if self._engine",
        "tests/test_search_faults.py -k training_goes_on",
    ),
    (
        "attributes and items come back before each trial",
        "snapshot.py",
        "        self.places.restore()\n        self._tensors",
        "        self._tensors",
        "tests/test_put_back.py -k same_counters",
    ),
    (
        "new attributes go",
        "places.py",
        "        del mapping[key]\n",
        "        pass\n",
        "tests/test_put_back.py -k counters",
    ),
    (
        "counters that are iterators come back",
        "places.py",
        "_copy(self._copies[i]) if i in self._copies else value for",
        "value for",
        "tests/test_put_back.py -k counters",
    ),
    (
        "what the optimizer holds comes back",
        "snapshot.py",
        'places.add("optimizer", getattr(trainer.optimizer',
        "places.skip(getattr(trainer.optimizer",
        "tests/test_put_back.py -k lookahead",
    ),
    (
        "what the Trainer holds comes back",
        "snapshot.py",
        "    for owner in (trainer, trainer.state, trainer.control):\n",
        "    for owner in (trainer.state, trainer.control):\n",
        "tests/test_put_back.py -k average",
    ),
    (
        "what is frozen and small is copied",
        "snapshot.py",
        "_SPARE_BYTES = 2**25",
        "_SPARE_BYTES = -(2**25)",
        "tests/test_put_back.py -k teacher",
    ),
    (
        "what is large and integer is not copied",
        "snapshot.py",
        "if is_weight or size > room:",
        "if size > room:",
        "tests/test_put_back.py -k not_copied",
    ),
    (
        "what was not copied and has changed is named",
        "snapshot.py",
        "        if changed:\n            raise NotRestored(",
        "        if False:\n            raise NotRestored(",
        "tests/test_put_back.py -k is_named",
    ),
    (
        "resized tensors come back",
        "snapshot.py",
        "    if here.shape != saved.shape or here.dtype != saved.dtype:\n        # Resized",
        "    if False:\n        # Resized",
        "tests/test_put_back.py -k buffers",
    ),
    (
        "expanded tensors are not written to",
        "snapshot.py",
        "    elif not _is_expanded(here):\n",
        "    elif True:\n",
        "tests/test_put_back.py -k buffers",
    ),
    (
        "generators of the data come back",
        "snapshot.py",
        "        places.add(name, source, is_data=True)\n",
        "        places.skip(source)\n",
        "tests/test_put_back.py -k generator",
    ),
    (
        "generators in closures come back",
        "places.py",
        "            values = dict(_closure(value)) | dict",
        "            values = dict",
        "tests/test_put_back.py -k closure",
    ),
    (
        "random states of other devices come back",
        "snapshot.py",
        "for kind in dict.fromkeys((device.type, *_DEVICES)):",
        'for kind in ["cuda"]:',
        "tests/test_put_back.py -k every_device",
    ),
    (
        "data that can be read only once are not searched on",
        "stage.py",
        "return is_stream and iter(dataset) is iter(dataset)",
        "return False",
        "tests/test_search.py -k one_shot",
    ),
    (
        "sources that can be read only once are noticed",
        "stage.py",
        "    if snapshot.places.consumable:\n",
        "    if False:\n",
        "tests/test_put_back.py -k noticed",
    ),
    (
        "the search cannot stop a training",
        "look.py",
        "            if is_out_of_memory(error) or trainer.accelerator.num_processes > 1:\n",
        "            if True:\n",
        "tests/test_search_faults.py -k training_goes_on",
    ),
    (
        "want of memory is for auto_find_batch_size to see",
        "look.py",
        "            if is_out_of_memory(error) or trainer.accelerator.num_processes > 1:\n",
        "            if trainer.accelerator.num_processes > 1:\n",
        "tests/test_search_faults.py -k want_of_memory_ends",
    ),
    (
        "an error on one of several processes is not hidden",
        "look.py",
        "            if is_out_of_memory(error) or trainer.accelerator.num_processes > 1:\n",
        "            if is_out_of_memory(error):\n",
        "tests/test_search_faults.py -k several_processes",
    ),
    (
        "batches are handed out as copies",
        "stage.py",
        "send_to_device(copy.deepcopy(batch), self._trainer.args.device)",
        "send_to_device(batch, self._trainer.args.device)",
        "tests/test_invisible.py -k inputs_up",
    ),
    (
        "losses that exist only in training mode",
        "stage.py",
        "        self._model.train(self._in_training_mode)\n",
        "        self._model.train(False)\n",
        "tests/test_invisible.py -k only_in_training",
    ),
    (
        "a loss beside one of zero is no divergence",
        "stage.py",
        "> max(size, 4 * spread)",
        "> size",
        "tests/test_invisible.py -k beside",
    ),
    (
        "a first batch without a gradient says nothing",
        "look.py",
        "        return _bound(trainer, num_batches=64)\n",
        "        raise\n",
        "tests/test_invisible.py -k without_a_loss",
    ),
    (
        "the bound has no floor",
        "bounds.py",
        "    for exponent in range(-9, -31, -1):\n",
        "    for exponent in ():\n",
        "tests/test_invisible.py -k no_floor",
    ),
    (
        "rounding noise does not end the ladder of the bound",
        "bounds.py",
        "        if tried[10.0**exponent] > start + 0.5 * abs(start):\n",
        "        if tried[10.0**exponent] > start:\n",
        "tests/test_search.py -k rounding",
    ),
    (
        "of rates that all but bring a loss to zero the lowest is the bound",
        "bounds.py",
        "(levels[distance], distance)",
        "(tried[distance], distance)",
        "tests/test_search.py -k rounding_raises",
    ),
    (
        "a model that hardly moves is being fine-tuned",
        "search.py",
        "_LITTLE_MOVEMENT = 0.1",
        "_LITTLE_MOVEMENT = 0.0",
        "tests/test_search.py -k hardly",
    ),
    (
        "new weights that hardly move are not being fine-tuned",
        "search.py",
        "is_fine_tuning=not from_scratch and ",
        "is_fine_tuning=",
        "tests/test_search.py -k hardly",
    ),
    (
        "a later look lowers by a third at most",
        "search.py",
        "if not is_start and trials[-1].end_loss",
        "if False and trials[-1].end_loss",
        "tests/test_search.py -k third_at_most",
    ),
    (
        "a third of biases and norms that are all the same are those of new weights",
        "look.py",
        "_FRESH_SHARE = 0.3",
        "_FRESH_SHARE = 0.5",
        "tests/test_search.py -k trained_before",
    ),
    (
        "ties are ties",
        "bounds.py",
        "\nTIE = 1e-3",
        "\nTIE = 0.0",
        "tests/test_search.py -k next_to",
    ),
    (
        "an inconclusive look goes on with the user's rate",
        "look.py",
        "        if bound is not None and not found.is_conclusive:\n",
        "        if False:\n",
        "tests/test_search.py -k inconclusive",
    ),
    (
        "a checkpoint keeps the looks",
        "scheduler.py",
        '            "searches": self.searches,\n',
        '            "searches": [],\n',
        "tests/test_invisible.py -k resumed",
    ),
    (
        "a checkpoint keeps the bound, for the look that is to come",
        "scheduler.py",
        '            "bound": self.bound,\n',
        '            "bound": None,\n',
        "tests/test_resume.py -k with_a_look",
    ),
    (
        "a look moves on evidence only",
        "search.py",
        "    if p_value < config.alpha:\n",
        "    if True:\n",
        "tests/test_search.py -k evidence",
    ),
    (
        "looks stay within their budget",
        "search.py",
        "    while len(trials) < 3 or stage.num_steps + length <= budget:\n",
        "    while True:\n",
        "tests/test_search.py -k within",
    ),
    (
        "of rates that end equally, a look goes to the lower ones",
        "search.py",
        "    return min(reading.vertex, reading.highest) * horizon",
        "    return reading.vertex * horizon",
        "tests/test_search.py -k equally",
    ),
    (
        "a diverged trial bends no parabola without limit",
        "search.py",
        "vertex([trial.learning_rate for trial in tried], _levelled_ends(tried, untouched))",
        "vertex([trial.learning_rate for trial in tried], [min(trial.end_loss, 1e9) for trial in tried])",
        "tests/test_search.py -k learnt_nothing",
    ),
    (
        "a raised rate is reached by a second warm-up",
        "controller.py",
        "        self._rise = (self.step, present) if learning_rate > present else None\n",
        "        self._rise = None\n",
        "tests/test_search.py -k second_warm_up",
    ),
    (
        "a look reads other batches than the run",
        "internals.py",
        "        sampler.initial_seed += _OTHER_SEED\n",
        "        pass\n",
        "tests/test_search.py -k other_batches",
    ),
    (
        "iterators of a running epoch are not moved",
        "snapshot.py",
        "        self.places.restore()\n        return self\n",
        "        return self\n",
        "tests/test_put_back.py -k iterator",
    ),
    (
        "iterators that stood in are gone",
        "places.py",
        "        self._restore(_Items.with_originals)\n",
        "        pass\n",
        "tests/test_put_back.py -k stand_in",
    ),
    (
        "a running loader with workers can be looked from",
        "snapshot.py",
        "        places.skip(iterator)\n",
        "        pass\n",
        "tests/test_put_back.py -k workers",
    ),
    (
        "gradients outside the model come back",
        "snapshot.py",
        "                copied.tensor.grad = copied.gradient\n",
        "                copied.tensor.grad = None\n",
        "tests/test_put_back.py -k weights",
    ),
    (
        "find_learning_rate undoes the steps up to its look",
        "finder.py",
        "            with undo:\n",
        "            with contextlib.nullcontext():\n",
        "tests/test_search.py -k what_a_run_finds",
    ),
    (
        "a report that fails stops nothing",
        "report.py",
        "    except Exception as error:\n        logger.warning(",
        "    except ZeroDivisionError as error:\n        logger.warning(",
        "tests/test_report.py tests/test_figure.py",
    ),
    (
        "the search keeps so many batches",
        "stage.py",
        "min(num_batches, MAX_BATCHES)",
        "num_batches",
        "tests/test_memory.py -k so_many_batches",
    ),
    (
        "the search keeps so many bytes",
        "stage.py",
        "if not batches or size <= MAX_BYTES:",
        "if True:",
        "tests/test_memory.py -k so_many_bytes",
    ),
    (
        "the loader of the search is released",
        "internals.py",
        "    kept[:] = [other for other in kept if other is not loader]\n",
        "",
        "tests/test_memory.py -k are_gone",
    ),
    (
        "nobody hears what is logged in the search",
        "internals.py",
        "    callbacks, handler.callbacks = handler.callbacks, []\n",
        "    callbacks = handler.callbacks\n",
        "tests/test_invisible.py -k not_heard",
    ),
    (
        "the times of training leave the search out",
        "callback.py",
        "                logs.update(_without_search(logs, seconds, num_steps))\n",
        "                pass\n",
        "tests/test_invisible.py -k times_of_training",
    ),
    (
        "find_learning_rate leaves no hook",
        "internals.py",
        "            handle.remove()\n",
        "            pass\n",
        "tests/test_invisible.py -k leaves_hooks",
    ),
    (
        "patches know their Trainer",
        "callback.py",
        "        self._trainer = trainer\n        self._scheduler = ExpTestScheduler(",
        "        self._scheduler = ExpTestScheduler(",
        "tests/test_invisible.py -k one_callback",
    ),
    (
        "a removed callback has no part",
        "callback.py",
        "        if not self._is_in(trainer):\n",
        "        if False:\n",
        "tests/test_invisible.py -k removed",
    ),
    (
        "a scheduler of a subclass is refused",
        "checks.py",
        "    _check_override(trainer)\n",
        "",
        "tests/test_invisible.py -k of_a_subclass",
    ),
    (
        "callbacks that change gradients take part",
        "stage.py",
        "            call_before_step(self._trainer, self._chosen)\n",
        "            pass\n",
        "tests/test_invisible.py -k take_part",
    ),
    (
        "a first group may be frozen",
        "scheduler.py",
        "return next(i for i, rate in enumerate(rates) if rate > 0)",
        "return 0",
        "tests/test_invisible.py -k frozen_group",
    ),
    (
        "a checkpoint without the scheduler goes on at its step",
        "callback.py",
        "if scheduler.last_epoch == 0 and state.global_step > 0:",
        "if False:",
        "tests/test_invisible.py -k goes_on_at_its_step",
    ),
    (
        "the switch before the script is for every Trainer",
        "training_args.py",
        "        vars(args).update(given)\n",
        "        pass\n",
        "tests/end_to_end/test_run.py -k makes_its_arguments_itself",
    ),
    (
        "a flag that nobody read is told",
        "run.py",
        "    if users or not is_asked or os.environ",
        "    if True or os.environ",
        "tests/test_launcher.py",
    ),
    (
        "a finder takes no rate",
        "run.py",
        "        refuse_starting_rate(flags)\n",
        "        pass\n",
        "tests/test_launcher.py -k takes_no_rate",
    ),
    (
        "flags without the switch are named",
        "training_args.py",
        "    if given and not args.exptest and",
        "    if False and",
        "tests/test_training_args.py -k without_the_switch",
    ),
    (
        "a resumed run does not tell its history again",
        "callback.py",
        "            self._num_reported = len(self.history)\n            if state",
        "            if state",
        "tests/test_resume.py -k tells_its_rate",
    ),
    (
        "a stopped training does not look finished",
        "callback.py",
        "        num_steps_made=trainer.state.global_step,\n",
        "",
        "tests/test_report.py -k stopped",
    ),
    (
        "what the thread of a callback does stays done",
        "snapshot.py",
        "    for callback in gradient_callbacks(callbacks):\n",
        "    for callback in callbacks:\n",
        "tests/test_put_back.py -k thread",
    ),
    (
        "what cannot be put back is an error",
        "snapshot.py",
        "        if self.places.failed:\n",
        "        if False:\n",
        "tests/test_put_back.py -k cannot_be_put_back_ends",
    ),
    (
        "what others fill can be read only once",
        "places.py",
        "        if is_data and type(value).__module__ in _CHANNELS:\n",
        "        if False:\n",
        "tests/test_put_back.py -k only_once",
    ),
    (
        "a cache forgets in the same order",
        "places.py",
        "    if not _is_same(mapping, keys):\n",
        "    if False:\n",
        "tests/test_put_back.py -k cache",
    ),
    (
        "a batch without labels is not held out",
        "stage.py",
        "        if has_loss.any():\n",
        "        if False:\n",
        "tests/test_search.py -k without_labels",
    ),
    (
        "a placeholder is no loss",
        "stage.py",
        "math.isfinite(loss) and loss != 0 for",
        "True for",
        "tests/test_search.py -k training_alone",
    ),
    (
        "where nobody gave a rate, a run keeps its start",
        "look.py",
        "not is_rate_given(trainer.args, scheduler.given_rate)",
        "False",
        "tests/test_search.py -k no_rate_was_given",
    ),
    (
        "a first look trusts no trial for one batch",
        "search.py",
        "_without_lucky_ones(trials, stage.untouched, config.alpha) if is_start else trials",
        "trials",
        "tests/test_search.py -k one_batch_alone",
    ),
    (
        "a training whose losses are not seen ends at once",
        "callback.py",
        "        if not self._sees_losses:\n",
        "        if False:\n",
        "tests/test_callback.py -k without_a_loss",
    ),
    (
        "processes that disagree say so",
        "processes.py",
        "    if others:\n",
        "    if False:\n",
        "tests/test_processes.py",
    ),
]


def survives(file: str, code: str, instead: str, tests: str) -> bool:
    """Whether the tests pass without the protection."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hf_exptest", "tests", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        path = Path(folder, "hf_exptest", file)
        text = path.read_text()
        assert text.count(code) == 1, f"{file} has changed: {code!r} is not in it once"
        path.write_text(text.replace(code, instead))
        # The copy comes before the installed package.
        environment = {**os.environ, "PYTHONPATH": folder}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        # 1: tests failed. Anything but that and 0 means that they did not run.
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode == 0


def main(words: list[str]) -> None:
    survivors = []
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant[0] for word in words)]
    for name, *mutant in chosen:
        is_alive = survives(*mutant)
        print(f"{'SURVIVED' if is_alive else 'noticed'}: without '{name}'", flush=True)
        survivors += [name] * is_alive
    if survivors:
        sys.exit(f"{len(survivors)} of {len(chosen)} protections can be taken out unnoticed.")


if __name__ == "__main__":
    main(sys.argv[1:])
