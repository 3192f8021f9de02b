"""Train, score and sample any pair of Pyro programs over trajectories, model(x0, path) and guide(x0, path), with standard Pyro.

The EPNS has its own trainer, bounds and rollout, which use that it is a step-by-step model. The functions here need only this
signature and the plate ``trajectory``; baselines with latents of whole trajectories use them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceMeanField_ELBO
from torch import Tensor

from epns_pyro.data import Windows
from epns_pyro.errors import TrainingError
from epns_pyro.models.program import PathProgram
from epns_pyro.training.schedules import HorizonSchedule, RateSchedule

logger = logging.getLogger(__name__)

CLIP = 100.0  # norm of the gradient, in nats per transition


def fit(
    model: PathProgram,
    guide: PathProgram,
    windows: Windows,
    *,
    steps: int,
    learning_rate: float,
    horizon: HorizonSchedule,
    log_every: int = 50,
) -> float:
    """Maximise the ELBO per transition with Adam, on windows that grow with `horizon`; return its mean over the last `log_every` steps.

    Raises
    ------
    TrainingError
        If the loss or gradient was not finite in more than a tenth of the steps.
    """
    objective, rate, skipped = TraceMeanField_ELBO()(model, guide), RateSchedule(), 0
    recent: list[float] = []
    with pyro.validation_enabled(False):
        windows.length = horizon.at(0.0)
        objective(*windows.draw())  # registers the parameters with the objective
        optimizer = torch.optim.Adam(objective.parameters(), lr=learning_rate)
        for step in range(steps):
            windows.length = horizon.at(step / steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate.at(step / steps)
            x0, path = windows.draw()
            loss = objective(x0, path) / path.shape[:2].numel()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIP)
            if not (loss.isfinite() and norm.isfinite()):
                skipped += 1
                if skipped > max(1, steps // 10):
                    raise TrainingError(f"loss or gradient was not finite in {skipped} of {step + 1} steps: lower the learning rate")
                continue
            optimizer.step()
            recent = [*recent[1 - log_every :], -float(loss.detach())]
            if (step + 1) % log_every == 0:
                logger.info("step %d of %d: ELBO %.2f nats per transition", step + 1, steps, sum(recent) / len(recent))
    return sum(recent) / len(recent)


class PathBounds(NamedTuple):
    """Bounds of log p(x_{1:T} | x_0, data): each (batch,), nats."""

    elbo: Tensor
    iwae: Tensor


@torch.no_grad()
def program_bounds(model: PathProgram, guide: PathProgram, x0: Tensor, path: Tensor, *, num_samples: int) -> PathBounds:
    """Score trajectories with samples of the guide, given the latents learnt from training data (those outside the plate ``trajectory``).

    Parameters
    ----------
    x0 : Tensor, (batch, *site, channel)
    path : Tensor, (batch, time, *site, channel)
    num_samples : int
    """
    weights = []
    with pyro.validation_enabled(False):
        for _ in range(num_samples):
            q = poutine.trace(guide).get_trace(x0, path)
            p = poutine.trace(poutine.replay(model, q)).get_trace(x0, path)
            weights.append(_of_trajectories(p) - _of_trajectories(q))
    stacked = torch.stack(weights)
    return PathBounds(stacked.mean(0), stacked.logsumexp(0) - math.log(num_samples))


def _of_trajectories(trace: poutine.Trace) -> Tensor:
    """Sum of the log probabilities in the plate ``trajectory``, (batch,); 0 where there are none."""
    trace.compute_log_prob()
    inside = (
        site["log_prob"]
        for site in trace.nodes.values()
        if site["type"] == "sample" and any(frame.name == "trajectory" for frame in site["cond_indep_stack"])
    )
    return sum(inside, torch.zeros(()))


@torch.no_grad()
def sample_futures(
    model: PathProgram, guide: PathProgram, x0: Tensor, *, steps: int, members: int, seed: int = 0, block_size: int = 1024
) -> Iterator[Tensor]:
    """Sample futures of states (batch, *site, channel) with `Predictive`, in blocks of members: (member, batch, steps + 1, *site, channel).

    Time 0 is x0 itself.
    """
    spec = model.spec
    at_once = max(1, block_size // len(x0))
    with pyro.validation_enabled(False), torch.random.fork_rng(devices=[x0.device] if x0.is_cuda else []):
        torch.manual_seed(seed)
        for start in range(0, members, at_once):
            count = min(at_once, members - start)
            sites = Predictive(model, guide=guide, num_samples=count, parallel=True)(x0, horizon=steps)
            states = [x0.expand(count, *x0.shape), *(spec.advance(x0, sites[f"x_{t}"]) for t in range(1, steps + 1))]
            yield torch.stack(states, 2)
