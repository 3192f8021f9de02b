"""What the data dictates to a model, apart from what the user chose."""

from __future__ import annotations

from dataclasses import dataclass

from epns_pyro.state import StateSpec


@dataclass(frozen=True)
class DataContext:
    """What a model has to know about the data it is made for; `epns_pyro.data.scales` measures it.

    Parameters
    ----------
    spec : StateSpec
        With the scales (standard deviations over the training split) filled in.
    frame_dt : float
        Time between two frames: one model step.
    step_scales : dict of str to float
        For every real dynamic field the standard deviation of its change over one step beyond what its rate predicts,
        x' - x - v dt (x' - x without a rate), in the unit of the field. The law "persistence with fitted noise" has exactly this noise.
    sites : tuple of int
        Sizes of the site axes, e.g. (5,) bodies or (72, 72) pixels.
    """

    spec: StateSpec
    frame_dt: float
    step_scales: dict[str, float]
    sites: tuple[int, ...]
