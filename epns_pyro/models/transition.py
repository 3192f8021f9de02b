"""One time step of a stochastic system: the state before it and its conditional distributions (laws).

    h  = f(x)                 deterministic, equivariant
    z  ~ p(z | h)             diagonal Normal, invariant
    x' ~ p(x' | h, z)         its law is equivariant
    z  ~ q(z | h, x')         diagonal Normal, invariant: for training, smoothing and importance sampling only

A `Transition` makes a `Step` from a `Carry`. A step computes shared quantities of its laws once, and makes the next carry.
Distributions are over the DYNAMIC channels of a state; static fields are given and copied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.config import Config, Registry
from epns_pyro.context import DataContext
from epns_pyro.durations import with_durations
from epns_pyro.once import once
from epns_pyro.state import Field, StateSpec

TRANSITIONS = Registry("model")
EXACT = 0.01  # of a power that is -1


@dataclass(frozen=True)
class Carry:
    """The start of a step: the present state and the memory of the transition.

    Parameters
    ----------
    x : Tensor, (*batch, *site, channel)
        Full state.
    memory : tuple of Tensor, each (*batch, ...)
        Empty for a Markov transition; otherwise e.g. earlier frames or beliefs about hidden states.
    """

    x: Tensor
    memory: tuple[Tensor, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Carry:
        """Apply a function on batch dimensions to the state and the memory."""
        return Carry(function(self.x), tuple(function(part) for part in self.memory))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Carry:
        return self.map(lambda part: part[index])

    def split(self, size: int) -> Iterator[Carry]:
        """Iterate over blocks of at most `size` rows of the first batch dimension."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def where(self, rows: Tensor, other: Carry) -> Carry:
        """Take the rows (batch,) that are True from here, the others from `other`."""

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)

        return Carry(choose(self.x, other.x), tuple(choose(*pair) for pair in zip(self.memory, other.memory, strict=True)))

    @staticmethod
    def cat(parts: list[Carry]) -> Carry:
        """Join blocks along the first batch dimension."""
        memory = zip(*(part.memory for part in parts), strict=True)
        return Carry(torch.cat([part.x for part in parts]), tuple(torch.cat(tensors) for tensors in memory))


class LawOfNature(NamedTuple):
    """A law of pairs that can be read: forces along the line between two bodies, by their distance.

    Parameters
    ----------
    powers : tuple of float
        Of the distance, that forces are a sum of, the largest first.
    screening : float
        Rate m of a factor exp(-m r), per unit of the distance; 0 for none.
    inertia : dict of str to float
        The powers of attributes of a body that its acceleration is multiplied with: a mass has -1.
    unit : str
        Of the distance.
    """

    powers: tuple[float, ...]
    screening: float
    inertia: dict[str, float]
    unit: str = ""

    def __str__(self) -> str:
        powers = " and ".join(f"r^{power:.3g}" for power in self.powers)
        said = f"forces go as {powers}" if powers else "bodies have no forces on each other"
        if self.screening:
            said += f", and fall off as exp(-r / {f'{1 / self.screening:.3g} {self.unit}'.strip()})"
        for name, power in self.inertia.items():
            said += f"; accelerations are forces {f'over {name}' if abs(power + 1) < EXACT else f'times {name}^{power:.3g}'}"
        return said


class Observed(NamedTuple):
    """The law that scores an observed next state, and the value to score."""

    law: TorchDistribution
    value: Tensor


class Step(ABC):
    """One step from a carry: h, p(z | h), p(x' | h, z), q(z | h, x'), and the next carry.

    Parameters
    ----------
    spec : StateSpec
    carry : Carry
    h : Tensor, (*batch, *hidden)
        Output of the forward model.
    """

    def __init__(self, spec: StateSpec, carry: Carry, h: Tensor) -> None:
        self.spec, self.carry, self.h = spec, carry, h

    @property
    def events(self) -> TorchDistribution | None:
        """p(e | h), what happens to entities, where it is a part of the emission that can be seen in the next state; else None."""
        return None

    def seen_events(self, x_next: Tensor) -> Tensor:
        """Return what happened up to a full next state, where there are events."""
        raise TypeError(f"{type(self).__name__} has no events")

    def after_events(self, emission: TorchDistribution, event: Tensor) -> TorchDistribution:
        """Return the emission given what happens, p(x' | h, z, e), where there are events."""
        raise TypeError(f"{type(self).__name__} has no events")

    @property
    @abstractmethod
    def prior(self) -> Independent:
        """p(z | h) = Normal(mu(h), sigma(h)), event (entity, latent)."""

    @abstractmethod
    def emission(self, z: Tensor) -> TorchDistribution:
        """p(x' | h, z) over the dynamic channels, event (*site, dynamic channel); mean feedback uses its `.mean`."""

    @abstractmethod
    def posterior(self, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu(h, x'), sigma(h, x')), event (entity, latent); x_next is a full state."""

    def observe(self, emission: TorchDistribution, x_next: Tensor) -> Observed:
        """Return the law and the value that score a full next state (*batch, *site, channel); absent bodies are masked."""
        return Observed(emission, self.spec.dynamic(x_next))

    def advance(self, y: Tensor, following: Tensor | None = None) -> Carry:
        """Return the carry of the next step, from dynamic channels (*batch, *site, dynamic channel).

        Parameters
        ----------
        y : Tensor, (*batch, *site, dynamic channel)
            The dynamic channels of the next state.
        following : Tensor, (*batch, *site, channel), optional
            The observed next state: it says which bodies enter and leave, and how long the step after it lasts.
        """
        x = self.spec.advance(self.carry.x, y)
        return Carry(x if following is None else with_durations(self.spec, x, following))


class Transition(nn.Module, ABC):
    """A learned time step, which `EPNSModel` and `EPNSGuide` unroll. Any number of leading batch dimensions."""

    spec: StateSpec
    hidden_event_dim: int
    latent_fields: tuple[Field, ...] = ()  # how the symmetry acts on the latents of an entity; (): not at all
    absences: bool = False  # whether bodies of a state may be absent, NaN
    earlier_frames: int = 0  # how many recorded states before the present one a step depends on; of these fewer may be known
    block_size: int = 4096  # states that evaluation and sampling pass through the networks at a time

    def at_once(self, x: Tensor) -> int:
        """Return how many states like x (*batch, *site, channel) pass through the networks at a time: fewer where sites are more."""
        return self.block_size

    def is_little(self, states: int) -> bool:
        """Return whether so many states at a time are too little work for more than one thread."""
        return False

    @abstractmethod
    def step(self, carry: Carry) -> Step:
        """Make the step from a carry."""

    def start(self, x0: Tensor) -> Carry:
        """Return the carry of the first step, for full initial states (*batch, *site, channel)."""
        return Carry(x0)

    def started(self, x0: Tensor, past: Tensor | None = None) -> Carry:
        """Return the carry of the first step from x0 (batch, *site, channel), with recorded states before it, past (batch, time, ...).

        States before the first of a recording are NaN in all dynamic channels.
        """
        if past is None or not past.shape[1]:
            return self.start(x0)
        return self.follow(torch.cat([past, x0[:, None]], 1))[:, -1]

    def carries(self, x0: Tensor, path: Tensor, past: Tensor | None = None) -> Carry:
        """Return the carries of all steps along an observed path, batch and time flattened: (batch * time, ...).

        Parameters
        ----------
        x0 : Tensor, (batch, *site, channel)
        path : Tensor, (batch, time, *site, channel)
        past : Tensor, (batch, time, *site, channel), optional
            Recorded states before x0, as for `started`.
        """
        before = path[:, :0] if past is None else past
        carries = self.follow(torch.cat([before, x0[:, None], path[:, :-1]], 1))
        return carries[:, before.shape[1] :].map(lambda part: part.flatten(0, 1))

    def follow(self, path: Tensor) -> Carry:
        """Return the carries, (batch, time, ...), at all states of an observed path (batch, time, *site, channel), started by the first.

        The last one is where a forecast starts that has seen the path.
        """
        carry = self.start(path[:, 0])
        if not carry.memory:
            return Carry(path)
        carries = [carry]
        for following in path[:, 1:].unbind(1):
            carry = Carry(following, self.remembered(carry, following))
            carries.append(carry)
        return Carry(path, tuple(torch.stack(parts, 1) for parts in zip(*(c.memory for c in carries), strict=True)))

    def remembered(self, carry: Carry, following: Tensor) -> tuple[Tensor, ...]:
        """Return the memory of the carry after a step to an observed state (batch, *site, channel)."""
        return self.step(carry).advance(self.spec.dynamic(following), following).memory

    def at(self, x: Tensor) -> Step:
        """Make the first step from full states (*batch, *site, channel)."""
        return self.step(self.start(x))

    @property
    def has_motion(self) -> bool:
        """Whether there is an equation of motion to read: `acceleration` is known."""
        return False

    @property
    def law(self) -> LawOfNature | None:
        """The law of nature that accelerations follow; None where there is none that can be read."""
        return None

    def acceleration(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what the learned equation of motion does to velocities in full states (*batch, body, channel): (*batch, body, space).

        In the units of the data; bodies where a mask (*batch, body) is False act on no other.
        """
        raise TypeError(f"{type(self).__name__} has no equation of motion")

    @property
    def recording(self) -> nn.Module | None:
        """How states are recorded, a `epns_pyro.models.hidden.recording.Recording`; None where the recording is the state."""
        return self._modules.get("recorded_by")

    @property
    def sampling_rule(self) -> str:
        """How a step is sampled, in words for reports."""
        return "ancestral: prior and emission are sampled at every step"


class MarkovTransition(Transition):
    """A Markov transition given by four methods that share only h; x is the full present state (*batch, *site, channel)."""

    @abstractmethod
    def forward_model(self, x: Tensor) -> Tensor:
        """Compute h = f(x), equivariant: (*batch, *hidden)."""

    @abstractmethod
    def prior(self, x: Tensor, h: Tensor) -> Independent:
        """p(z | h) = Normal(mu(h), sigma(h)), event (entity, latent)."""

    @abstractmethod
    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> TorchDistribution:
        """p(x' | h, z) over the dynamic channels, event (*site, dynamic channel)."""

    @abstractmethod
    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu(h, x'), sigma(h, x')), event (entity, latent); x_next is a full state."""

    def step(self, carry: Carry) -> Step:
        return _MarkovStep(self, carry)


class _MarkovStep(Step):
    """One step of a `MarkovTransition`."""

    def __init__(self, transition: MarkovTransition, carry: Carry) -> None:
        super().__init__(transition.spec, carry, transition.forward_model(carry.x))
        self._transition = transition

    @once
    def prior(self) -> Independent:
        return self._transition.prior(self.carry.x, self.h)

    def emission(self, z: Tensor) -> TorchDistribution:
        return self._transition.emission(self.carry.x, self.h, z)

    def posterior(self, x_next: Tensor) -> Independent:
        return self._transition.posterior(self.carry.x, self.h, x_next)


class TransitionConfig(Config, ABC):
    """Settings of a transition; `build` makes the transition for given data."""

    name: str

    @abstractmethod
    def build(self, context: DataContext) -> Transition: ...

    def doubt(self, context: DataContext) -> str:
        """Say which setting does not suit the data, though it can be trained with; "" for none."""
        return ""


def bounded_exp(x: Tensor) -> Tensor:
    """Return exp(x) with x squashed smoothly into (-5, 5), so that a scale can neither vanish nor explode."""
    return torch.exp(5 * torch.tanh(x / 5))
