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
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

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
_OPEN_IN_STANDARD_LIBRARY = {"argparse", "queue", "types"}
# Iterators that can be copied: the copy goes on where the original is, on its own.
_COPYABLE = (
    *map(type, (iter([]), iter(()), iter(""), iter(b""), iter(range(0)), iter(range(2**70)), iter(set()))),
    *map(type, (iter({}), iter({}.values()), iter({}.items()), reversed([]))),
    itertools.count,
)
_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, np.generic)
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
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self.consumable: list[str] = []
        self._undo: list[Callable[[], Any]] = []
        self._undo_with: list[Callable[[Callable[[_Kept], Any]], Any]] = []
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
        self._walk([(_joined(name, key), child) for key, child in self._keep_object(owner)], is_data=False)

    def _walk(self, waiting: list[tuple[str, Any]], is_data: bool) -> None:
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, _IMMUTABLE) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            waiting += [(_joined(name, key), child) for key, child in self._keep(name, value, is_data)]

    def restore(self) -> None:
        """Put everything back that is not inside a tensor, with fresh copies of iterators."""
        self._restore(_fresh)

    def close(self) -> None:
        """Put everything back for good, with the iterators that were there."""
        self._restore(lambda kept: kept.value)

    def _restore(self, choose: Callable[[_Kept], Any]) -> None:
        for undo in self._undo:
            undo()
        for undo_with in self._undo_with:
            undo_with(choose)

    def _keep(self, name: str, value: Any, is_data: bool) -> list[tuple[str, Any]]:
        """Note how to put `value` back, and return what is in it."""
        if isinstance(value, torch.Tensor):
            if not is_data or value.nbytes <= _MOST_BYTES_OF_DATA:
                self.tensors.append((name, value))
            return []
        if isinstance(value, np.ndarray):
            if value.nbytes <= (_MOST_BYTES_OF_DATA if is_data else _MOST_BYTES) and value.dtype != object:
                self._undo.append(functools.partial(_restore_array, value, value.copy()))
            return []
        generator = _generator_undo(value)
        if generator is not None:
            self._undo.append(generator)
            return []
        if isinstance(value, io.IOBase):
            return self._keep_file(name, value)
        if isinstance(value, Iterator) and not _is_open(value, is_data):
            # What holds a copyable one keeps a copy of it.
            if not isinstance(value, _COPYABLE):
                self.consumable.append(f"{name} ({type(value).__name__})")
            return []
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            return self._keep_function(name, value)
        most = _MOST_ITEMS_OF_DATA if is_data else _MOST_ITEMS
        if isinstance(value, (list, collections.deque, set)):
            self._undo_with.append(functools.partial(_restore_items, value, [_Kept(item) for item in value]))
            return list(_numbered(value)) if len(value) <= most else []
        if isinstance(value, (tuple, frozenset)):
            return list(_numbered(value)) if len(value) <= most else []
        if isinstance(value, dict):
            self._keep_mapping(value)
            return [(str(key), child) for key, child in value.items()] if len(value) <= most else []
        return self._keep_object(value) if _is_open(value, is_data) else []

    def _keep_mapping(self, mapping: dict[Any, Any]) -> None:
        saved = {key: _Kept(value) for key, value in mapping.items()}
        self._undo_with.append(functools.partial(_restore_mapping, mapping, saved))

    def _keep_object(self, value: Any) -> list[tuple[str, Any]]:
        children: list[tuple[str, Any]] = []
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._keep_mapping(attributes)
            children += attributes.items()
        slots = {slot: getattr(value, slot) for slot in _slots(type(value)) if hasattr(value, slot)}
        if slots:
            saved = {slot: _Kept(held) for slot, held in slots.items()}
            self._undo_with.append(functools.partial(_restore_attributes, value, saved))
            children += slots.items()
        members = [member for cls in type(value).__mro__ if _is_users(cls) for member in vars(cls).values()]
        return children + [("", _function(member)) for member in members]

    def _keep_function(self, name: str, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, types.MethodType):
            return [("", value.__self__), ("", value.__func__)]
        if isinstance(value, functools.partial):
            values = {"": value.func, **dict(_numbered(value.args)), **value.keywords}
        else:
            values = dict(_closure(value))
            if _is_users(value):
                values |= {key: value.__globals__.get(key) for key in _names(value.__code__)}
        # What a function refers to is part of a training where it draws, reads or learns. Other variables are left
        # alone: they count and collect for whoever looks on.
        values = {key: child for key, child in values.items() if _is_source(child)}
        self.consumable += [
            f"{_joined(name, key)} ({type(child).__name__})"
            for key, child in values.items()
            if isinstance(child, _COPYABLE) and not isinstance(child, itertools.count)
        ]
        return list(values.items())

    def _keep_file(self, name: str, file: io.IOBase) -> list[tuple[str, Any]]:
        # A file that is written to is the user's log, not a source of data.
        if file.closed or not file.readable() or file.writable():
            return []
        try:
            self._undo.append(functools.partial(file.seek, file.tell()))
        except OSError:
            self.consumable.append(f"{name} (a file that is being read)")
        return []


class _Kept:
    """A value, and a copy of it if it is an iterator, which goes on from the same place."""

    __slots__ = ("copy", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.copy = _copy(value) if isinstance(value, _COPYABLE) else value


def _fresh(kept: _Kept) -> Any:
    """The value, or another copy of an iterator."""
    return kept.value if kept.copy is kept.value else _copy(kept.copy)


def _copy(iterator: Any) -> Any:
    with warnings.catch_warnings():
        # Python 3.12 announces that those of itertools will lose this.
        warnings.simplefilter("ignore", DeprecationWarning)
        return copy.copy(iterator)


def _restore_mapping(mapping: dict[Any, Any], saved: dict[Any, _Kept], choose: Callable[[_Kept], Any]) -> None:
    for key in [key for key in mapping if key not in saved]:
        del mapping[key]
    for key, kept in saved.items():
        value = choose(kept)
        if mapping.get(key, _ABSENT) is not value:
            mapping[key] = value


def _restore_items(items: Any, saved: list[_Kept], choose: Callable[[_Kept], Any]) -> None:
    values = list(map(choose, saved))
    if len(items) == len(values) and all(a is b for a, b in zip(items, values, strict=True)):
        return
    items.clear()
    items.update(values) if isinstance(items, set) else items.extend(values)


def _restore_attributes(owner: Any, saved: dict[str, _Kept], choose: Callable[[_Kept], Any]) -> None:
    for key, kept in saved.items():
        value = choose(kept)
        if getattr(owner, key, _ABSENT) is not value:
            setattr(owner, key, value)


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
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return True
    cls = type(value)
    package = cls.__module__.partition(".")[0]
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


def _function(value: Any) -> Any:
    """The function behind a member of a class, or `None`."""
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Names and values of the variables that a function shares with the one that made it."""
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not yet bound
            yield key, cell.cell_contents


def _is_source(value: Any) -> bool:
    """Whether a function that refers to `value` may draw from it, read from it, call it, or learn with it."""
    kinds = (nn.Module, torch.optim.Optimizer, torch.Tensor, io.IOBase, Iterator, types.FunctionType, types.MethodType)
    return isinstance(value, (*kinds, functools.partial)) or _generator_undo(value) is not None


def _names(code: types.CodeType) -> set[str]:
    """Names that the code, and the functions in it, look up outside of themselves."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*(_names(const) for const in inner))


def _numbered(values: Any) -> Iterator[tuple[str, Any]]:
    return ((str(i), value) for i, value in enumerate(values))


def _joined(name: str, key: str) -> str:
    """`model.layer.weight`, without the dicts in which torch keeps modules, parameters and buffers."""
    return f"{name}.{key}" if key not in ("", "_modules", "_parameters", "_buffers") else name
