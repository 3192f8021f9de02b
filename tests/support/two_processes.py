"""Three small runs on two processes, for test_trainer: two_processes.py STORE FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from small import DISTRIBUTED, config, trainer

from epns_pyro.data import open_store
from epns_pyro.training.trainer import Hardware, Trainer

STORE, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])


def run_in(name: str) -> Trainer:
    return trainer(open_store(STORE), FOLDER / name, config(**DISTRIBUTED), Hardware("cpu", devices=2))


def in_second_process(run: Trainer, step: int, what: Callable) -> None:
    """Pass the result of the objective through `what` in one step of the second process."""

    def hook(module: torch.nn.Module, arguments: tuple, result: object) -> object:
        return what(result) if run.fabric.global_rank == 1 and run._counters.step == step else result

    run._objective.module.register_forward_hook(hook)


def interrupt(result: object) -> object:
    os.kill(os.getpid(), signal.SIGINT)
    return result


torch.set_num_threads(1)
run_in("two").fit()

stopped = run_in("interrupted")
in_second_process(stopped, 2, interrupt)
try:
    stopped.fit()
except KeyboardInterrupt:
    assert stopped._counters.step == 3
    run_in("interrupted").fit(resume=True)

bad = run_in("bad")
in_second_process(bad, 2, lambda loss: loss._replace(loss=loss.loss + float("inf")))
bad.fit()
