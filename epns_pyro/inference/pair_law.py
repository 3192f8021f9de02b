"""The law of pairs that a model has learned, read off at pairs as they occur: acceleration against distance.

    f_ij = n_ij . (a_i(x) - a_i(x without j)),    n_ij the direction from j to i

a_i is the acceleration of the learned equation of motion. Where it is a sum over pairs, f_ij is exactly what j does to i along the line
between them, positive where it repels; of any other law it is the effect of taking j away. What depends on velocities or on other bodies
shows as the width of a band. Corrections that a network adds to the end of a frame are no part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError, ShapeError, nearest
from epns_pyro.later import later
from epns_pyro.models import Transition
from epns_pyro.presence import check_states
from epns_pyro.state import StateSpec
from epns_pyro.systems import System

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = later("xarray")

HELD_OUT, STRIDE = 40, 10  # trajectories and frames that are read by default: states that follow each other say the same
QUANTILES = (0.05, 0.5, 0.95)
MOST_KINDS = 6  # kinds of pairs, by their attributes, that are told apart
MOST_SENDERS = 16  # bodies of a state that are taken away, one after the other
FEWEST = 8  # pairs in a bin
NEAREST = (1 / 32, 1 / 8, 1 / 3)  # shares of the first bin at which it is cut: forces change most where bodies are close


def pair_law(
    transition: Transition,
    system: System,
    context: DataContext,
    x: Tensor | np.ndarray,
    *,
    per: str = "",
    times: str = "",
    bins: int = 24,
    seed: int = 0,
) -> xr.Dataset:
    """Return quantiles of f_ij over pairs of about the same distance: Dataset (kind, distance, quantile).

    Parameters
    ----------
    x : (*batch, body, channel)
        States, as those that were held out; more than a thousand make smooth bands.
    per : str
        Static scalar of the body that acts by which accelerations are divided: with "mass" gravity is one curve.
    times : str
        Static scalar of the body that is moved with which accelerations are multiplied: with "mass" they are forces.
    bins : int
        Distances, each with as many pairs; fewer where there are few pairs. Where there are many the first is cut into four.

    Returns
    -------
    xarray.Dataset
        `learned`, and, where the system has a known law, `truth` and `error`, learned minus truth of each pair; `pairs` (kind, distance)
        counts them. A kind is a set of attributes of the two bodies or of their pair; all pairs are one kind where these are many. The
        attribute `law` is the law in words, where it can be read.

    Raises
    ------
    ConfigError
        If the model has no equation of motion, or no field is called `per` or `times`.
    """
    spec, states = context.spec, torch.as_tensor(x)
    if not transition.has_motion:
        raise ConfigError("pair_law: this model has no equation of motion with velocities to read: use 'symplectic', or an integrator")
    check_states(spec, states, absences=context.absences, what="the states")
    for role, name in (("per", per), ("times", times)):
        if name and (name not in spec or spec[name].dynamic or spec[name].is_vector or spec[name].is_pair):
            known = [f.name for f in spec.static_fields if not (f.is_vector or f.is_pair)]
            raise ConfigError(f"pair_law: {role}={name!r} names no static scalar of a body: {nearest(name, known)}")
    if bins < 1 or states.shape[-2] < 2:
        raise ShapeError(f"pair_law: expected at least one bin and two bodies, found {bins} and {states.shape[-2]}")
    states = states.reshape(-1, *states.shape[-2:])
    full = states.double().numpy()
    distance, found = _by_pair(transition, context, states, seed)
    columns = {"learned": found}
    if system.has_pair_law:
        truth = system.pair_accelerations(np.nan_to_num(full))
        columns |= {"truth": truth, "error": found - truth}
    if per:
        acting = spec.get(full, per)[:, None, :]
        columns = {name: values / acting for name, values in columns.items()}
    if times:
        moved = spec.get(full, times)[:, :, None]
        columns = {name: values * moved for name, values in columns.items()}
    known = np.isfinite(found)
    kinds, kind = _kinds(spec, full, (per, times), known)
    read = _binned({name: v[known] for name, v in columns.items()}, distance[known], kind, kinds, bins, _unit(system, spec, per, times))
    words = {} if transition.law is None else {"law": str(transition.law)}
    return read.assign_attrs(words, long_name=f"acceleration × {times}" if times else "acceleration")


@torch.no_grad()
def _by_pair(transition: Transition, context: DataContext, states: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and f_ij, (state, body i, body j), NaN where one is absent or j was not taken away."""
    like, spec = next(transition.parameters()), context.spec
    local = context.to_local(states).to(like.device, like.dtype)
    there = local[..., spec.slice(_position(spec))].isfinite().all(-1)
    local = torch.where(there[..., None], local, 0.0)
    place, bodies = spec.get(local, _position(spec)), local.shape[-2]
    space = spec.space_of(local).along(lambda sides: sides[:, None])
    way = space.displacement(place[:, None], place[:, :, None])  # from j to i
    distance = way.norm(dim=-1)
    direction = way / distance.clamp_min(torch.finfo(way.dtype).tiny)[..., None]
    found = torch.full_like(distance, torch.nan)
    senders = np.random.default_rng(seed).permutation(bodies)[:MOST_SENDERS]
    for rows in torch.arange(len(local), device=local.device).split(transition.block_size):
        whole = transition.acceleration(local[rows], there[rows])
        for j in map(int, senders):
            left = there[rows].clone()
            left[:, j] = False
            added = whole - transition.acceleration(local[rows], left)
            along = (added * direction[rows, :, j]).sum(-1)
            found[rows, :, j] = torch.where(there[rows] & there[rows, j, None], along, torch.nan)
    found.diagonal(dim1=-2, dim2=-1).fill_(torch.nan)
    return distance.double().cpu().numpy(), found.double().cpu().numpy()


def _kinds(spec: StateSpec, x: np.ndarray, taken: tuple[str, str], known: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the names of the kinds of pairs, and the kind (pair,) of those that are known (state, body, body)."""
    columns: dict[str, np.ndarray] = {}
    for field in spec.static_fields:
        values = spec.get(x, field.name)
        if field.is_pair:
            columns[field.name] = values[..., : x.shape[-2]][known][:, None]
        elif not (field.is_vector or field.kind == "duration" or field.name in taken):
            two = np.broadcast_arrays(values[..., :, None], values[..., None, :])
            columns[field.name] = np.sort(np.stack([end[known] for end in two], -1), -1)
    rows = np.concatenate(list(columns.values()), -1) if columns else np.zeros((known.sum(), 0))
    different, number = np.unique(rows, axis=0, return_inverse=True) if rows.size else (rows[:1], 0)
    if not 1 < len(different) <= MOST_KINDS:
        return ["all pairs"], np.zeros(len(rows), int)
    starts = np.cumsum([0, *(column.shape[-1] for column in columns.values())])
    words = [
        ", ".join(f"{name} {' and '.join(f'{v:g}' for v in row[a:b])}" for name, a, b in zip(columns, starts, starts[1:], strict=False))
        for row in different
    ]
    return words, np.reshape(number, -1)


def _binned(
    columns: dict[str, np.ndarray], distance: np.ndarray, kind: np.ndarray, kinds: list[str], bins: int, units: tuple[str, str]
) -> xr.Dataset:
    """Return quantiles of values (pair,) in bins of distance with equally many pairs, but for the closest ones."""
    if not len(distance):
        raise ShapeError("pair_law: no two bodies are there in any of the states")
    bins = max(1, min(bins, len(distance) // (2 * FEWEST)))
    shares = np.linspace(0, 1, bins + 1)
    closest = [share / bins for share in NEAREST if bins > 1 and share * len(distance) > 2 * FEWEST * bins]
    edges = np.unique(np.quantile(distance, [*shares, *closest]))
    place = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, max(len(edges) - 2, 0))
    size = max(len(edges) - 1, 1)
    table = {name: np.full((len(kinds), size, len(QUANTILES)), np.nan) for name in columns}
    pairs = np.zeros((len(kinds), size), int)
    for k in range(len(kinds)):
        for b in range(size):
            chosen = (kind == k) & (place == b)
            pairs[k, b] = chosen.sum()
            if pairs[k, b] >= FEWEST:
                for name, values in columns.items():
                    table[name][k, b] = np.quantile(values[chosen], QUANTILES)
    centres = [float(np.median(distance[place == b])) for b in range(size)]
    data = {name: (("kind", "distance", "quantile"), values) for name, values in table.items()}
    coords = {"kind": kinds, "distance": ("distance", centres, {"units": units[0]}), "quantile": list(QUANTILES)}
    return xr.Dataset(data | {"pairs": (("kind", "distance"), pairs)}, coords, {"units": units[1]})


def _unit(system: System, spec: StateSpec, per: str, times: str) -> tuple[str, str]:
    """Units of distance and of acceleration, or of what it was made."""
    length, time = spec[_position(spec)].unit, system.time_unit
    unit = f"{length}/{time}²" if length and time else ""
    if unit and times and spec[times].unit:
        unit = f"{spec[times].unit} {unit}"
    return length, f"{unit}/{spec[per].unit}" if unit and per and spec[per].unit else unit


def _position(spec: StateSpec) -> str:
    if spec.position is None:
        raise ConfigError("pair_law: the state has no position")
    return spec.position.name
