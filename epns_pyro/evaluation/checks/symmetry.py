"""Check: does the density of the trained model stay the same when a future is translated, rotated or relabelled?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epns_pyro.calibration.wording import number, sentence
from epns_pyro.data import Store
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures import model as figures
from epns_pyro.evaluation.parts import Figure, Section, Table
from epns_pyro.evaluation.record import HeadlineLine, Symmetry
from epns_pyro.inference.elbo import log_density
from epns_pyro.simulator import Simulator
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Group, density_invariance_error, random_elements
from epns_pyro.training.run import EvaluationConfig

STEPS = 5  # length of the futures that are transformed by random group elements
FUTURES, BODIES = 4, 128  # of so many futures, or fewer with so many bodies in all
ELEMENTS, FAR = 5, 100  # random elements of each kind; factor by which translations of the second kind are larger
ALLOWED = 1e-9  # relative change of the log density
ROUNDINGS = 10  # times what the last digit of a state changes: as much is no defect


class SymmetryCheck(Check[Symmetry]):
    key, title, record = "equivariance", "symmetry", Symmetry

    def measure(self, inputs: Inputs) -> Symmetry:
        return equivariance(inputs.simulator, inputs.store, inputs.settings)

    def sections(self, record: Symmetry | None, found: Evaluated) -> Iterator[Section]:
        if record is None:
            return
        section = Section(
            "equivariance",
            "Symmetry",
            "A symmetric model gives a rotated (or relabelled, ...) future exactly the same probability as the original. Measured with "
            "the trained "
            "weights, on states as they are stored.",
        )
        section.items.append(
            Figure(
                figures.symmetry(record, allowed(record)),
                alt=f"Symmetry error on a logarithmic scale: maximum {record.maximum:.1e}, up to {allowed(record):.0e} is allowed.",
                caption=sentence(record.sentence or f"the log density changes by at most {record.maximum:.1e}, relative to its size")
                + " For a symmetric model only rounding errors remain.",
                size="wide",
            )
        )
        rows = (
            ("group", record.group),
            ("maximum", number(record.maximum, ".1e")),
            ("median", number(record.median, ".1e")),
            ("by the last digit of states", number(record.rounding, ".1e") if record.rounding else ""),
            ("group elements tried", "" if record.samples is None else str(record.samples)),
            ("arithmetic", record.dtype),
        )
        section.items.append(Table((), [row for row in rows if row[1] not in ("", "–")]))
        yield section

    def headline(self, record: Symmetry) -> Iterator[HeadlineLine]:
        yield HeadlineLine(label="symmetry error", value=f"{record.maximum:.0e}", note=record.group, good=not breaks(record))

    def faults(self, record: Symmetry) -> Iterator[Fault]:
        if breaks(record):
            yield Fault(Severity.BROKEN, f"the symmetry is broken (error {record.maximum:.0e})")


def breaks(record: Symmetry) -> bool:
    """Return whether the log density changes by more than rounding errors under elements of the group."""
    return not record.maximum <= allowed(record)  # NaN counts as broken too


def allowed(record: Symmetry) -> float:
    """Return the largest change that rounding explains."""
    return max(ALLOWED, ROUNDINGS * record.rounding)


def equivariance(simulator: Simulator, store: Store, settings: EvaluationConfig) -> Symmetry:
    """Measure |log p(g x, g z | g x_0) - log p(x, z | x_0)| / |log p| of the trained model in float64, on states as they are stored."""
    transition = copy.deepcopy(simulator.transition).cpu().double()
    sites = store.sites("test")
    futures = FUTURES if len(sites) != 1 else max(1, min(FUTURES, BODIES // sites[0]))
    first = store.system.first_frame
    x = torch.as_tensor(simulator.context.to_local(store.read("test", slice(0, futures), start=first, stop=first + STEPS + 1)))
    x = x.double() if x.dtype.is_floating_point else x.long()
    with torch.no_grad():
        prior = transition.at(x[:, 0]).prior
    generator = torch.Generator().manual_seed(settings.seed)
    z = torch.randn(len(x), x.shape[1] - 1, *prior.event_shape, generator=generator, dtype=torch.float64)

    def density(x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        return log_density(transition, x0, path, z)

    group = store.system.symmetry
    groups = [group]
    if (far := group.moving_farther(FAR)) is not None:  # half of the elements translate far
        groups.append(far)
    arguments = (density, simulator.spec, x[:, 0], x[:, 1:], z)
    settled: dict[str, Any] = {"latent_fields": transition.latent_fields, "samples": ELEMENTS, "seed": settings.seed}
    found = [density_invariance_error(*arguments, g, **settled) for g in groups]
    maximum, samples = max(one.maximum for one in found), sum(one.samples for one in found)
    exact = maximum <= ALLOWED or not x.dtype.is_floating_point
    return Symmetry(
        maximum=maximum,
        rounding=0.0 if exact else max(rounding_error(*arguments, g, **settled) for g in groups),
        median=float(np.mean([one.median for one in found])),
        samples=samples,
        dtype="float64",
        group=group.description,
        sentence=f"the log density of the trained model changes by at most {maximum:.1e}, relative to its size, under "
        f"{samples} random elements of {group.description}",
    )


def rounding_error(
    log_density: Callable[[Tensor, Tensor, Tensor], Tensor],
    spec: StateSpec,
    x0: Tensor,
    path: Tensor,
    z: Tensor,
    group: Group,
    *,
    latent_fields: tuple[Field, ...] = (),
    samples: int = 10,
    seed: int = 0,
) -> float:
    """Measure by how much at most the last digit of moved states changes their log density, relative to its size.

    Arguments are those of `density_invariance_error`, which cannot be told from zero below a few of it: where noise is narrow, a density
    changes much with the last digit.
    """
    generator = torch.Generator().manual_seed(seed)

    def rounded(x: Tensor) -> Tensor:
        digit = torch.randint(-1, 2, x.shape, generator=generator).to(x) * torch.finfo(x.dtype).eps
        return x * (1 + digit)

    found = 0.0
    with torch.no_grad():
        for g in random_elements(group, x0, samples, seed):
            start, moved, latent = spec.act(g, x0), spec.act(g, path), g.act_latent(z, latent_fields)
            exact = log_density(start, moved, latent)
            change = (log_density(rounded(start), rounded(moved), latent) - exact).abs() / exact.abs().clamp_min(1.0)
            found = max(found, float(change.max()))
    return found
