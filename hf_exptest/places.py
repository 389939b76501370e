# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What the objects of a training hold, kept by place: attributes and items that the user's code may count up, append to
or rebind, random generators and positions in files. Tensors are found here, and kept elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import io
import itertools
import operator
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedConfig

# Plain attributes of these libraries' objects are caches and registries of their own; of the standard library's, too.
_CLOSED = {
    "hf_exptest",
    "huggingface_hub",
    "numpy",
    "pandas",
    "PIL",
    "pyarrow",
    "tokenizers",
    "torch",
    "tqdm",
    "wandb",
}
# A data set, a collator or a sampler of these libraries has a place in the data; the rest is machinery.
_CLOSED_BUT_FOR_DATA = {"accelerate", "datasets", "deepspeed", "transformers"}
_OPEN_IN_STANDARD_LIBRARY = {"argparse", "collections", "queue", "types"}
# What somebody else fills: another thread, process or machine.
_CHANNELS = {"_queue", "multiprocessing.connection", "multiprocessing.queues", "queue", "socket"}
# Iterators that can be copied: the copy goes on where the original is, on its own.
_COPYABLE = (
    *map(type, (iter([]), iter(()), iter(""), iter(b""), iter(range(0)), iter(range(2**70)), iter(set()))),
    *map(type, (iter({}), iter({}.values()), iter({}.items()), reversed([]))),
    itertools.count,
)
_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, np.generic)
_IN_MEMORY = io.BytesIO, io.StringIO
_ABSENT = object()
# What a row of data, a table of words or a registry may be made of is not looked into, only listed.
_MOST_ITEMS, _MOST_ITEMS_OF_DATA = 4096, 256
_MOST_BYTES, _MOST_BYTES_OF_DATA = 2**24, 2**16


class Places:
    """
    Keeps what can be reached from some roots, and puts it back: the same objects, with what they held.

    Iterators cannot be put back, so between `restore` and `close` copies stand in for them. The originals, which the
    iterators of a running epoch may hold on to, are moved by nobody.

    Attributes:
        tensors (`list[tuple[str, torch.Tensor]]`): tensors found on the way, each once, with a name to speak of it.
        consumable (`list[str]`): what a reader would use up, and nothing can put back: generators and the like.
        failed (`list[str]`): what could not be put back, with the error, when that was last tried.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self.consumable: list[str] = []
        self.failed: list[str] = []
        self._undo: list[tuple[str, Callable[[Callable[[_Items], list[Any]]], Any]]] = []
        # Objects, not only their ids, which a new object could get.
        self._seen: dict[int, Any] = {}

    def skip(self, value: Any) -> None:
        """Leave `value` out, and what can only be reached through it."""
        self._seen[id(value)] = value

    def add(self, name: str, root: Any, is_data: bool = False) -> None:
        """Keep what `root` holds now. Data are looked through for what reading them changes, not copied."""
        self._walk([(name, root)], is_data)

    def add_attributes(self, name: str, owner: Any) -> None:
        """Keep the attributes of `owner`, of whatever library it is."""
        self.skip(owner)
        children = self._keep_object(name, owner)
        self._walk([(_joined(name, key), child) for key, child in children], is_data=False)

    def _walk(self, waiting: list[tuple[str, Any]], is_data: bool) -> None:
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, _IMMUTABLE) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            waiting += [(_joined(name, key), child) for key, child in self._keep(name, value, is_data)]

    def restore(self) -> None:
        """Put everything back that is not inside a tensor, with fresh copies of iterators."""
        self._restore(_Items.with_copies)

    def close(self) -> None:
        """Put everything back for good, with the iterators that were there."""
        self._restore(_Items.with_originals)

    def _restore(self, choose: Callable[[_Items], list[Any]]) -> None:
        self.failed = []
        for name, undo in self._undo:
            try:
                undo(choose)
            except Exception as error:
                # Whatever it is, the rest is put back.
                self.failed.append(f"{name} ({type(error).__name__}: {error})")

    def _undo_by(self, name: str, undo: Callable[[], Any]) -> None:
        self._undo.append((name, lambda choose: undo()))

    def _keep(self, name: str, value: Any, is_data: bool) -> list[tuple[str, Any]]:
        """Note how to put `value` back, and return what is in it."""
        if isinstance(value, torch.Tensor):
            if not is_data or value.nbytes <= _MOST_BYTES_OF_DATA:
                self.tensors.append((name, value))
            return []
        if isinstance(value, np.ndarray):
            if value.nbytes <= (_MOST_BYTES_OF_DATA if is_data else _MOST_BYTES) and value.dtype != object:
                self._undo_by(name, functools.partial(_restore_array, value, value.copy()))
            return []
        generator = _generator_undo(value)
        if generator is not None:
            self._undo_by(name, generator)
            return []
        if isinstance(value, io.IOBase):
            return self._keep_file(name, value, is_data)
        if is_data and type(value).__module__ in _CHANNELS:
            self.consumable.append(f"{name} ({type(value).__name__})")
            return []
        if isinstance(value, Iterator) and not _is_open(value, is_data):
            # What holds a copyable one keeps a copy of it.
            if not isinstance(value, _COPYABLE):
                self.consumable.append(f"{name} ({type(value).__name__})")
            return []
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            return self._keep_function(name, value)
        if isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
            return [("", value.__self__)]
        most = _MOST_ITEMS_OF_DATA if is_data else _MOST_ITEMS
        if isinstance(value, (list, collections.deque, set)):
            self._undo.append((name, functools.partial(_restore_items, value, _Items(value))))
            return list(_numbered(value)) if len(value) <= most else []
        if isinstance(value, (tuple, frozenset)):
            return list(_numbered(value)) if len(value) <= most else []
        if isinstance(value, dict):
            self._keep_mapping(name, value)
            return [(str(key), child) for key, child in value.items()] if len(value) <= most else []
        return self._keep_object(name, value) if _is_open(value, is_data) else []

    def _keep_mapping(self, name: str, mapping: dict[Any, Any]) -> None:
        items = _Items(mapping.values())
        self._undo.append((name, functools.partial(_restore_mapping, mapping, list(mapping), items)))

    def _keep_object(self, name: str, value: Any) -> list[tuple[str, Any]]:
        children: list[tuple[str, Any]] = []
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._keep_mapping(name, attributes)
            children += attributes.items()
        slots = {slot: getattr(value, slot) for slot in _slots(type(value)) if hasattr(value, slot)}
        if slots:
            self._undo.append(
                (name, functools.partial(_restore_attributes, value, list(slots), _Items(slots.values())))
            )
            children += slots.items()
        classes = [vars(cls) for cls in type(value).__mro__ if _is_users(cls)]
        members = [(key, _function(member)) for members in classes for key, member in members.items()]
        return children + [
            ("" if isinstance(member, types.FunctionType) else key, member)
            for key, member in members
            if _is_source(member)
        ]

    def _keep_function(self, name: str, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, types.MethodType):
            return [("", value.__self__), ("", value.__func__)]
        if isinstance(value, functools.partial):
            values = {"": value.func, **dict(_numbered(value.args)), **value.keywords}
        else:
            values = dict(_closure(value)) | dict(_numbered(value.__defaults__ or ())) | (value.__kwdefaults__ or {})
            if _is_users(value):
                values |= _globals(value)
        # What a function refers to is part of a training where it draws, reads or learns. Other variables are left
        # alone: they count and collect for whoever looks on.
        values = {key: child for key, child in values.items() if _is_source(child)}
        self.consumable += [
            f"{_joined(name, key)} ({type(child).__name__})"
            for key, child in values.items()
            if isinstance(child, _COPYABLE) and not isinstance(child, itertools.count)
        ]
        return list(values.items())

    def _keep_file(self, name: str, file: io.IOBase, is_data: bool) -> list[tuple[str, Any]]:
        if file.closed or not file.readable():
            return []
        # A file that is written to is the user's log, not a source of data; but one in memory may be either.
        if file.writable() and not (is_data and isinstance(file, _IN_MEMORY)):
            return []
        try:
            self._undo_by(name, functools.partial(_restore_file, file, file.tell()))
        except OSError:
            self.consumable.append(f"{name} (a file that is being read)")
        return []


class _Items:
    """What a container holds, and a copy of each iterator among it, which goes on from the same place."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = list(values)
        # By their types first, since there may be millions.
        kinds = {kind for kind in set(map(type, self._values)) if issubclass(kind, _COPYABLE)}
        places = [i for i, value in enumerate(self._values) if type(value) in kinds] if kinds else []
        self._copies = {place: _copy(self._values[place]) for place in places}

    def with_originals(self) -> list[Any]:
        """The values."""
        return self._values

    def with_copies(self) -> list[Any]:
        """The values, with another copy of each iterator."""
        if not self._copies:
            return self._values
        return [_copy(self._copies[i]) if i in self._copies else value for i, value in enumerate(self._values)]


def _copy(iterator: Any) -> Any:
    with warnings.catch_warnings():
        # Python 3.12 announces that those of itertools will lose this.
        warnings.simplefilter("ignore", DeprecationWarning)
        return copy.copy(iterator)


def _is_same(present: Iterable[Any], saved: Iterable[Any]) -> bool:
    return all(map(operator.is_, present, saved))


def _restore_mapping(
    mapping: dict[Any, Any], keys: list[Any], items: _Items, choose: Callable[[_Items], list[Any]]
) -> None:
    values = choose(items)
    if len(mapping) == len(keys) and _is_same(mapping, keys) and _is_same(mapping.values(), values):
        return
    saved = dict(zip(keys, values, strict=True))
    for key in [key for key in mapping if key not in saved]:
        del mapping[key]
    for key, value in saved.items():
        if mapping.get(key, _ABSENT) is not value:
            mapping[key] = value
    if not _is_same(mapping, keys):
        # A cache forgets what comes first.
        for key in keys:
            mapping[key] = mapping.pop(key)


def _restore_items(container: Any, items: _Items, choose: Callable[[_Items], list[Any]]) -> None:
    values = choose(items)
    if len(container) == len(values) and _is_same(container, values):
        return
    container.clear()
    container.update(values) if isinstance(container, set) else container.extend(values)


def _restore_attributes(owner: Any, names: list[str], items: _Items, choose: Callable[[_Items], list[Any]]) -> None:
    for name, value in zip(names, choose(items), strict=True):
        if getattr(owner, name, _ABSENT) is not value:
            setattr(owner, name, value)


def _restore_file(file: Any, position: int) -> None:
    if file.closed:
        # Opened again in place, since the iterator of a running epoch may read from it.
        if isinstance(file, io.TextIOWrapper):
            file.__init__(open(file.name, "rb"), file.encoding, file.errors)  # type: ignore[misc]
        elif isinstance(file, io.BufferedReader):
            file.__init__(io.FileIO(file.name))  # type: ignore[misc]
        else:
            file.__init__(file.name)
    file.seek(position)


def _restore_array(array: np.ndarray[Any, Any], saved: np.ndarray[Any, Any]) -> None:
    if array.shape != saved.shape:
        array.resize(saved.shape, refcheck=False)
    if array.flags.writeable:
        array[...] = saved


def _generator_undo(value: Any) -> Callable[[], Any] | None:
    """How to put a random generator, or a number that processes share, back."""
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return functools.partial(value.setstate, value.getstate())
    if hasattr(type(value), "get_obj") and hasattr(type(value), "value"):
        return functools.partial(setattr, value, "value", value.value)
    return None


def _is_open(value: Any, is_data: bool) -> bool:
    """Whether to look into the attributes of `value`."""
    cls = type(value)
    package = cls.__module__.partition(".")[0]
    if isinstance(value, (nn.Module, torch.optim.Optimizer, LRScheduler, PreTrainedConfig)):
        return package != "hf_exptest"
    if package in sys.stdlib_module_names:
        return package in _OPEN_IN_STANDARD_LIBRARY
    if package in _CLOSED_BUT_FOR_DATA or cls.__module__.startswith("torch.utils.data."):
        return is_data
    return package not in _CLOSED


def _is_users(value: Any) -> bool:
    """Whether a class or function is from a script or module of the user, not from an installed package."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    return module is not None and _is_users_file(module)


def _is_users_file(module: types.ModuleType) -> bool:
    name = module.__name__.partition(".")[0]
    if name in sys.stdlib_module_names | _CLOSED | _CLOSED_BUT_FOR_DATA:
        return False
    path = getattr(module, "__file__", None) or ""
    return "site-packages" not in path and "dist-packages" not in path


def _slots(cls: type) -> list[str]:
    declared = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [name for slots in declared for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if not name.startswith("__")]


def _function(member: Any) -> Any:
    """The function behind a member of a class; another member is itself."""
    member = member.fget if isinstance(member, property) else member
    return getattr(member, "__func__", member)


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Names and values of the variables that a function shares with the one that made it."""
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not yet bound
            yield key, cell.cell_contents


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """What the code of a function names, as far as it is a global variable, or in a module of the user's."""
    names = _names(function.__code__)
    values = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for module in list(values.values()):
        if isinstance(module, types.ModuleType) and _is_users_file(module):
            values |= {name: vars(module)[name] for name in names if name in vars(module) and name not in values}
    return values


def _is_source(value: Any) -> bool:
    """Whether a function that refers to `value` may draw from it, read from it, call it, or learn with it."""
    kinds = (nn.Module, torch.optim.Optimizer, torch.Tensor, io.IOBase, Iterator, types.FunctionType, types.MethodType)
    if isinstance(value, (*kinds, functools.partial)) or _generator_undo(value) is not None:
        return True
    return callable(value) and not isinstance(value, type) and _is_users(type(value))


def _names(code: types.CodeType) -> set[str]:
    """Names that the code, and the functions in it, look up outside of themselves."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*(_names(const) for const in inner))


def _numbered(values: Any) -> Iterator[tuple[str, Any]]:
    return ((str(i), value) for i, value in enumerate(values))


def _joined(name: str, key: str) -> str:
    """`model.layer.weight`, without the dicts in which torch keeps modules, parameters and buffers."""
    return f"{name}.{key}" if key not in ("", "_modules", "_parameters", "_buffers") else name
