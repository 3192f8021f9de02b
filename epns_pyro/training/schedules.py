"""Schedules as functions of the fraction of training done, in [0, 1]."""

from __future__ import annotations

import math
from typing import Literal

import pydantic

from epns_pyro.config import Config

Fraction = pydantic.Field(ge=0.0, le=1.0)


class KLSchedule(Config):
    """Weight of the KL term: rises linearly from `start` to 1 over `warmup` of training and stays; `cycles` > 1 repeats that (cyclical)."""

    start: float = pydantic.Field(default=0.0, ge=0.0, le=1.0, description="first weight")
    warmup: float = pydantic.Field(default=0.1, ge=0.0, le=1.0, description="share of training, or of a cycle, with a rising weight")
    cycles: int = pydantic.Field(default=1, ge=1, description="number of times that the weight rises")
    weight: float = pydantic.Field(default=1.0, gt=0.0, description="final weight (beta); only 1 gives an evidence bound")

    def at(self, fraction: float) -> float:
        position = (fraction * self.cycles) % 1.0 if fraction < 1.0 else 1.0
        rise = min(1.0, position / self.warmup) if self.warmup else 1.0
        return self.weight * (self.start + (1.0 - self.start) * rise)


class HorizonSchedule(Config):
    """Steps of the training windows: `start` until `begin` of training, then growing linearly to `end` at `finish`, and constant."""

    start: int = pydantic.Field(default=1, ge=1, description="first length, in steps")
    end: int = pydantic.Field(default=1, ge=1, description="last length, in steps")
    begin: float = pydantic.Field(default=0.5, ge=0.0, le=1.0, description="share of training after which windows grow")
    finish: float = pydantic.Field(default=1.0, ge=0.0, le=1.0, description="share of training after which they have their last length")

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> HorizonSchedule:
        if self.end < self.start or self.finish < self.begin:
            raise ValueError(
                f"a horizon grows: expected start <= end and begin <= finish, found {self.start}, {self.end}, {self.begin}, {self.finish}"
            )
        return self

    def at(self, fraction: float) -> int:
        if fraction < self.begin:
            return self.start
        span = self.finish - self.begin
        progress = min(1.0, (fraction - self.begin) / span) if span else 1.0
        return self.start + math.floor(progress * (self.end - self.start + 1 - 1e-9))


class RateSchedule(Config):
    """Learning rate as a factor of its peak: linear warm-up over `warmup`, then constant, or a cosine down to `floor`."""

    kind: Literal["cosine", "constant"] = pydantic.Field(default="cosine", description="course after the warm-up")
    warmup: float = pydantic.Field(default=0.05, ge=0.0, le=1.0, description="share of training with a rising rate")
    floor: float = pydantic.Field(default=0.01, ge=0.0, le=1.0, description="last factor of a cosine")

    def at(self, fraction: float) -> float:
        if fraction < self.warmup:
            return max(fraction / self.warmup, 1e-3)
        if self.kind == "constant":
            return 1.0
        progress = (fraction - self.warmup) / (1.0 - self.warmup) if self.warmup < 1.0 else 1.0
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
