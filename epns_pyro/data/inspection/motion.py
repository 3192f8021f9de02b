"""Lines of `epns-pyro data info` about step lengths and the extent of positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from epns_pyro.data.scales import field_changes
from epns_pyro.data.stores import Store

BLOCKS, SAMPLE = 50, 20_000  # largest number of blocks read of a set, and of steps kept of a block


def motion_lines(store: Store, split: str = "train") -> Iterator[str]:
    """Describe the length of steps, the speed, and the box of all positions; nothing for data without a position.

    At most 50 blocks of trajectories, evenly spread, are read.

    Raises
    ------
    DataError
        If the set cannot be read.
    """
    position = store.spec.position
    if position is None or not position.dynamic or split not in store.splits:
        return
    blocks = store.blocks(split)
    lengths, low, high = [], np.full(store.spec.space, np.inf), np.full(store.spec.space, -np.inf)
    for number in np.unique(np.linspace(0, len(blocks) - 1, BLOCKS).astype(int)):
        states = store.read(split, blocks[number]).astype(np.float64)
        x = store.spec.get(states, position.name)
        steps = np.linalg.norm(field_changes(store.spec, position, x, store.spec.space_of(states[:, :1])), axis=-1)
        steps = steps[np.isfinite(steps)]
        lengths.append(steps[:: 1 + len(steps) // SAMPLE])
        table = x.reshape(-1, x.shape[-1])
        low, high = np.fmin(low, np.fmin.reduce(table, axis=0)), np.fmax(high, np.fmax.reduce(table, axis=0))
    steps = np.concatenate(lengths)
    if not len(steps) or not steps.any():
        return
    median, most = np.quantile(steps, (0.5, 0.99))
    unit, time = position.unit, store.time_unit
    speed = f" per {time}" if time else " per unit of time"
    yield (
        f"{split}: the {position.name} of a body moves by {_with(median, unit)} in a step (median; 99% below {_with(most, unit)}), "
        f"{_with(median / store.frame_dt, unit)}{speed}; all are within {' x '.join(f'{side:.4g}' for side in high - low)}"
        f"{f' {unit}' if unit else ''}"
    )


def duration_lines(store: Store) -> Iterator[str]:
    """Say how long the steps of every set last; nothing where all frames are even."""
    if store.spec.duration is None:
        return
    unit = f" {store.time_unit}" if store.time_unit else ""
    for split in store.splits:
        dt = np.asarray(store.dataset(split)[store.spec.duration.name].values, np.float64)[..., :-1]
        least, median, most = np.quantile(dt, (0, 0.5, 1))
        share = float(np.mean(np.abs(dt / store.frame_dt - 1) < 0.05))
        yield (
            f"{split}: a step lasts {least:.4g} to {most:.4g}{unit}, median {median:.4g}; {share:.0%} last {store.frame_dt:.4g}{unit}, "
            "within 5%"
        )


def _with(value: float, unit: str) -> str:
    return f"{value:.4g}{f' {unit}' if unit else ''}"
