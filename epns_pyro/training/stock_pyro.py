"""Train, score and sample any pair of Pyro programs over trajectories, model(x0, path) and guide(x0, path), with standard Pyro.

The EPNS has its own trainer, bounds and rollout, which use that it is a step-by-step model. The functions here need only this
signature and the plate ``trajectory``; baselines with latents of whole trajectories use them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceMeanField_ELBO
from torch import Tensor

from epns_pyro.data import Windows
from epns_pyro.errors import CheckpointError, TrainingError
from epns_pyro.models.program import PathProgram
from epns_pyro.training.interrupts import interruptible
from epns_pyro.training.schedules import HorizonSchedule, RateSchedule
from epns_pyro.whole import whole

logger = logging.getLogger(__name__)

CLIP = 100.0  # norm of the gradient, in nats per transition


class Saved:
    """The state of `fit` in a file, from which an interrupted training continues exactly.

    Parameters
    ----------
    path : Path
    every : int
        Steps between writes.

    Attributes
    ----------
    seconds : float
        Time of training so far, interrupted parts included.
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self.path, self.every, self.seconds = path, every, 0.0

    def read(self) -> dict[str, Any] | None:
        """Return the state; None if there is none yet.

        Raises
        ------
        CheckpointError
            If the file is damaged.
        """
        if not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.seconds = state["seconds"]
        except Exception as error:  # torch raises many types for a damaged file
            raise CheckpointError(f"{self.path}: not a readable checkpoint ({type(error).__name__}): remove it to train again") from None
        return state

    def write(self, **state: Any) -> None:
        """Write the state, completely or not at all."""
        with whole(self.path) as temporary:
            torch.save(state | {"seconds": self.seconds}, temporary)


def fit(
    model: PathProgram,
    guide: PathProgram,
    windows: Windows,
    *,
    steps: int,
    learning_rate: float,
    horizon: HorizonSchedule,
    log_every: int = 50,
    saved: Saved | None = None,
    on_progress: Callable[[int, int], None] = lambda step, steps: None,
) -> float:
    """Maximise the ELBO per transition with Adam, on windows that grow with `horizon`; return its mean over the last `log_every` steps.

    With `saved` it continues from there. `on_progress` is called with (step, steps) every `log_every` steps.

    Raises
    ------
    TrainingError
        If the loss or gradient was not finite in more than a tenth of the steps.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the state has been saved.
    """
    objective, rate = TraceMeanField_ELBO()(model, guide), RateSchedule()
    recent: list[float] = []
    with pyro.validation_enabled(False), interruptible() as interrupted:
        windows.length = horizon.at(0.0)
        objective(*windows.draw())  # registers the parameters with the objective
        optimizer = torch.optim.Adam(objective.parameters(), lr=learning_rate)
        parts: dict[str, Any] = {"model": model, "guide": guide, "optimizer": optimizer, "windows": windows}
        first = skipped = 0
        if saved and (state := saved.read()):
            first, skipped, recent = state["step"], state["skipped"], state["recent"]
            for name, part in parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["noise"])
        for step in range(first, steps):
            started = time.perf_counter()
            windows.length = horizon.at(step / steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate.at(step / steps)
            x0, path = windows.draw()
            loss = objective(x0, path) / path.shape[:2].numel()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIP)
            if loss.isfinite() and norm.isfinite():
                optimizer.step()
                recent = [*recent[1 - log_every :], -float(loss.detach())]
            else:
                skipped += 1
                if skipped > max(1, steps // 10):
                    raise TrainingError(f"loss or gradient was not finite in {skipped} of {step + 1} steps: lower the learning rate")
            done, stop = step + 1, interrupted()
            if done % log_every == 0:
                logger.info("step %d of %d: ELBO %.2f nats per transition", done, steps, sum(recent) / max(1, len(recent)))
                on_progress(done, steps)
            if saved:
                saved.seconds += time.perf_counter() - started
                if done % saved.every == 0 or done == steps or stop:
                    content = {name: part.state_dict() for name, part in parts.items()}
                    saved.write(**content, step=done, skipped=skipped, recent=recent, noise=torch.get_rng_state())
            if stop:
                raise KeyboardInterrupt
    return sum(recent) / max(1, len(recent))


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
