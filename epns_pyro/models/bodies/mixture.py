"""Noise that is mostly small and sometimes large: a mixture of Normal laws with one mean and many widths.

    p(x') = sum_k w_k(h, z) Normal(loc, s_k^2 Sigma),   s_k on a fixed geometric ladder, w and Sigma invariant

People walk straight and then turn; tracks are interpolated between hand-set points. One Normal has to be as wide as the rare step, or
loses hundreds of nats to it. The mixture keeps exact densities and draws, and its law turns with the bodies.
"""

from __future__ import annotations

import math
from typing import Literal

import pydantic
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.backbones.bodies.base import safe_norm
from epns_pyro.derived import free_fields
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.emissions import EMISSIONS, CoupledConfig, CoupledNormal, DiagonalConfig, EmissionConfig
from epns_pyro.models.bodies.turning import LEAST, MOST, Turning
from epns_pyro.models.normal import Normal
from epns_pyro.models.transition import bounded_exp
from epns_pyro.state import StateSpec

# Settings of one width: they are checked once, and not at every step. No functools.cache, which compilers look through.
_CHECKED: dict[tuple[type[EmissionConfig], float, float], EmissionConfig] = {}
RARE = 4.0  # log weight of the usual law over each law of turns before training
FOCUS = 0.1, 1000.0  # kappa of the laws of turns before training, spread evenly between these
STILL = 0.01  # typical changes; shorter mean steps have no direction
START = 3.0  # log weight of width 1 over the others before training: nearly the Normal law


class ScaleMixture(TorchDistribution):
    """x = loc + s_k L e of one body, e ~ Normal(0, 1), k ~ Categorical(w).

    Parameters
    ----------
    base : CoupledNormal, or Independent Normal; batch (*batch, body), event (channel,)
        The law of width 1.
    log_weights : Tensor, (*batch, body, width)
        Normalised.
    log_scales : Tensor, (width,)
        log s_k.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)
    has_rsample = False

    def __init__(self, base: TorchDistribution, log_weights: Tensor, log_scales: Tensor) -> None:
        self.base, self.log_weights, self.log_scales = base, log_weights, log_scales
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        inflation = (self.log_weights + 2 * self.log_scales).logsumexp(-1).exp()
        return self.base.variance * inflation[..., None]

    @property
    def usual_scale(self) -> Tensor:
        """Standard deviation of the width that is usual, the geometric mean over widths: (*batch, body, channel)."""
        usual = (self.log_weights.exp() * self.log_scales).sum(-1).exp()
        return self.base.variance.sqrt() * usual[..., None]

    def expand(self, batch_shape: torch.Size, _instance: ScaleMixture | None = None) -> ScaleMixture:
        batch_shape = torch.Size(batch_shape)
        return ScaleMixture(self.base.expand(batch_shape), self.log_weights.expand(*batch_shape, -1), self.log_scales)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        with torch.no_grad():
            draws = self.base.sample(sample_shape)
            shape = draws.shape[:-1]
            gumbel = -(-torch.rand(*shape, len(self.log_scales), dtype=draws.dtype, device=draws.device).clamp_min(1e-30).log()).log()
            chosen = (self.log_weights + gumbel).argmax(-1)
            return self.mean + (draws - self.mean) * self.log_scales[chosen].exp()[..., None]

    def standardise(self, value: Tensor) -> Tensor:
        """Return the noise of width 1 that makes `value`: (*batch, body, channel)."""
        if isinstance(self.base, CoupledNormal):
            return self.base.standardise(value)
        return (value - self.base.mean) / self.base.base_dist.scale

    def log_prob(self, value: Tensor) -> Tensor:
        widest = self.base.log_prob(self.base.mean)  # log of the density at the mean: minus the log volume
        return widest + self._terms(value).logsumexp(-1)

    def shares(self, value: Tensor) -> Tensor:
        """Return the posterior probabilities of the widths that a value is drawn with: (*batch, body, width)."""
        return self._terms(value).softmax(-1)

    def _terms(self, value: Tensor) -> Tensor:
        squared = self.standardise(value).square().sum(-1, keepdim=True)
        return self.log_weights - value.shape[-1] * self.log_scales - 0.5 * squared * torch.exp(-2 * self.log_scales)


def turns_suit(spec: StateSpec) -> bool:
    """Return whether only one vector field of a body is predicted, a position or the velocity of a step: then it makes steps."""
    predicted = free_fields(spec)
    return len(predicted) == 1 and predicted[0].is_vector


@EMISSIONS.register("mixture")
class MixtureConfig(EmissionConfig):
    """p(x' | h, z) = sum_k w_k Normal(loc, s_k^2 Sigma): small steps mostly, large ones sometimes."""

    name: Literal["mixture"] = "mixture"
    widths: int = pydantic.Field(default=6, ge=2, le=16, description="Normal laws in the mixture")
    narrowest: float = pydantic.Field(default=0.02, gt=0, lt=1, description="smallest width, in units of the one that training starts with")
    widest: float = pydantic.Field(default=5.0, gt=1, description="largest width, likewise")
    minimum: float = pydantic.Field(default=0.05, gt=0, description="smallest standard deviation of width 1, in typical changes")
    turns: int = pydantic.Field(
        default=0, ge=0, le=16, description="laws of steps of a length in a random direction, beside the widths; for positions alone"
    )

    @property
    def makes_steps(self) -> bool:
        return self.turns > 0

    def parameters(self, spec: StateSpec) -> int:
        if self.turns and not turns_suit(spec):
            found = ", ".join(field.name for field in spec.dynamic_fields)
            raise ConfigError(f"emission 'mixture': turns are for states of which only steps are predicted, found {found}: set turns to 0")
        return self._inner(spec).parameters(spec) + self.widths + 4 * self.turns

    def start(self, spec: StateSpec, covariance: Tensor) -> Tensor:
        inner = self._inner(spec).start(spec, covariance)
        return torch.cat([inner, inner.new_zeros(self.widths + 4 * self.turns)])

    def build(self, spec: StateSpec, loc: Tensor, noise: Tensor, unit: Tensor, origin: Tensor | None = None) -> Independent:
        inner = self._inner(spec)
        noise, raw, turns = noise.split([inner.parameters(spec), self.widths, 4 * self.turns], -1)
        law = inner.build(spec, loc, noise, unit)
        base = law.base_dist if isinstance(law.base_dist, CoupledNormal) else Normal(loc, law.base_dist.scale).to_event(1)
        low, high = math.log(self.narrowest), math.log(self.widest)
        rungs = [low + (high - low) * k / (self.widths - 1) for k in range(self.widths)]
        ladder = loc.new_tensor([rung - min(rungs, key=abs) for rung in rungs])  # one of the widths is 1
        weights = torch.log_softmax(raw + START * (ladder == 0), -1)
        usual = ScaleMixture(base, weights, ladder)
        return (usual if origin is None or not self.turns else self._with_turns(usual, loc, turns, unit, origin)).to_event(1)

    def _with_turns(self, usual: ScaleMixture, loc: Tensor, raw: Tensor, unit: Tensor, origin: Tensor) -> Turning:
        shares, lengths, focus, widths = raw.chunk(4, -1)
        step = loc - origin
        length = safe_norm(step)[..., None]
        low, high = math.log(FOCUS[0]), math.log(FOCUS[1])
        start = loc.new_tensor([low + (high - low) * (k + 0.5) / self.turns for k in range(self.turns)])
        kappa = (bounded_exp(focus) * start.exp()) * (length / (length + STILL * unit))  # without a direction where it is still
        return Turning(
            usual,
            origin,
            torch.log_softmax(torch.nn.functional.pad(shares - RARE, (1, 0)), -1),
            step / length,
            (length.square() + unit.square()).sqrt() * bounded_exp(lengths),
            kappa.clamp(LEAST, MOST),
            self.scales(widths, unit),
        )

    def scale(self, law: TorchDistribution) -> Tensor:
        variance = law.variance
        return (variance.mean(-1, keepdim=True).expand(variance.shape) if isinstance(law.base_dist, Turning) else variance).sqrt()

    def weights_at(self, spec: StateSpec) -> slice:
        """Return where the log weights of the widths stand among the noise parameters."""
        first = self._inner(spec).parameters(spec)
        return slice(first, first + self.widths)

    def usual_scale(self, law: TorchDistribution) -> Tensor:
        return law.base_dist.usual_scale

    def _inner(self, spec: StateSpec) -> EmissionConfig:
        """Return correlated noise for states of vectors only."""
        kind = CoupledConfig if all(f.is_vector for f in spec.dynamic_fields) else DiagonalConfig
        key = kind, self.minimum, self.maximum
        if key not in _CHECKED:
            _CHECKED[key] = kind(minimum=self.minimum, maximum=self.maximum)
        return _CHECKED[key]
