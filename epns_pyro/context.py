"""Properties of the data that a model depends on, apart from the user's settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from epns_pyro.state import Array, StateSpec


@dataclass(frozen=True)
class DataContext:
    """Properties of the data that a model is built for; `epns_pyro.data.scales` measures them.

    Parameters
    ----------
    spec : StateSpec
        With the scales (standard deviations over the training set) filled in.
    frame_dt : float
        Time between two frames: one model step.
    step_scales : dict of str to float
        For every real dynamic field the standard deviation of its change over one step beyond what its rate predicts,
        x' - x - v dt (x' - x without a rate), in the unit of the field: the noise of "persistence with fitted noise".
    sites : tuple of int
        Sizes of the site axes, e.g. (5,) bodies or (72, 72) pixels.
    origin : tuple of float
        The point (space,) from which positions are measured inside a model; empty: the zero point. In single precision, two close
        positions far from zero cannot be distinguished.
    absences : bool
        Whether bodies may be absent: NaN in the dynamic channels of a state.
    cell_reach : float, optional
        For label images: the distance along y and x, in pixels, from the centre of a cell within which its pixels lie before and after one
        step, except in a few extreme steps. None if it was not measured.
    event_rates : tuple of float
        For label images with lineage: the fractions of cells that die and that divide in a step. Empty if they were not measured.
    second_difference_correlations : tuple of float
        Where the velocity is hidden, the correlations of a second difference of the position with the next one and with the one after;
        empty if they were not measured.
    """

    spec: StateSpec
    frame_dt: float
    step_scales: dict[str, float]
    sites: tuple[int, ...]
    origin: tuple[float, ...] = ()
    absences: bool = False
    cell_reach: float | None = None
    second_difference_correlations: tuple[float, ...] = ()
    event_rates: tuple[float, ...] = ()

    def to_local(self, x: Array, *, among_dynamic: bool = False) -> Array:
        """Measure translating fields from the origin: x (*batch, *site, channel), in double precision if there is an origin.

        With `among_dynamic` the channels are the dynamic ones.
        """
        return self._moved(x, -1.0, among_dynamic)

    def to_global(self, x: Array) -> Array:
        """Undo `to_local`: full states x (*batch, *site, channel), in double precision if there is an origin."""
        return self._moved(x, 1.0, among_dynamic=False)

    def shift(self, *, among_dynamic: bool = False) -> np.ndarray:
        """Return what `to_global` adds to states, (channel,); zeros without an origin."""
        spec = self.spec
        shift = np.zeros(spec.dynamic_channels if among_dynamic else spec.channels)
        for field in spec.dynamic_fields if among_dynamic else spec.fields:
            if field.translates and self.origin:
                shift[spec.slice(field.name, among_dynamic=among_dynamic)] = self.origin
        return shift

    def _moved(self, x: Array, sign: float, among_dynamic: bool) -> Array:
        if not self.origin:
            return x
        shift = sign * self.shift(among_dynamic=among_dynamic)
        return x.double() + torch.as_tensor(shift, device=x.device) if isinstance(x, torch.Tensor) else x.astype(np.float64) + shift
