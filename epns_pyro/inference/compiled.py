"""One compiled graph per step, by torch.compile: to sample it (networks, integrator and draws), and for its bound in training.

Only steps are compiled, never the Pyro programs. Random numbers are those of the plain step, so futures of one seed, bounds and gradients
are the same to rounding. Graphs are kept on disk by PyTorch, for every run of the same architecture.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from epns_pyro.inference.elbo import Bound, Noise, bound_and_carry
from epns_pyro.inference.rollout import sample_step
from epns_pyro.models import Feedback, Transition
from epns_pyro.models.transition import Carry

PAYS_FROM = 20_000  # steps of a block of states: what compiling takes, minutes, is then less than what it saves
COMPILERS = ("g++", "clang++", "c++", "cl")
# The random numbers of PyTorch, and no Python between kernels.
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True, "cpp_wrapper": True}


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, which torch.compile needs on a CPU: that of the variable CXX, or a usual one."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)


def _can_compile(transition: Transition, what: str) -> bool:
    """Return whether this computer can compile the steps of a transition; if not, warn that `what` is not compiled."""
    if next(transition.parameters()).device.type != "cpu" or find_compiler() is not None:
        return True
    warnings.warn(f"no C++ compiler was found: {what} is not compiled; install g++ or clang++, or name one in CXX", stacklevel=4)
    return False


def _warn_of_plain_steps(error: Exception, consequence: str) -> None:
    """Warn that a step is not one graph, with the first line of the reason."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(f"the step is not one graph ({reason}): {consequence} without compiling", stacklevel=3)


def compiled_sampler(transition: Transition) -> CompiledSampler | None:
    """Return the compiled sampler of a transition; None, with a warning, on a computer that cannot compile."""
    return CompiledSampler(transition) if _can_compile(transition, "sampling") else None


class CompiledSampler:
    """`sample_step` of a transition as one graph; the first call compiles it, another for a single state.

    A step that cannot be one graph, as where it depends on the state how long a network is asked, is sampled plainly, with a warning.

    Parameters
    ----------
    transition : Transition
    backend : str or callable
        Of torch.compile.
    """

    def __init__(self, transition: Transition, backend: str | Callable[..., Any] = "inductor") -> None:
        def step(x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            following = sample_step(transition, Carry(x, memory))
            return following.x, following.memory

        self.transition, self.backend, self.compiled, self._warm = transition, backend, True, False
        options = OPTIONS if backend == "inductor" else None
        self._step = torch.compile(step, fullgraph=True, dynamic=False, backend=backend, options=options)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one that is sent elsewhere, compiles the steps of its own transition."""
        return type(self), (self.transition, self.backend)

    def __call__(self, carry: Carry) -> Carry:
        if self.compiled:
            if not self._warm:  # tables that are made at first use have to be there when the graph is made
                with torch.random.fork_rng(devices=[carry.x.device] if carry.x.is_cuda else []):
                    sample_step(self.transition, carry)
                self._warm = True
            if len(carry) > 1:  # any other number of states needs no graph of its own
                for part in (carry.x, *carry.memory):
                    torch._dynamo.mark_dynamic(part, 0)
            try:
                return Carry(*self._step(carry.x, carry.memory))
            except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
                _warn_of_plain_steps(error, "it is sampled")
                self.compiled = False
        return sample_step(self.transition, carry)


def compiled_bound(transition: Transition) -> CompiledBound | None:
    """Return the compiled bound of a transition's step; None, with a warning, on a computer that cannot compile."""
    return CompiledBound(transition) if _can_compile(transition, "training") else None


class CompiledBound:
    """`bound_and_carry` of a transition as one graph, with its gradient; the first call compiles it, and calls with gradients another time.

    A step that cannot be one graph is worked out plainly, with a warning.

    Parameters
    ----------
    transition : Transition
    backend : str or callable
        Of torch.compile.
    """

    def __init__(self, transition: Transition, backend: str | Callable[..., Any] = "inductor") -> None:
        def bound(x: Tensor, memory: tuple[Tensor, ...], following: Tensor, noise: Tensor, feed: Feedback | None) -> tuple[Any, ...]:
            made, carry = bound_and_carry(transition, Carry(x, memory), following, lambda like: noise, feed)
            return *made, *((carry.x, carry.memory) if carry else ())

        self.transition, self.compiled = transition, True
        self._latents: torch.Size | None = None
        self._bound = torch.compile(bound, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, carry: Carry, following: Tensor, noise: Noise, feed: Feedback | None) -> tuple[Bound, Carry | None]:
        if self.compiled:
            if self._latents is None:  # tables that are made at first use have to be there when the graph is made
                with torch.no_grad():
                    made, _ = bound_and_carry(self.transition, carry, following, torch.zeros_like, feed)
                self._latents = made.kl.shape[1:]
            drawn = noise(carry.x.new_empty(len(carry), *self._latents))
            try:
                log_likelihood, kl, *rest = self._bound(carry.x, carry.memory, following, drawn, feed)
            except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
                _warn_of_plain_steps(error, "training goes on")
                self.compiled = False
                return bound_and_carry(self.transition, carry, following, lambda like: drawn, feed)
            return Bound(log_likelihood, kl), Carry(*rest) if rest else None
        return bound_and_carry(self.transition, carry, following, noise, feed)
