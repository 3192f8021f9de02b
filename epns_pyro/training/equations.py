"""Equations of motion as a second-order method sees them: what changed in one step, and what the law says of it.

Errors are in rows, one per body that is there, in units in which they are expected to be alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar

import torch
from scipy import linalg, stats
from torch import Tensor, nn

from epns_pyro.backbones.bodies.laws import PLAIN, Form, Law
from epns_pyro.context import DataContext
from epns_pyro.data import Store, Windows
from epns_pyro.data.windows import Batch
from epns_pyro.models import Transition
from epns_pyro.models.bodies.fields import BodyFields, position_field
from epns_pyro.models.symplectic.transition import SymplecticTransition
from epns_pyro.training.fittable import require_integrator, require_potential

DIFFERENCE = 1e-6  # of a parameter, for derivatives
DEPENDENT = 1e-5  # of the length of a column that is left beside others, below which it is one of them: differences err by less
SMALL = 0.03  # typical changes: errors are relative to what was observed, but for changes smaller than this
CANDIDATES = 20  # windows drawn for each that a law is fitted to
MOST_PAIRS = 40_000  # pairs of bodies in these, and in a block of candidates
THROWN = 3.0  # times a force's derivative: that of a step which is larger says nothing
SIMPSON = (1 / 6, 4 / 6, 1 / 6)


class Equation(ABC):
    """The law of a transition, and the windows that it is fitted to.

    Parameters
    ----------
    transition : Transition
    context : DataContext
    x0, following : Tensor, (batch, body, channel)
        States, and those a step later; float64.

    Attributes
    ----------
    module : Module
        With the parameters of the law.
    linear : list of Parameter
        Those in which forces are linear.
    simple : list of Parameter
        Those of a law of nature, which are fitted before all others.
    silent : list of Parameter
        Those that have to be zero for `linear` alone to say what the forces are.
    target : Tensor, (row, channel)
        Observed changes, in the units of errors.
    kept : tuple of int
        The powers of the distance that are not left out.
    left_out : dict of Parameter to Tensor
        Which numbers of a parameter are zero and stay so, (number,).
    enough : float
        The gain of log density per row in an iteration below which it is the last.
    """

    enough: ClassVar[float] = 1e-4

    module: nn.Module
    linear: list[nn.Parameter]
    simple: list[nn.Parameter]
    silent: list[nn.Parameter]
    target: Tensor
    kept: tuple[int, ...] = ()

    def __init__(self, transition: Transition, context: DataContext, x0: Tensor, following: Tensor) -> None:
        self.left_out: dict[nn.Parameter, Tensor] = {}
        bodies = self.bodies = BodyFields(context).to(x0)
        self.x, self.there = bodies.present(x0)
        following, stays = bodies.present(following)
        self.following = bodies.next_to(self.x, following)
        self.rows = x0.new_ones(x0.shape[:-1], dtype=torch.bool)
        for mask in (self.there, stays):
            self.rows = self.rows if mask is None else self.rows & mask

    @classmethod
    def draw(cls, store: Store, context: DataContext, windows: int, seed: int) -> Batch:
        """Draw windows of one step from the training set, float64: half of them are those, among more, in which two bodies are closest.

        Encounters are rare, and say most about the law: near each other bodies have the strongest forces.
        """
        windows = affordable(windows, context)
        drawn = Windows(store, "train", 1, CANDIDATES * windows, seed=seed, context=context, dtype=torch.float64).draw()
        closest = _closest(context, drawn.x0).argsort()[: windows // 2]
        chosen = torch.cat([torch.arange(windows - len(closest), device=closest.device), closest]).unique()
        return Batch(drawn.x0[chosen], drawn.path[chosen])

    @abstractmethod
    def forces(self) -> Tensor:
        """What the law says of the changes, by its forces where the bodies were: (row, channel)."""

    @abstractmethod
    def changes(self) -> Tensor:
        """What the steps of the model make of the law: (row, channel)."""

    def starts(self, form: Form = PLAIN) -> Iterator[None]:
        """Set a law of some form, one after the other, to all places from which a fit should start; by default where it is."""
        yield

    def coarse(self) -> AbstractContextManager[None]:
        """Take longer steps where forces change much, for as long as it takes to choose the form of a law."""
        return nullcontext()

    def unsoften(self) -> bool:
        """Set the law to one that is nearly singular where two bodies meet; False, and nothing is done, if there is none."""
        return False

    @property
    def sizes(self) -> list[int]:
        """The scalars of bodies of which one may be a mass, or something like it."""
        return []

    @abstractmethod
    def settle(self) -> None:
        """Set what else is known once the law is fitted."""

    @property
    def powers(self) -> int:
        """Number of powers of the distance in a law of nature, of which a fit may leave some out."""
        return 0

    def keep(self, powers: Collection[int]) -> None:
        """Leave all powers out but those in `kept`, from here on."""
        self.kept = tuple(powers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the law."""
        return list(self.module.parameters())

    def derivatives(self, parameters: list[nn.Parameter]) -> Tensor:
        """Derivatives of the forces: (row * channel, parameter)."""
        return differences(self.forces, parameters)

    def slopes(self, parameters: list[nn.Parameter]) -> Tensor:
        """Derivatives of the changes, or what hardly differs: (row * channel, parameter)."""
        return self.derivatives(parameters)


def differences(predict: Callable[[], Tensor], parameters: list[nn.Parameter], chosen: Tensor | None = None) -> Tensor:
    """Differentiate predictions (row, channel) by differences: (row * channel, parameter); zero for all but the `chosen`, (parameter,)."""
    here = predict()
    columns: list[Tensor] = []
    for parameter in parameters:
        flat = parameter.view(-1)
        for i in range(len(flat)):
            if chosen is not None and not chosen[len(columns)]:
                columns.append(torch.zeros_like(here).flatten())
                continue
            value = flat[i].clone()
            step = DIFFERENCE * max(1.0, abs(float(value)))
            flat[i] = value + step
            columns.append(((predict() - here) / step).flatten())
            flat[i] = value
    return torch.stack(columns, -1)


def independent(columns: Tensor) -> Tensor:
    """Return which columns of a matrix (row, column) are no sums of others, (column,): as many as its rank, the largest first."""
    size = columns.norm(dim=0)
    scaled = columns / torch.where(size > 0, size, 1.0)
    _, triangle, order = linalg.qr(scaled.cpu().numpy(), mode="economic", pivoting=True)
    found = torch.zeros(len(size), dtype=torch.bool)
    found[torch.from_numpy(order[: len(triangle)][abs(triangle.diagonal()) > DEPENDENT])] = True
    return found


class IntegratorEquation(Equation):
    """The forces of an integrator; errors are relative to what was observed, because such systems have hardly any noise.

    Channels are those of the fields that are kicked: what a rate carries, such as a position, follows from its rate.
    """

    def __init__(self, transition: Transition, context: DataContext, x0: Tensor, following: Tensor) -> None:
        integrator = require_integrator(transition)
        super().__init__(transition, context, x0, following)
        bodies = integrator.bodies
        self._integrator, self._network, self.module = integrator, integrator.network, integrator.network
        law = self._law = integrator.network if isinstance(integrator.network, Law) else None
        for embedding in bodies.embeddings:  # which start at zero: a law of nature tells classes apart
            if law is not None and not embedding.any():
                nn.init.eye_(embedding)
        self.linear, self.simple = ([], []) if law is None else (list(law.linear_parameters), list(law.simple_parameters))
        self.silent = [p for layer in integrator.network.last_layers for p in layer.parameters()]
        kicked = {**integrator.vectors, **integrator.scalars}
        self._kicked = [f.name for f in bodies.free.fields if f.name in kicked]
        self._channels = bodies.per_channel(x0.new_tensor([float(f.name in kicked) for f in bodies.free.fields])) > 0
        self._unit = bodies.per_channel(x0.new_tensor([context.step_scales[f.name] for f in bodies.free.fields]))
        change = bodies.to_free(bodies.spec.dynamic(self.following)) - bodies.to_free(bodies.persistence(self.x))
        observed = (change / self._unit)[self.rows][:, self._channels]
        self._size = SMALL + observed.norm(dim=-1, keepdim=True)
        self.target = observed / self._size
        self._memory: tuple[Tensor, ...] = ()
        self.kept = () if law is None else law.kept
        self._features, self._places = bodies.features(self.x, self.there), self._way()

    def _way(self) -> list[tuple[float, Tensor]]:
        """Where forces are read, and with what weights: along the way, by Simpson's rule.

        Without recorded velocities it is the present positions: differences are mean forces about the time between, to second order.
        """
        bodies, q = self.bodies, self.bodies.positions(self.x)
        velocity = bodies.rates.get(bodies.position, "")
        if not velocity or velocity in bodies.differences or velocity not in self._integrator.vectors:
            return [(1.0, q)]
        stays = self.rows[..., None]
        q_next = torch.where(stays, bodies.positions(self.following), q)
        turn = bodies.spec.get(self.x, velocity) - bodies.spec.get(self.following, velocity)
        duration = torch.as_tensor(bodies.duration(self.x)).to(q)[..., None]
        turn = torch.where(stays, turn, 0.0) * duration / bodies.spec[bodies.position].scale
        return _along(q, q_next, turn)

    def forces(self) -> Tensor:
        """Mean forces of a frame, without a step of the model."""
        law = self._network.at(self._features)
        seen = [(weight, law(q, self._features.vectors)) for weight, q in self._places]
        vectors = torch.stack([weight * out.vectors for weight, out in seen]).sum(0).unbind(-2)
        scalars = torch.stack([weight * out.scalars for weight, out in seen]).sum(0).split(1, -1)
        parts = dict(zip(self._integrator.vectors, vectors, strict=True)) | dict(zip(self._integrator.scalars, scalars, strict=False))
        return torch.cat([parts[name] for name in self._kicked], -1)[self.rows] / self._size

    def starts(self, form: Form = PLAIN) -> Iterator[None]:
        for _ in (None,) if self._law is None else self._law.starts(form):
            self.keep(self.kept)
            yield

    @contextmanager
    def coarse(self) -> Iterator[None]:
        refinements = self._integrator.refinements
        self._integrator.refinements = max(0, refinements - 1)
        try:
            yield
        finally:
            self._integrator.refinements = refinements

    def unsoften(self) -> bool:
        return self._law is not None and self._law.unsoften()

    @property
    def sizes(self) -> list[int]:
        return [] if self._law is None else self._law.sizes(self._features)

    @property
    def powers(self) -> int:
        return 0 if self._law is None else self._law.powers

    def keep(self, powers: Collection[int]) -> None:
        super().keep(powers)
        if self._law is not None:
            self._law.keep(powers)

    def derivatives(self, parameters: list[nn.Parameter]) -> Tensor:
        return differences(self.forces, parameters, torch.cat([self._moves(p) for p in parameters]))

    def _moves(self, parameter: nn.Parameter) -> Tensor:
        everything = torch.ones(parameter.numel(), dtype=torch.bool)
        alive = everything if self._law is None else self._law.belongs_to(parameter, self.kept)
        return alive & ~self.left_out.get(parameter, ~everything)

    def start(self) -> None:
        """Infer what frames start from with the present law, and keep it."""
        self._memory = self._integrator.start(self.x, self.there)

    def changes(self) -> Tensor:
        return self._changes(self._memory)

    def _changes(self, memory: tuple[Tensor, ...]) -> Tensor:
        return (self._integrator(self.x, self.there, memory).change / self._unit)[self.rows][:, self._channels] / self._size

    def slopes(self, parameters: list[nn.Parameter]) -> Tensor:
        """Derivatives through the steps; what frames start from follows the law in one correction.

        Of parameters that do the same to forces, as where all attributes are 1 or -1, one is enough: steps take long. Where bodies meet,
        a small change of the law throws them elsewhere, and a derivative says nothing: there it is that of the forces.
        """
        near = self._memory or self._integrator.start(self.x, self.there)

        def changes() -> Tensor:
            return self._changes(self._memory or self._integrator.start(self.x, self.there, near))

        forces = self.derivatives(parameters)
        chosen = independent(forces)
        columns = differences(changes, parameters, chosen), forces * chosen.to(forces)
        through, at_place = (each.unflatten(0, self.target.shape) for each in columns)
        thrown = ~(through.square().sum((-2, -1)) <= THROWN**2 * at_place.square().sum((-2, -1)))  # or not finite
        return torch.where(thrown[:, None, None], at_place, through).flatten(0, 1)

    def settle(self) -> None:
        """Leave all else to training."""


class PotentialEquation(Equation):
    """The pair potential of a symplectic transition, by the changes of velocity that it makes; errors are noise on momenta."""

    enough = 1e-3  # it is trained on

    def __init__(self, transition: Transition, context: DataContext, x0: Tensor, following: Tensor) -> None:
        super().__init__(transition, context, x0, following)
        transition, potential = require_potential(transition)
        self._transition, self.module = transition, potential
        self.linear, self.silent, self.simple = list(potential.linear_parameters), list(potential.silent_parameters), []
        self._unit = context.step_scales[transition.velocity]
        (q, v), (q_next, v_next) = transition.phase(self.x), transition.phase(self.following)
        self._duration = torch.as_tensor(self.bodies.duration(self.x), dtype=x0.dtype, device=x0.device)[..., None]
        self._velocity, self._mean_velocity = v, (q_next - q) / self._duration
        self._places = _along(q, q_next, self._duration * (v - v_next))
        self.target = ((v_next - v) / self._unit)[self.rows]

    @property
    def parameters(self) -> list[nn.Parameter]:
        friction = self._transition.raw_friction
        return super().parameters + ([] if friction is None else [friction])

    def forces(self) -> Tensor:
        """Mean accelerations along the way, by Simpson's rule, with the friction."""
        transition, landscape = self._transition, self._transition.potential.at(self.x, self.there)
        mean = sum(weight * landscape.forces(q) for weight, q in self._places)
        found = mean / transition.potential.masses(self.x, self.there)[..., None]
        if transition.friction is not None:
            found = found - transition.friction * self._mean_velocity
        return (self._duration * found / self._unit)[self.rows]

    def changes(self) -> Tensor:
        _, v = self._transition.flow(self.x, self.there)(*self._transition.phase(self.x))
        return ((v - self._velocity) / self._unit)[self.rows]

    def settle(self) -> None:
        """Start the noise at the size of the errors, by their median."""
        time = self._duration.expand(*self.rows.shape, 1)[self.rows]
        squared = ((self.target - self.changes()) * self._unit).square().sum(-1, keepdim=True) / time
        self._transition.start_noise(float((squared.median() / stats.chi2.median(self.target.shape[-1])).sqrt()))


def _along(q: Tensor, q_next: Tensor, turn: Tensor) -> list[tuple[float, Tensor]]:
    """Return places on the way from q to q_next, each with its weight, by Simpson's rule.

    The way is a cubic; `turn` is the duration times the velocity at its start less that at its end.
    """
    return list(zip(SIMPSON, (q, (q + q_next) / 2 + turn / 8, q_next), strict=True))


def affordable(windows: int, context: DataContext) -> int:
    """Return how many windows of one step are used where so many are asked for: fewer of many bodies."""
    return max(2, min(windows, MOST_PAIRS // context.sites[0] ** 2))


def _closest(context: DataContext, x: Tensor) -> Tensor:
    """Return the distance of the closest pair in states (batch, body, channel); infinite where fewer than two bodies are there."""
    spec, bodies = context.spec, x.shape[-2]
    alone, found = torch.eye(bodies, dtype=torch.bool, device=x.device), []
    for block in spec.get(x, position_field(spec)).split(max(1, MOST_PAIRS // bodies**2)):
        squared = spec.geometry.displacement(block[:, :, None], block[:, None]).square().sum(-1)
        found.append(torch.where(alone | squared.isnan(), torch.inf, squared).flatten(1).amin(1))
    return torch.cat(found)


def equation_type(transition: Transition) -> type[Equation]:
    """Return how the equation of motion of a transition is fitted.

    Raises
    ------
    ConfigError
        If it has none, or none that can be fitted.
    """
    if isinstance(transition, SymplecticTransition):
        require_potential(transition)
        return PotentialEquation
    require_integrator(transition)
    return IntegratorEquation
