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

from epns_pyro.models.bodies.emissions import EMISSIONS, CoupledConfig, CoupledNormal, DiagonalConfig, EmissionConfig
from epns_pyro.models.normal import Normal
from epns_pyro.state import StateSpec

# Settings of one width: they are checked once, and not at every step. No functools.cache, which compilers look through.
_CHECKED: dict[tuple[type[EmissionConfig], float, float], EmissionConfig] = {}
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
        size = value.shape[-1]
        squared = self.standardise(value).square().sum(-1, keepdim=True)
        widest = self.base.log_prob(self.base.mean)  # log of the density at the mean: minus the log volume
        terms = self.log_weights - size * self.log_scales - 0.5 * squared * torch.exp(-2 * self.log_scales)
        return widest + terms.logsumexp(-1)


@EMISSIONS.register("mixture")
class MixtureConfig(EmissionConfig):
    """p(x' | h, z) = sum_k w_k Normal(loc, s_k^2 Sigma): small steps mostly, large ones sometimes."""

    name: Literal["mixture"] = "mixture"
    widths: int = pydantic.Field(default=6, ge=2, le=16, description="Normal laws in the mixture")
    narrowest: float = pydantic.Field(default=0.02, gt=0, lt=1, description="smallest width, in units of the one that training starts with")
    widest: float = pydantic.Field(default=5.0, gt=1, description="largest width, likewise")
    minimum: float = pydantic.Field(default=0.05, gt=0, description="smallest standard deviation of width 1, in typical changes")

    def parameters(self, spec: StateSpec) -> int:
        return self._inner(spec).parameters(spec) + self.widths

    def build(self, spec: StateSpec, loc: Tensor, noise: Tensor, unit: Tensor) -> Independent:
        inner = self._inner(spec)
        noise, raw = noise.split([inner.parameters(spec), self.widths], -1)
        law = inner.build(spec, loc, noise, unit)
        base = law.base_dist if isinstance(law.base_dist, CoupledNormal) else Normal(loc, law.base_dist.scale).to_event(1)
        low, high = math.log(self.narrowest), math.log(self.widest)
        rungs = [low + (high - low) * k / (self.widths - 1) for k in range(self.widths)]
        ladder = loc.new_tensor([rung - min(rungs, key=abs) for rung in rungs])  # one of the widths is 1
        weights = torch.log_softmax(raw + START * (ladder == 0), -1)
        return ScaleMixture(base, weights, ladder).to_event(1)

    def usual_scale(self, law: TorchDistribution) -> Tensor:
        return law.base_dist.usual_scale

    def _inner(self, spec: StateSpec) -> EmissionConfig:
        """Return correlated noise for states of vectors only."""
        kind = CoupledConfig if all(f.is_vector for f in spec.dynamic_fields) else DiagonalConfig
        key = kind, self.minimum, self.maximum
        if key not in _CHECKED:
            _CHECKED[key] = kind(minimum=self.minimum, maximum=self.maximum)
        return _CHECKED[key]
