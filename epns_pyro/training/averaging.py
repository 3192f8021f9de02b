"""An average of the weights over the last part of training.

The weights of any one step carry the noise of its gradients. That noise hardly shows in the bound, and adds up over a rollout: an average
of many steps has little of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of the weights of a module over its steps, where step t counts in proportion to t^power.

    It always spans the same share of the training so far, however long that is: the power function of Karras et al. (2024),
    arXiv:2312.02696.

    Parameters
    ----------
    module : Module
    width : float
        Standard deviation of the steps that are averaged over, as a share of all steps; 0: no average, the weights of the last step.
    """

    def __init__(self, module: nn.Module, width: float) -> None:
        self._parameters = dict(module.named_parameters())
        self._power = power_of(width) if width else None
        self._steps = 0
        self._others: dict[str, Tensor] = {}  # the average; inside `applied` the weights of the last step

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of one more step."""
        if self._power is None:
            return
        self._steps += 1
        if self._steps == 1:
            self._others = {name: weight.detach().clone() for name, weight in self._parameters.items()}
            return
        decay = (1 - 1 / self._steps) ** (1 + self._power)
        get_ema_multi_avg_fn(decay)(list(self._others.values()), list(self._parameters.values()), self._steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the average for the time of a `with` block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, other in self._others.items():
            mine = self._parameters[name].clone()
            self._parameters[name].copy_(other)
            other.copy_(mine)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and the weights that the module does not have now: inside `applied`, those of the last step."""
        return {"steps": self._steps, "weights": self._others}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned inside `applied`, for a module that has the average, and give it the weights of the last step.

        Raises
        ------
        ValueError
            If the weights are not those of the module, or not finite.
        """
        steps, weights = state["steps"], state["weights"]
        if not isinstance(steps, int) or steps < 0 or (weights and weights.keys() != self._parameters.keys()):
            raise ValueError("expected a number of steps, and the weights of the model")
        for name, weight in weights.items():
            mine = self._parameters[name]
            right = isinstance(weight, Tensor) and weight.layout is torch.strided and weight.shape == mine.shape
            if not right or weight.dtype != mine.dtype or not weight.isfinite().all():
                raise ValueError(f"{name} is not of the shape and type of the weight, or not finite")
        self._steps = steps
        self._others = {name: weight.to(self._parameters[name].device, copy=True) for name, weight in weights.items()}
        self._exchange()

    def start(self, steps: int) -> None:
        """Average from here on, after so many steps that no average is known of."""
        if steps and self._power is not None:
            self._steps, self._others = steps, {name: weight.detach().clone() for name, weight in self._parameters.items()}


def power_of(width: float) -> float:
    """Return the power with which steps count, for an average of a width: Karras et al. (2024), appendix C."""
    inverse = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())
