"""Training: a loop on Lightning Fabric over minibatches of windows.

The loop logs, validates and writes a checkpoint at regular intervals of steps. What is validated and kept is an average of the weights
over the last part of training. The complete state (weights, optimiser, generators, windows, counters) is in the checkpoint, so an
interrupted and resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from epns_pyro.data import Store, Windows
from epns_pyro.errors import CheckpointError, ConfigError, TrainingError
from epns_pyro.inference.hidden import objective
from epns_pyro.machine import limit_weights, threads_for, weights_that_fit
from epns_pyro.models.building import build
from epns_pyro.training.averaging import Average
from epns_pyro.training.checkpoint import Counters, context_to_plain, read_checkpoint, write_checkpoint
from epns_pyro.training.fittable import hold, is_held, too_large, windows_to_fit
from epns_pyro.training.interrupts import interruptible
from epns_pyro.training.keeping import Keeper
from epns_pyro.training.linear import start_from_linear, starts_linear
from epns_pyro.training.metrics import MetricsLog
from epns_pyro.training.motion import fit_motion
from epns_pyro.training.noise import fit_noise
from epns_pyro.training.run import RunConfig, RunFolder, TrainingConfig, differing_settings, plain
from epns_pyro.training.validation import Validation, validator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """Where to train: the arguments of Fabric that a user may choose."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that makes data, folders and messages; the launcher names the others in their environment."""
        return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0

    def fabric(self) -> Fabric:
        strategy = "ddp" if self.devices * self.num_nodes > 1 else "auto"
        try:
            return Fabric(accelerator=self.accelerator, devices=self.devices, num_nodes=self.num_nodes, strategy=strategy)
        except (MisconfigurationException, RuntimeError, ValueError) as error:
            raise TrainingError(f"cannot train on accelerator {self.accelerator!r} with {self.devices} device(s): {error}") from None


@dataclass(frozen=True)
class Progress:
    """What a progress display shows: the last step, and the newest numbers in nats per transition."""

    step: int
    steps: int
    log_likelihood: float
    kl: float
    validation: Validation | None
    skipped: int


class Trainer:
    """Trains the transition of a run on a store.

    Parameters
    ----------
    config : RunConfig
    store : Store
        With the sets `train` and `val`.
    folder : RunFolder
    hardware : Hardware

    Attributes
    ----------
    motion_windows : int
        To which the equation of motion is fitted before the first step; 0 for none.
    starts_linear : bool
        Whether training starts from a linear autoregression, and not from persistence or a law.
    """

    def __init__(self, config: RunConfig, store: Store, folder: RunFolder, hardware: Hardware = Hardware()) -> None:
        # The system of a config is that of the data, not the one that a preset would simulate.
        self.config, self.folder = config.model_copy(update={"system": store.system.config}), folder
        self.store = store = with_strides(store, config.training)
        self.fabric = hardware.fabric()
        self.fabric.launch()
        self.context = store.context()
        torch.manual_seed(config.seed)
        many = ConfigError("the model of these settings has more weights than fit in memory, or too many layers: make it smaller")
        with limit_weights(weights_that_fit(), many):
            self.transition = build(config.model, self.context)
        training = config.training
        self.motion_windows = windows_to_fit(self.transition, training.motion_windows)
        self.starts_linear = starts_linear(self.transition) and not self.motion_windows  # both are fitted to the same changes
        if self.motion_windows:
            hold(self.transition)
        minimised = objective(self.transition, training.feedback_mode, compiled=training.compile)
        optimizer = torch.optim.AdamW(
            minimised.parameters(), lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay, fused=True
        )
        self._objective, self._optimizer = self.fabric.setup(minimised, optimizer)
        self._weights = Average(self.transition, training.average)
        self._windows = self._open_windows(training)
        self._noise = torch.Generator(device=self.fabric.device).manual_seed(config.seed)
        self._validator = validator(
            store,
            self.context,
            self.transition,
            training.validation_transitions,
            window=training.horizon.end,
            device=self.fabric.device,
            crop=training.crop,
        )
        self._counters, self._keeper = Counters(), Keeper()

    # -- the loop --------------------------------------------------------------------------------------------------------

    def fit(
        self,
        *,
        resume: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        on_fit: Callable[[str], None] = lambda what: None,
    ) -> Validation:
        """Train until the configured number of steps, or until patience is lost; return the last validation.

        `on_progress` is told of steps, `on_fit` in words what is fitted before and after them.

        Raises
        ------
        CheckpointError
            If the run has a checkpoint already and `resume` is not set.
        TrainingError
            If the loss stays non-finite.
        KeyboardInterrupt
            On Ctrl-C or SIGTERM, after the state has been saved; before the first step there is none.
        """
        training, counters = self.config.training, self._counters
        if resume:
            self._restore(read_checkpoint(self.folder.last))
            counters = self._counters
        elif counters.step == 0 and self.folder.last.exists():
            raise CheckpointError(f"{self.folder.last}: exists already: continue it with resume=True")
        log = MetricsLog(self.folder, start=counters.step, enabled=self.fabric.is_global_zero)
        # Non-finite numbers are counted and reported here; validation inside every distribution would stop training at the first.
        little = self.transition.is_little(training.batch)
        with log, pyro.validation_enabled(False), threads_for(little=little):
            if counters.step == 0:
                if self.starts_linear:
                    start_from_linear(self.transition, self.store, self.context, jitter=training.jitter, seed=self.config.seed)
                self._fit_motion(on_fit)  # a signal stops it at once: there is nothing to save yet
                self._validate(log)  # the kept state is never worse than the law that training starts from
            with interruptible() as interrupted:
                while counters.step < training.steps and not self.lost_patience:
                    started = time.perf_counter()
                    self._step(counters.step / training.steps)
                    counters.step += 1
                    counters.seconds += time.perf_counter() - started
                    finished = counters.step == training.steps
                    if finished:
                        self._fit_noise(on_fit)
                    if counters.step % training.log_every == 0 or finished:
                        self._report(log, on_progress)
                    if counters.step % training.validate_every == 0 or finished:
                        self._validate(log)
                    stop = self._stopping(interrupted())  # asked once per step: a later signal waits for the next step
                    if counters.step % training.checkpoint_every == 0 or finished or stop or self.lost_patience:
                        self._save(self.folder.last)
                    if stop:
                        raise KeyboardInterrupt
        return counters.validation

    def _fit_motion(self, on_fit: Callable[[str], None]) -> None:
        """Fit the equation of motion, and the noise about it, where the model has one."""
        if self.motion_windows:
            on_fit(f"the equation of motion is fitted first, to {self.motion_windows} windows")
            fit_motion(self.transition, self.store, self.context, self.motion_windows, seed=self.config.seed)
            self._fit_noise(on_fit)
        elif self.config.training.motion_windows is None and (words := too_large(self.transition)):
            on_fit(words)

    def _fit_noise(self, on_fit: Callable[[str], None]) -> None:
        """Fit the noise about a law that stays as it was fitted: before training, and at its end to all windows at once.

        Few windows of a batch have an encounter, and of what bodies are thrown by in one the steps of training leave too much.
        """
        if self.motion_windows and is_held(self.transition):
            on_fit("the noise about the equation of motion is fitted")
            with self._weights.applied():
                fit_noise(self.transition, self.store, self.context, self.motion_windows, seed=self.config.seed + 2)

    @property
    def lost_patience(self) -> bool:
        """Whether training ends early: no state was kept in the last validations."""
        return self._counters.worse >= (self.config.training.patience or math.inf)

    @property
    def best(self) -> tuple[int, float]:
        """Step and validation ELBO of the state that is kept; step 0 is what training starts from, with the noise of the data."""
        return self._counters.best_step, self._counters.best

    def _step(self, fraction: float) -> None:
        training = self.config.training
        for group in self._optimizer.param_groups:
            group["lr"] = training.learning_rate * training.rate.at(fraction)
        self._windows.length = training.horizon.at(fraction)
        earlier = self.transition.earlier_frames
        past, x0, path = self._windows.draw_with_past() if earlier else (None, *self._windows.draw())
        loss = self._objective(
            x0,
            path,
            **({"past": past} if earlier else {}),
            kl_weight=training.kl.at(fraction),
            free_bits=training.free_bits,
            noise=self._draw_noise,
            share=self._average,
        )
        self._optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss.loss)
        norm = self.fabric.clip_gradients(self._objective, self._optimizer, max_norm=training.clip_norm, error_if_nonfinite=False)
        # Averages over processes, so that all agree whether the step counts; transferred together, to wait for the device only once.
        value, log_likelihood, kl, norm = self._average(torch.stack([loss.loss.detach(), loss.log_likelihood, loss.kl, norm])).tolist()
        if math.isfinite(value) and math.isfinite(norm):
            self._optimizer.step()
            self._weights.update()
            self._counters.count(log_likelihood=log_likelihood, kl=kl, gradient_norm=norm)
        else:
            self._skip()

    def _skip(self) -> None:
        counters = self._counters
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        if counters.skipped_in_a_row >= self.config.training.max_bad_steps:
            raise TrainingError(
                f"the loss or its gradient was not finite in {counters.skipped_in_a_row} steps in a row, up to step {counters.step + 1}: "
                "lower training.learning_rate, or check the data with epns-pyro data info. "
                + (f"{self.folder.last} holds the last good state" if self.folder.last.exists() else "Nothing was saved yet")
            )
        logger.warning("step %d: loss or gradient not finite, step skipped (%d in all)", counters.step + 1, counters.skipped)

    def _average(self, values: Tensor) -> Tensor:
        """Average over processes; Fabric writes the result over its argument, hence the copy."""
        return self.fabric.all_reduce(values.clone(), reduce_op="mean")

    def _draw_noise(self, like: Tensor) -> Tensor:
        """Return standard Normal noise: this process's rows of the noise that a single process would sample for the global minibatch."""
        rows, rank = len(like), self.fabric.global_rank
        everything = torch.randn(
            rows * self.fabric.world_size, *like.shape[1:], dtype=like.dtype, device=like.device, generator=self._noise
        )
        return everything[rank * rows : (rank + 1) * rows]

    # -- what happens every so many steps --------------------------------------------------------------------------------

    def _report(self, log: MetricsLog, on_progress: Callable[[Progress], None] | None) -> None:
        counters, training = self._counters, self.config.training
        means = counters.take_means()
        log.write(
            counters.step,
            train_log_likelihood=means["log_likelihood"],
            train_kl=means["kl"],
            gradient_norm=means["gradient_norm"],
            learning_rate=self._optimizer.param_groups[0]["lr"],
            kl_weight=training.kl.at((counters.step - 1) / training.steps),
            horizon=self._windows.length,
            skipped=counters.skipped,
        )
        if on_progress and self.fabric.is_global_zero:
            on_progress(
                Progress(counters.step, training.steps, means["log_likelihood"], means["kl"], counters.validation, counters.skipped)
            )

    def _validate(self, log: MetricsLog) -> None:
        # Only one process decides: several could differ in the last digit, and then take different decisions.
        with self._weights.applied():
            validation, elbos = self.fabric.broadcast(self._validator.evaluate() if self.fabric.is_global_zero else None)
        self._counters.validation = validation
        log.write(self._counters.step, **{f"val_{name}": value for name, value in validation.__dict__.items()})
        if self._keeper.takes(elbos, later=self._counters.best_step > 0):
            self._counters.best, self._counters.best_step, self._counters.worse = validation.elbo, self._counters.step, 0
            self._save(self.folder.best)
        else:
            self._counters.worse += 1

    # -- state -----------------------------------------------------------------------------------------------------------

    def _save(self, path: Any) -> None:
        if self.fabric.is_global_zero:
            with self._weights.applied():
                write_checkpoint(
                    path,
                    config=plain(self.config),
                    system=plain(self.store.system.config),
                    context=context_to_plain(self.context),
                    store=str(self.store.path),
                    weights=self.transition.state_dict(),
                    average=self._weights.state_dict(),
                    optimizer=self._optimizer.state_dict(),
                    noise=self._noise.get_state(),
                    windows=self._windows.state_dict(),
                    counters=asdict(self._counters),
                    best_elbos=self._keeper.best,
                )
        self.fabric.barrier()

    def _restore(self, content: dict[str, Any]) -> None:
        found = RunConfig.parse(content["config"], where=str(self.folder.last)).model_copy(update={"system": self.config.system})
        if found != self.config:
            raise CheckpointError(f"{self.folder.last}: {differences(self.config, found)}: start again in another folder with --out")
        if content["context"] != self.context:
            raise CheckpointError(f"{self.folder.last}: was trained on other data than {self.store.path}")
        restore = {
            "weights": self.transition.load_state_dict,
            "average": lambda known: self._weights.load_state_dict(known) if known else self._weights.start(content["counters"].step),
            "optimizer": self._restore_optimizer,
            "noise": self._noise.set_state,
            "windows": self._windows.load_state_dict,
            "best_elbos": lambda known: self._keeper.resume(known, content["counters"].best),
        }
        for part, read in restore.items():
            try:
                read(content[part])
            except CheckpointError as error:
                raise CheckpointError(f"{self.folder.last}: {error}") from None
            except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:  # types differ by part
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(f"{self.folder.last}: its {part} do not fit this run ({reason}): train anew") from None
        self._counters = content["counters"]

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """Restore the moments; settings come from the config. Shapes are checked here, because PyTorch's fused kernels do not."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state = saved["state"]
        if not isinstance(state, dict) or not state.keys() <= set(range(len(parameters))):
            raise ValueError(f"expected moments of {len(parameters)} parameters")
        for number, moments in state.items():
            if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"parameter {number}: expected step, exp_avg and exp_avg_sq")
            for name, value in moments.items():
                shape = () if name == "step" else parameters[number].shape
                right = isinstance(value, Tensor) and value.layout is torch.strided and value.shape == shape
                if not right or value.dtype != (torch.float32 if name == "step" else parameters[number].dtype):
                    raise ValueError(f"parameter {number}: {name} is not of the shape and type of the parameter")
                if not value.isfinite().all() or (name != "exp_avg" and (value < 0).any()):
                    raise ValueError(f"parameter {number}: {name} holds impossible numbers")
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})

    def _open_windows(self, training: TrainingConfig) -> Windows:
        longest = max(training.horizon.start, training.horizon.end)
        return Windows(
            self.store,
            "train",
            longest,  # refuses trajectories that are too short now, not after hours of training
            training.batch,
            seed=self.config.seed,
            first_frame=self.store.system.first_frame,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            memory=training.memory,
            device=self.fabric.device,
            context=self.context,
            strides=training.strides,
            earlier=self.transition.earlier_frames,
            crop=training.crop,
            jitter=training.jitter,
        )

    def _stopping(self, interrupted: bool) -> bool:
        """Return whether to stop after this step: all processes stop if one of them received a signal."""
        if self.fabric.world_size == 1:
            return interrupted
        return bool(self.fabric.all_reduce(torch.tensor(float(interrupted), device=self.fabric.device), reduce_op="max"))


def with_strides(store: Store, training: TrainingConfig) -> Store:
    """Return the store as training reads it: where steps of several strides are learnt, its states say how long they last."""
    return store if training.strides == (1,) else store.timed()


def differences(mine: RunConfig, theirs: RunConfig) -> str:
    """Describe which settings differ, as dotted keys."""
    return "; ".join(f"{key} is {b!r} in the checkpoint, {a!r} now" for key, a, b in differing_settings(mine, theirs))
