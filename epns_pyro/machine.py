"""Devices and memory of this computer, to refuse too large requests before they start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from epns_pyro.errors import ConfigError, EpnsError

MOST_TENSORS = 10_000  # of a network: with more, the number of layers is a typing error
TRAINED = 16  # bytes per weight in training: the weight, its gradient and two moments


def find_device(name: str | torch.device) -> torch.device:
    """Return a device that exists.

    Raises
    ------
    ConfigError
        If PyTorch does not know the name, or if this computer or this build of PyTorch has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: expected cpu, cuda, cuda:1 or another device of PyTorch") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "this PyTorch is built without CUDA" if not torch.backends.cuda.is_built() else "PyTorch finds no CUDA device"
        raise ConfigError(f"device {str(device)!r}: {why}: use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {str(device)!r}: this computer has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    try:
        torch.zeros((), device=device) + 1
    except (RuntimeError, AssertionError, NotImplementedError):  # raised by different kinds of devices
        raise ConfigError(f"device {str(device)!r}: PyTorch cannot compute there: use cpu") from None
    return device


def require_memory(size: int, what: str, way_out: str) -> None:
    """Raise ConfigError if `size` bytes exceed this computer's memory; `what` needs them, `way_out` names a smaller request."""
    total = psutil.virtual_memory().total
    if size > total:
        raise ConfigError(f"{what} would take {size / 2**30:,.0f} GiB of memory, this computer has {total / 2**30:.0f} GiB: {way_out}")


@contextmanager
def limit_weights(most: int, error: EpnsError) -> Iterator[None]:
    """Raise `error` as soon as networks built inside have more than `most` weights, before memory is filled."""
    left, tensors = most, 0

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal left, tensors
        left -= parameter.numel() if parameter is not None else 0
        tensors += 1
        if left < 0 or tensors > MOST_TENSORS:
            raise error

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError, TypeError) as problem:
        if any(word in str(problem) for word in ("allocate", "overflow", "Overflow")) or isinstance(problem, MemoryError):
            raise error from None
        raise
    finally:
        hook.remove()


def weights_that_fit() -> int:
    """Return how many weights can be trained in the memory of this computer."""
    return int(psutil.virtual_memory().total // TRAINED)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads_for(*, little: bool) -> Iterator[None]:
    """Run torch on one thread in the block if its work is little; what the environment says (OMP_NUM_THREADS) stays as it is.

    Two threads gain nothing then on an idle computer, and on a busy one each operation waits for a thread that waits for a core.
    """
    before = torch.get_num_threads()
    if little and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
