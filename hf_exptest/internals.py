# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Every touch of what Trainer, Accelerate and DeepSpeed do not promise to keep, each with the reason. The day one of them
changes, this file changes.

Checked with transformers 5.0.0 to 5.24.0, accelerate 1.10.1 to 1.15.0 and deepspeed 0.19.8.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from .processes import own_part

# Far more than there are epochs, each of which adds one to the seed of Accelerate's sampler.
_OTHER_SEED = 2**31
_CARD_HOOK = "_exptest_after_model_card"
# By model, since an attribute would be copied and pickled with it. A hook that refers to its model keeps it alive.
_SAVED_CARD_HOOKS: weakref.WeakKeyDictionary[Any, tuple[Any, Callable[[Path], None]]] = weakref.WeakKeyDictionary()


def find_trainer(callback: TrainerCallback) -> Trainer | None:
    """The Trainer that is calling `callback`: callback events do not carry it, but it stands in the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and callback in candidate.callback_handler.callbacks:
            return candidate
        frame = frame.f_back
    return None


def warn_above_bar(logger: Any, message: str) -> None:
    """A warning on a line of its own: where the Trainer draws its bar, the cursor stands at the end of that."""
    with tqdm.external_write_mode():
        logger.warning(message)


def patch(trainer: Trainer, **methods: Callable[..., Any]) -> None:
    """
    Put each function in the place of a method of `trainer` alone, with the Trainer and the method to go on with as its
    first arguments. The class, and every other Trainer, stay as they are.

    Trainer has no hook for the loss of a micro-batch, a row before it is logged, and the scheduler.
    """
    for name, function in methods.items():
        vars(trainer)[name] = functools.partial(function, trainer, getattr(trainer, name))


def is_patched_by(trainer: Trainer, owner: Any) -> bool:
    """Whether [`patch`] has put methods of `owner` in the place of the Trainer's."""
    return any(
        isinstance(value, functools.partial) and getattr(value.func, "__self__", None) is owner
        for value in vars(trainer).values()
    )


def after_model_card(trainer: Trainer, hook: Callable[[Trainer], None]) -> None:
    """
    Call `hook` with `trainer` each time that a model card of it was written; twice, where its class calls `super()`.

    LLaMA-Factory calls `Trainer.create_model_card(trainer)`, which no attribute of the instance can reach. So the
    functions of its classes are wrapped, once; for every other Trainer they do what they did.
    """
    vars(trainer)[_CARD_HOOK] = hook
    for owner in type(trainer).__mro__:
        if "create_model_card" in vars(owner):
            _call_after(owner, "create_model_card", _call_card_hook)


def _call_card_hook(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
    hook = vars(trainer).get(_CARD_HOOK)
    if hook is not None:
        hook(trainer)


def _call_after(owner: Any, name: str, after: Callable[..., None]) -> None:
    """Wrap a function of a class, once, so that `after` is called with the same arguments when it has ended."""
    function = vars(owner)[name]
    if hasattr(function, _CARD_HOOK):
        return

    @functools.wraps(function)
    def call_both(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        after(*args, **kwargs)

    vars(call_both)[_CARD_HOOK] = True
    setattr(owner, name, call_both)


@contextlib.contextmanager
def quiet(trainer: Trainer) -> Iterator[list[TrainerCallback]]:
    """
    Nobody hears what the user's code logs meanwhile, by `trainer.log` or by the callbacks' events. Gives the callbacks
    that the Trainer has.
    """
    handler = trainer.callback_handler
    callbacks, handler.callbacks = handler.callbacks, []
    log = vars(trainer).get("log")
    vars(trainer)["log"] = lambda logs, *args, **kwargs: None
    try:
        yield callbacks
    finally:
        handler.callbacks = callbacks
        del vars(trainer)["log"]
        if log is not None:
            vars(trainer)["log"] = log


def gradient_callbacks(callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """Those that do something between the backward pass and the step of the optimizer, where gradients may change."""
    name = "on_pre_optimizer_step"
    return [callback for callback in callbacks if getattr(type(callback), name) is not getattr(TrainerCallback, name)]


def call_before_step(trainer: Trainer, callbacks: list[TrainerCallback]) -> None:
    """Call the event that the Trainer calls with the gradients of a step, for these callbacks alone."""
    handler: CallbackHandler = trainer.callback_handler
    before, handler.callbacks = handler.callbacks, callbacks
    handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    handler.callbacks = before


def read_batches(trainer: Trainer, num_batches: int) -> Generator[tuple[list[Any], Any], None, None]:
    """
    Up to `num_batches` optimizer batches as the Trainer reads them: micro-batches, and the number of items in all of
    them. The loader is made for this alone; it, its workers and what they have read ahead are gone afterwards.

    Accelerate's random sampler gives an order by its seed and the epoch, which its loader sets; torch's draws one from
    the present random state. With another seed and state than the run's, these are not the batches that the run sees
    next, but where the data have an order of their own. Sentence Transformers seeds its samplers with `args.seed`.
    """
    # Half of it, since torch reads 32 bits of a seed: both together must not come round.
    trainer.args.seed += _OTHER_SEED // 2
    try:
        loader = trainer.get_train_dataloader()
    finally:
        trainer.args.seed -= _OTHER_SEED // 2
    if running_iterators(loader):
        # The user's own, which is made once, and the run is reading from it.
        loader = _unused(loader)
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    if isinstance(sampler, SeedableRandomSampler):
        sampler.initial_seed += _OTHER_SEED
    torch.rand(())
    iterator = iter(loader)
    try:
        for _ in range(num_batches):
            batch = trainer.get_batch_samples(iterator, trainer.args.gradient_accumulation_steps, trainer.args.device)
            if not batch[0]:
                break
            yield batch
    finally:
        _forget(trainer, loader)
        del loader, iterator
        # Workers end with their iterator, which refers to itself.
        gc.collect()


def _unused(loader: Any) -> Any:
    """The same loader, without the iterator and the workers that it has."""
    unused = copy.copy(loader)
    if isinstance(getattr(loader, "base_dataloader", None), DataLoader):
        unused.base_dataloader = copy.copy(loader.base_dataloader)
    for part in _parts(unused):
        part._iterator = None
    return unused


def _forget(trainer: Trainer, loader: Any) -> None:
    """Leave a loader before its end."""
    if hasattr(loader, "end"):
        # Accelerate counts a loader as active until its end.
        loader.end()
    # Accelerate keeps every loader that it has prepared, and a loader with persistent workers its iterator.
    kept = trainer.accelerator._dataloaders
    kept[:] = [other for other in kept if other is not loader]
    for part in _parts(loader):
        part._iterator = None


def running_iterators(loader: Any) -> list[Any]:
    """The iterators that a loader with persistent workers keeps. A run reads from them, and no other loader does."""
    iterators = [part._iterator for part in _parts(loader)]
    return [iterator for iterator in iterators if iterator is not None]


def _parts(loader: Any) -> list[DataLoader[Any]]:
    """torch's loaders in one that Accelerate has prepared."""
    return [part for part in (loader, getattr(loader, "base_dataloader", None)) if isinstance(part, DataLoader)]


def is_out_of_memory(error: Exception) -> bool:
    """Whether `auto_find_batch_size` answers `error` with a smaller batch."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)


def prepare_inputs(trainer: Trainer, micro_batch: Any) -> Any:
    """What `training_step` does to a micro-batch before the loss is computed: types and devices."""
    return trainer._prepare_inputs(micro_batch)


def backward_context(trainer: Trainer, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """
    Around the forward and backward pass of a micro-batch: gradients are reduced over the processes with the last one
    only. DeepSpeed makes its step in the backward pass of the micro-batch in which `sync_gradients` is set.
    """
    accelerator = trainer.accelerator
    state = accelerator.gradient_state
    state._set_sync_gradients(is_last)
    if is_last or state.plugin_kwargs.get("sync_each_batch") or trainer.is_deepspeed_enabled:
        return contextlib.nullcontext()
    if is_sharded_at_load(trainer):
        return trainer._defer_fsdp_gradient_reduction()
    context: contextlib.AbstractContextManager[Any] = accelerator.no_sync(model=trainer.model_wrapped)
    return context


def is_sharded_at_load(trainer: Trainer) -> bool:
    """Whether transformers itself shards the model (`from_pretrained(distributed_config=...)`), not Accelerate."""
    return bool(getattr(trainer, "is_distributed_loading_by_transformers", False))


def clip_gradients(trainer: Trainer) -> None:
    """Clip as the Trainer does; newer releases clip gradients on several meshes, too."""
    if trainer.args.max_grad_norm:
        if hasattr(trainer, "_clip_grad_norm"):
            trainer._clip_grad_norm(trainer.model_wrapped)
        else:
            trainer.accelerator.clip_grad_norm_(trainer.model_wrapped.parameters(), trainer.args.max_grad_norm)


def has_own_scheduler(trainer: Trainer) -> bool:
    """Whether the user gave the Trainer a scheduler; one of the Trainer's making is made anew by each `train`."""
    return trainer.lr_scheduler is not None and not getattr(trainer, "_created_lr_scheduler", False)


def adopt_scheduler(trainer: Trainer, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Make `scheduler` the Trainer's, as one of its own making."""
    vars(trainer)["lr_scheduler"] = scheduler
    trainer._created_lr_scheduler = True


def after_saved_card(model: Any, hook: Callable[[Path], None]) -> None:
    """
    Call `hook` with the folder each time that `model` was saved with a card of its own, as Sentence Transformers does,
    until another training begins. Nothing happens to a model that writes none.

    Its own callback makes a new dict of the hyper-parameters in `on_train_begin`, after ours.
    """
    owner = next((base for base in type(model).__mro__ if "_create_model_card" in vars(base)), None)
    if owner is None:
        return
    _call_after(owner, "_create_model_card", _call_saved_card_hook)
    _SAVED_CARD_HOOKS[model] = model.model_card_data.all_hyperparameters, hook


def _call_saved_card_hook(model: Any, path: str, *args: Any, **kwargs: Any) -> None:
    training, hook = _SAVED_CARD_HOOKS.get(model, (None, None))
    if hook is not None and training is model.model_card_data.all_hyperparameters:
        hook(Path(path))


def own_vectors(model: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters with one dimension, as far as they are in this process."""
    vectors = []
    for parameter in model.parameters():
        # Under DeepSpeed ZeRO-3 a parameter is empty, and knows its shape and its shard.
        whole: Any = parameter
        if len(getattr(whole, "ds_shape", whole.shape)) == 1:
            vectors.append(own_part(getattr(whole, "ds_tensor", whole)))
    return vectors


@contextlib.contextmanager
def undone_train(trainer: Trainer) -> Iterator[None]:
    """For a `train()` that an exception ends in its first epoch: leaves the Trainer ready for the next one."""
    before = dict(vars(trainer))
    loaders = list(trainer.accelerator._dataloaders)
    try:
        yield
    finally:
        for loader in list(trainer.accelerator._dataloaders):
            if not any(loader is other for other in loaders):
                _forget(trainer, loader)
        gc.collect()
        # NEFTune's noise is turned off at the end of a training only.
        handle = vars(trainer).get("neftune_hook_handle")
        if handle is not None and handle is not before.get("neftune_hook_handle"):
            handle.remove()
        # A second `train` goes on with the model that the first one wrapped; but DeepSpeed's engine is made anew,
        # around the model as it was.
        wrapped = {} if trainer.is_deepspeed_enabled else {k: vars(trainer)[k] for k in ("model", "model_wrapped")}
        vars(trainer).clear()
        vars(trainer).update(before, **wrapped)
        # What the events of callbacks are given.
        trainer.callback_handler.model = trainer.model
        trainer.callback_handler.optimizer = trainer.optimizer
        trainer.callback_handler.lr_scheduler = trainer.lr_scheduler


def engine_in_the_way(trainer: Trainer) -> str | None:
    """What of the set-up keeps a search from putting everything back: all that it was not seen to be exact with."""
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        return "tensor, context and sequence parallelism were not seen to be put back; use data parallelism alone"
    if trainer.is_deepspeed_enabled:
        return _deepspeed_in_the_way(trainer)
    native = getattr(getattr(trainer.model, "config", None), "distributed_config", None)
    groups = [getattr(owner, "dp_replicate_size", 1) or 1 for owner in (native, parallelism)]
    if max(groups) > 1:
        return "groups of processes that shard each for itself (HSDP) were not seen to be put back; use one group"
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        if getattr(plugin, "fsdp_version", 1) != 2:
            return "FSDP1 flattens the parameters, which cannot be put back; use fsdp_version: 2"
        if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
            return "FSDP2 with its parameters on the CPU was not seen to be put back; set fsdp_offload_params: false"
    return None


def _deepspeed_in_the_way(trainer: Trainer) -> str | None:
    engine: Any = trainer.model_wrapped
    optimizer = type(engine.optimizer).__name__
    if optimizer not in ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"):
        return f"this DeepSpeed config leads to {optimizer}, which cannot be put back; use plain ZeRO stage 1, 2 or 3"
    if type(engine).__name__ != "DeepSpeedEngine" or engine.has_moe_layers or engine.autotp_size() > 1:
        return "DeepSpeed's pipeline, expert and tensor parallelism cannot be put back; use ZeRO alone"
    if trainer.args.auto_find_batch_size:
        return "DeepSpeed cannot be put back after the errors of auto_find_batch_size; give the batch size"
    zero = engine._config.zero_config
    unknown = {
        "offload_param": _device(zero.offload_param) != "none",
        "offload_optimizer to NVMe": _device(zero.offload_optimizer) == "nvme",
        "zero_hpz_partition_size": zero.zero_hpz_partition_size > 1,
        "zero_quantized_weights": zero.zero_quantized_weights or zero.zero_quantized_nontrainable_weights,
        "zero_quantized_gradients": zero.zero_quantized_gradients,
        "elastic_checkpoint": zero.elastic_checkpoint,
        "torch_autocast": engine.torch_autocast_enabled(),
        "deepcompile": engine.is_deepcompile_enabled(),
    }
    for name, is_on in unknown.items():
        if is_on:
            return f"DeepSpeed with {name} cannot be put back; turn it off"
    return None


def _device(offload: Any) -> Any:
    return "none" if offload is None else offload.device


class DeepSpeedState:
    """
    What DeepSpeed's engine changes, in memory, by the calls of its own `load_checkpoint`: each process keeps its shard
    of the master weights, from which DeepSpeed makes the weights of the model again.

    Args:
        trainer ([`~transformers.Trainer`]): with DeepSpeed's engine as its `model_wrapped`.
    """

    def __init__(self, trainer: Trainer) -> None:
        engine: Any = trainer.model_wrapped
        self._engine = engine
        self._optimizer = engine.optimizer
        # Numbers only: what is None now may be an object by then that others refer to.
        self._counters = [
            (owner, {k: v for k, v in vars(owner).items() if isinstance(v, (bool, int, float))})
            for owner in (engine, self._optimizer)
        ]
        # With an optimizer in its config the engine steps the scheduler itself; a trial sets its own rates.
        self._scheduler, engine.lr_scheduler = engine.lr_scheduler, None
        state = self._optimizer.state_dict()
        self._scaler = copy.deepcopy(state.pop("loss_scaler", None))
        self._saved = _to_host(state)

    def reset(self) -> None:
        """Put parameters and optimizer back, and drop the gradients. Collective. The loss scale stays."""
        optimizer = self._optimizer
        if hasattr(optimizer, "checkpoint_event_prologue"):
            optimizer.checkpoint_event_prologue()
        # Tensors of the state become the optimizer's own, so it gets a copy.
        state = {**copy.deepcopy(self._saved), "loss_scaler": optimizer.loss_scaler}
        rank = torch.distributed.get_rank(optimizer.dp_process_group)
        optimizer.load_state_dict({rank: state}, load_from_fp32_weights=True)
        if hasattr(optimizer, "update_lp_params"):
            # ZeRO-1 and 2: the model's own weights, from the master weights of all processes.
            optimizer.update_lp_params()
        if hasattr(optimizer, "checkpoint_event_epilogue"):
            optimizer.checkpoint_event_epilogue()
        optimizer.zero_grad(set_to_none=True)
        # What a step leaves behind that an exception ends between two micro-batches.
        for name in ("averaged_gradients", "all_grad_tensors"):
            gradients = getattr(optimizer, name, {})
            gradients.update(dict.fromkeys(gradients))
        for owner, values in self._counters:
            vars(owner).update(values)

    def close(self) -> None:
        """Put the loss scale, the scheduler and the powers of the betas back."""
        self._optimizer.loss_scaler = self._scaler
        self._engine.lr_scheduler = self._scheduler
        inner = getattr(self._optimizer, "optimizer", None)
        if hasattr(inner, "ds_opt_adam"):
            _count_again(inner)


def _count_again(optimizer: Any) -> None:
    """
    DeepSpeed's Adam on the CPU multiplies powers of its betas up from step to step, in C++ alone, where the last bits
    depend on the way. It takes that way again, on numbers that nobody needs.
    """
    num_steps = max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    numbers = [torch.zeros(1) for _ in range(4)]
    for step in range(1, num_steps + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True, *numbers)


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: _to_host(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_host(v) for v in value)
    return copy.deepcopy(value)
