# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Run a training script as it is, with ExpTest.

Before the script, the switch turns ExpTest on for every Trainer that the script makes, whatever arguments it has:

    python -m hf_exptest.run --exptest their_script.py ...
    accelerate launch -m hf_exptest.run --exptest their_script.py ...
    torchrun --nproc_per_node 2 -m hf_exptest.run --exptest their_script.py ...
    accelerate launch -m hf_exptest.run --exptest -m their_package.their_module ...

After the script, it is for the script to read, with `HfArgumentParser` and `TrainingArguments` (or a subclass, such as
TRL's `SFTConfig`). `"exptest": true` in the script's own config file is read so too. Beside a config file that is the
script's one argument, the launcher takes the flags itself:

    python -m hf_exptest.run their_script.py --exptest ...
    python -m hf_exptest.run their_script.py config.json --exptest

With `--exptest` go, in the same place, `--exptest_alpha`, `--exptest_beta`, `--exptest_learning_rate`,
`--exptest_reuse`, `--exptest_search_budget` and `--exptest_preset`, which the script's own `--help` describes. Without
`--exptest` the script runs as ever.

To find the learning rate and train nothing, and to train with it as often as you like:

    python -m hf_exptest.run --find their_script.py ...
    python -m hf_exptest.run --exptest --exptest_reuse OUTPUT_DIR their_script.py ...

`--find` ends the script at the first `train()` of a Trainer, prints what each trial led to and the command that
trains with the rate, and leaves `exptest.json` and `exptest.png` in its output_dir. It takes some steps (the warm-up
and a look), and ends with code 0 if it found a rate. `--exptest_reuse` takes a file of `--find` or of a training, or
its folder; there is no look then, and a warning where model, optimizer, batch size or number of steps are others. A
training puts files of its own in the place of those of `--find`, unless it has another output_dir.

A command that starts new processes (`accelerate launch their_script.py`, `llamafactory-cli` with FORCE_TORCHRUN=1)
leaves the launcher behind. Let it start the launcher, as above; the commands of TRL hand it on:

    trl sft -m hf_exptest.run --exptest ...
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, Trainer

from .callback import ExpTestCallback
from .finder import find
from .report import write
from .training_args import ExpTestArgumentsMixin, add_flags_in_place, warn_of_missing_switch

_USAGE = "python -m hf_exptest.run [--exptest [--exptest_alpha ...] | --find] (script.py | -m module) ..."
_SWITCHES = ("--exptest", "--find", "-h", "--help")
# A finder's flags have no starting rate: it looks for one.
_STARTING_RATES = ("exptest_learning_rate", "exptest_reuse")
_CONFIGS = (".json", ".yaml", ".yml")


def split_at_script(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's own flags with their values, and the script, or `-m` and a module, with its arguments."""
    i = 0
    while i < len(arguments) and arguments[i].startswith("-") and arguments[i] != "-m":
        has_value = arguments[i] not in _SWITCHES and "=" not in arguments[i]
        i += 2 if has_value else 1
    return arguments[:i], arguments[i:]


def parse_flags(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Those of ExpTest's flags that are given, by name, and the arguments that are none."""
    dataclass_type: Any = ExpTestArgumentsMixin
    parser = HfArgumentParser(dataclass_type, prog="hf_exptest.run", usage=_USAGE, add_help=False, allow_abbrev=False)
    # Set already, so that argparse leaves the defaults out.
    unset = argparse.Namespace(**dict.fromkeys(field.name for field in fields(ExpTestArgumentsMixin)))
    namespace, others = parser.parse_known_args(arguments, unset)
    flags = {name: value for name, value in vars(namespace).items() if value is not None}
    try:
        # Also without the switch, bad values are refused before the script runs.
        ExpTestArgumentsMixin(**{**flags, "exptest": True})
    except ValueError as error:
        parser.error(str(error))
    return flags, others


def own_flags(arguments: list[str]) -> tuple[bool, dict[str, Any]]:
    """Whether there is `--find`, and the other flags, among `arguments`, which stand before the script."""
    is_finder = "--find" in arguments
    flags, unknown = parse_flags([argument for argument in arguments if argument != "--find"])
    if unknown:
        names = ", ".join(["--find", *(f"--{field.name}" for field in fields(ExpTestArgumentsMixin))])
        sys.exit(
            f"hf_exptest.run: {unknown[0]!r} is not a flag of the launcher, which has {names}; flags of the script"
            f" come after it; usage: {_USAGE}"
        )
    if arguments and not (is_finder or flags.get("exptest")):
        sys.exit(f"hf_exptest.run: {arguments[0]!r} before the script needs --exptest there too; usage: {_USAGE}")
    return is_finder, flags


def refuse_starting_rate(flags: dict[str, Any]) -> None:
    """End where the flags of a finder name a rate, which it would not use."""
    given = [f"--{name}" for name in _STARTING_RATES if flags.get(name) is not None]
    if given:
        sys.exit(f"hf_exptest.run: --find looks for a learning rate, and {given[0]} gives one; leave one of them out.")


def command_to_reuse(own: list[str], arguments: list[str], folder: str) -> str:
    """The command that trains, in place of that of the finder, with the rate that it left in `folder`."""
    settings = [argument for argument in own if argument not in ("--find", "--exptest")]
    parts = ["python", "-m", "hf_exptest.run", "--exptest", "--exptest_reuse", folder, *settings, *arguments]
    return shlex.join(parts)


def take_from_config(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """
    The flags that stand beside a config file and nothing else, and the arguments that are left for the script.

    A script looks for a config file only where it is the one argument.
    """
    configs = [argument for argument in arguments if argument.endswith(_CONFIGS)]
    others = [argument for argument in arguments if argument not in configs]
    if len(configs) == 1 and others:
        flags, unknown = parse_flags(others)
        if not unknown:
            return flags, configs
    return {}, arguments


def install(flags: dict[str, Any]) -> list[type]:
    """
    Let every new Trainer use ExpTest whose arguments ask for it; all arguments have `flags`, whatever they say.

    Returns:
        `list[type]`: gets the class of each Trainer that uses it.
    """
    add_flags_in_place(flags)
    users: list[type] = []
    init: Any = Trainer.__init__

    @functools.wraps(init)
    def init_with_exptest(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        init(trainer, *args, **kwargs)
        training_args: Any = trainer.args
        own = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ExpTestCallback)]
        if training_args.exptest and not own:
            callback = ExpTestCallback.from_args(training_args)
            trainer.add_callback(callback)
            callback.set_trainer(trainer)
        if own and trainer.is_world_process_zero():
            warn_if_overruled(own[0], training_args, flags)
        if training_args.exptest or own:
            users.append(type(trainer))
        else:
            warn_of_missing_switch(training_args)

    Trainer.__init__ = init_with_exptest  # type: ignore[assignment, method-assign]
    return users


def warn_if_overruled(own: ExpTestCallback, training_args: Any, flags: dict[str, Any]) -> None:
    """Say so where the script has a callback of its own that does not know the launcher's flags."""
    names = [f"--{name}" for name in flags if name != "exptest"]
    if names and own.config != ExpTestCallback.from_args(training_args).config:
        print(
            f"hf_exptest.run: warning: {', '.join(names)} not used: the script has an ExpTestCallback of its own, with"
            " settings of its own. ExpTestCallback.from_args(training_args) would use them.",
            file=sys.stderr,
        )


def install_finder(flags: dict[str, Any], next_command: Callable[[str], str]) -> list[type]:
    """
    Let the first Trainer that is to train be looked at instead, and the process end.

    Args:
        flags (`dict[str, Any]`): the settings.
        next_command (`Callable[[str], str]`): what trains with the rate that is left in a folder.

    Returns:
        `list[type]`: gets the class of that Trainer.
    """
    # The arguments are to check the flags, and not to say that these do nothing.
    add_flags_in_place({**flags, "exptest": True})
    users: list[type] = []
    train: Any = Trainer.train

    @functools.wraps(train)
    def find_and_end(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        users.append(type(trainer))
        # The finder trains, too.
        Trainer.train = train  # type: ignore[method-assign]
        sys.exit(find_and_tell(trainer, next_command))

    Trainer.train = find_and_end  # type: ignore[assignment, method-assign]
    return users


def find_and_tell(trainer: Trainer, next_command: Callable[[str], str]) -> int:
    """
    Look for the rate of `trainer`, print and keep what was found and the command that trains with it, on the main
    process; the exit code.
    """
    training_args: Any = trainer.args
    is_main = trainer.is_world_process_zero()
    try:
        report = find(trainer, training_args.exptest_config())
    except ValueError as error:
        if is_main:
            print(f"hf_exptest.run: ExpTest cannot look for a learning rate here: {error}", file=sys.stderr)
        return 1
    is_found = not math.isnan(report.starting_rate)
    if is_main:
        print(report.summary())
        write(report, training_args.output_dir, with_figure=True)
        if is_found:
            print(f"To train with it: {next_command(training_args.output_dir)}")
        else:
            print("hf_exptest.run: no learning rate was found.", file=sys.stderr)
    # No process ends before the main one has written.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return 0 if is_found else 1


def is_there(script: str, is_module: bool) -> bool:
    """Whether there is such a file, or such a module."""
    if not is_module:
        return Path(script).is_file()
    try:
        return find_spec(script) is not None
    except (ModuleNotFoundError, ValueError):
        # Of its package, or a name that is empty.
        return False


def warn_if_unused(
    users: list[type], is_finder: bool, flags: dict[str, Any], script: str, arguments: list[str]
) -> None:
    """Say so where the flags turned nothing on."""
    is_asked = is_finder or bool(flags) or any(argument.startswith("--exptest") for argument in arguments)
    if users or not is_asked or os.environ.get("RANK", "0") != "0":
        return
    result = "no learning rate was looked for" if is_finder else "ExpTest was not turned on"
    if is_finder or flags.get("exptest"):
        switch = "--find" if is_finder else "--exptest"
        reason = (
            f"{'trained' if is_finder else 'made'} no Trainer in this process. A command that starts new ones leaves"
            f" the launcher behind; let it start the launcher: accelerate launch -m hf_exptest.run {switch}"
            " their_script.py ..."
        )
    else:
        reason = f"gave no Trainer the flag. Put it before the script: python -m hf_exptest.run --exptest {script} ..."
    print(f"hf_exptest.run: warning: {result}: {script!r} {reason}", file=sys.stderr)


def main() -> None:
    """Run the script in `sys.argv` with the arguments after it."""
    own, arguments = split_at_script(sys.argv[1:])
    if {"-h", "--help"} & set(own) or not (own or arguments):
        print(__doc__)
        sys.exit(0 if own else 2)
    is_finder, flags = own_flags(own)
    if not arguments:
        sys.exit(f"hf_exptest.run: there is no script after {own[-1]!r}; usage: {_USAGE}")
    is_module = arguments[0] == "-m"
    script, *rest = (arguments[1:] or [""]) if is_module else arguments
    if not is_there(script, is_module):
        sys.exit(f"hf_exptest.run: there is no {'module' if is_module else 'script'} {script!r}; usage: {_USAGE}")
    beside_config, left = take_from_config(rest)
    flags |= beside_config
    if is_finder:
        refuse_starting_rate(flags)
    sys.argv = [script, *left]
    next_command = functools.partial(command_to_reuse, own, arguments)
    users = install_finder(flags, next_command) if is_finder else install(flags)
    command = f"-m {script}" if is_module else script
    try:
        if is_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            # As `python script.py` would: the script may import its neighbours.
            sys.path[0] = str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")
    except ValueError as error:
        # As HfArgumentParser ends a script.
        if "not used by the HfArgumentParser" not in str(error) or "'--find'" not in str(error):
            raise
        sys.exit(f"hf_exptest.run: {command!r} has no flag --find; before the script, it is the launcher's: {_USAGE}")
    except SystemExit as end:
        warn_if_unused(users, is_finder, flags, command, rest)
        if end.code or users or not is_finder:
            raise
    else:
        warn_if_unused(users, is_finder, flags, command, rest)
    if is_finder and not users:
        # What comes after it may wait for a rate.
        sys.exit(1)


if __name__ == "__main__":
    main()
