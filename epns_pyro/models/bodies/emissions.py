"""The law of the next state of a set of bodies given its mean and invariant noise parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, Self

import pydantic
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.config import Config, Registry
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.normal import Normal, unmasked
from epns_pyro.state import StateSpec

EMISSIONS = Registry("emission")


class CoupledNormal(TorchDistribution):
    """x = loc + (L ⊗ I_space) e, e ~ Normal(0, 1): the vector fields of a body share their noise through L.

    Parameters
    ----------
    loc : Tensor, (*batch, field * space)
    factor : Tensor, (*batch, field, field)
        L, lower triangular with a positive diagonal; invariant, so that the law rotates with loc.
    """

    arg_constraints = {"loc": constraints.real_vector, "factor": constraints.lower_cholesky}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.factor = loc, factor
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        per_field = self.factor.square().sum(-1)
        return per_field.repeat_interleave(self.loc.shape[-1] // per_field.shape[-1], -1)

    def expand(self, batch_shape: torch.Size, _instance: CoupledNormal | None = None) -> CoupledNormal:
        batch_shape = torch.Size(batch_shape)
        loc, factor = self.loc.expand(batch_shape + self.loc.shape[-1:]), self.factor.expand(batch_shape + self.factor.shape[-2:])
        return type(self)(loc, factor, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ self._by_field(noise)).flatten(-2)

    def standardise(self, value: Tensor) -> Tensor:
        """Return e, the standard Normal noise that makes `value`: (*batch, field * space)."""
        residual = self._by_field(value - self.loc)
        return torch.linalg.solve_triangular(self.factor.expand(*residual.shape[:-1], -1), residual, upper=False).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        space = self.loc.shape[-1] // self.factor.shape[-1]
        noise = self.standardise(value)
        log_volume = space * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * noise.square().sum(-1) - log_volume - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)

    def _by_field(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (self.factor.shape[-1], -1))


class Completed(TorchDistribution):
    """The law of all dynamic channels of a body, of which some follow from those that are predicted (see `epns_pyro.derived`).

    Its density is that of the predicted channels: in them, and per their units.

    Parameters
    ----------
    base : TorchDistribution
        Of the predicted channels, batch (*batch, body), event (free channel,).
    bodies : BodyFields
    x : Tensor, (*batch, body, channel)
        The present state.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)

    def __init__(self, base: TorchDistribution, bodies: BodyFields, x: Tensor) -> None:
        self.base, self._bodies, self._x = base, bodies, x
        self.has_rsample = base.has_rsample  # else Pyro would ask a mixture for a reparameterised draw
        super().__init__(base.batch_shape, torch.Size([bodies.spec.dynamic_channels]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._bodies.complete(self._x, self.base.mean)

    def expand(self, batch_shape: torch.Size, _instance: Completed | None = None) -> Completed:
        return Completed(self.base.expand(batch_shape), self._bodies, self._x)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        return self._bodies.complete(self._x, self.base.rsample(sample_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._bodies.complete(self._x, self.base.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(self._bodies.to_free(value))


def completed(law: Independent, bodies: BodyFields, x: Tensor) -> Independent:
    """Return the law of all dynamic channels, given that of the predicted ones; x (*batch, body, channel) is the present state."""
    if bodies.free.channels == bodies.spec.dynamic_channels:
        return law
    return Completed(law.base_dist.to_event(law.reinterpreted_batch_ndims - 1), bodies, x).to_event(1)


class EmissionConfig(Config, ABC):
    """How the noise of a body's dynamic fields is described by `parameters(spec)` invariant numbers per body."""

    name: str
    minimum: float = pydantic.Field(default=1e-4, gt=0, description="smallest standard deviation, in units of a typical change per frame")
    maximum: float = pydantic.Field(default=10.0, gt=0, description="largest standard deviation, in the same units")

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum has to be smaller than maximum, found {self.minimum:g} and {self.maximum:g}")
        return self

    @property
    def makes_steps(self) -> bool:
        """Whether `build` needs the origin of the step."""
        return False

    @abstractmethod
    def parameters(self, spec: StateSpec) -> int:
        """Number of invariant noise parameters per body.

        Raises
        ------
        ConfigError
            If this emission cannot describe the fields of the spec.
        """

    @abstractmethod
    def build(self, spec: StateSpec, loc: Tensor, noise: Tensor, unit: Tensor, origin: Tensor | None = None) -> TorchDistribution:
        """Return the law over (*batch, body, dynamic channel).

        Parameters
        ----------
        loc : Tensor, (*batch, body, dynamic channel)
        noise : Tensor, (*batch, body, parameters)
            Unconstrained; zeros mean a standard deviation of `unit`, to within a tenth, and no coupling.
        unit : Tensor, (dynamic field,) or (*batch, body, dynamic field)
            Unit of the standard deviations, which are kept within [minimum, maximum] units.
        origin : Tensor, (*batch, body, dynamic channel), optional
            The values if bodies stay where they are: present positions, and velocities of zero.
        """

    def scale(self, law: TorchDistribution) -> Tensor:
        """Return the standard deviation of a law that was built here, the same along all axes: (*batch, body, dynamic channel)."""
        return law.variance.sqrt()

    def start(self, spec: StateSpec, covariance: Tensor) -> Tensor:
        """Return the unconstrained numbers, (parameters,), of noise with a covariance (dynamic field, dynamic field) in units.

        By default they do not depend on it.
        """
        return torch.zeros(self.parameters(spec))

    def usual_scale(self, law: TorchDistribution) -> Tensor:
        """Return how large the noise of a law that was built here usually is, a standard deviation: (*batch, body, dynamic channel)."""
        return law.variance.sqrt()

    def scales(self, raw: Tensor, unit: Tensor) -> Tensor:
        """Map unconstrained numbers to standard deviations: exponential, bent smoothly to stay within [minimum, maximum] units."""
        low, high = math.log(self.minimum), math.log(self.maximum)
        return unit * torch.exp(low + torch.nn.functional.softplus(raw - low) - torch.nn.functional.softplus(raw - high))


def innovation(law: Independent, value: Tensor) -> Tensor:
    """Return how far `value` is from the mean of a Normal emission, standardised: (*batch, body, dynamic channel)."""
    base = unmasked(law)
    return (value - base.mean) / base.scale if isinstance(base, torch.distributions.Normal) else base.standardise(value)


@EMISSIONS.register("diagonal")
class DiagonalConfig(EmissionConfig):
    """p(x' | h, z) = Normal(loc, sigma): one invariant sigma per body and field, as published."""

    name: Literal["diagonal"] = "diagonal"

    def parameters(self, spec: StateSpec) -> int:
        return len(spec.dynamic_fields)

    def start(self, spec: StateSpec, covariance: Tensor) -> Tensor:
        return 0.5 * covariance.diagonal().log()

    def build(self, spec: StateSpec, loc: Tensor, noise: Tensor, unit: Tensor, origin: Tensor | None = None) -> TorchDistribution:
        widths = torch.tensor([spec.width(f) for f in spec.dynamic_fields], device=loc.device)
        scale = self.scales(noise, unit).repeat_interleave(widths, -1, output_size=spec.dynamic_channels)
        return Normal(loc, scale).to_event(2)


@EMISSIONS.register("coupled")
class CoupledConfig(EmissionConfig):
    """p(x' | h, z) = Normal(loc, LL^T ⊗ I): position and velocity noise of a body are correlated, isotropically in space."""

    name: Literal["coupled"] = "coupled"

    def parameters(self, spec: StateSpec) -> int:
        if scalars := [f.name for f in spec.dynamic_fields if not f.is_vector]:
            raise ConfigError(
                f"emission 'coupled' correlates vector fields; {', '.join(scalars)} is a dynamic scalar: use emission 'diagonal'"
            )
        count = len(spec.dynamic_fields)
        return count * (count + 1) // 2

    def start(self, spec: StateSpec, covariance: Tensor) -> Tensor:
        root = torch.linalg.cholesky(covariance)
        scale = root.diagonal()
        rows, columns = torch.tril_indices(len(root), len(root), -1)
        return torch.cat([scale.log(), (root / scale[:, None])[rows, columns]])

    def build(self, spec: StateSpec, loc: Tensor, noise: Tensor, unit: Tensor, origin: Tensor | None = None) -> TorchDistribution:
        count = len(spec.dynamic_fields)
        scale = self.scales(noise[..., :count], unit)
        rows, columns = torch.tril_indices(count, count, -1, device=loc.device)
        coupling = torch.eye(count, dtype=loc.dtype, device=loc.device).repeat(*noise.shape[:-1], 1, 1)
        coupling[..., rows, columns] = noise[..., count:]
        return CoupledNormal(loc, scale[..., :, None] * coupling).to_event(1)
