"""Steps of a length and in a direction: the noise of what swims, crawls or walks, and now and then turns.

    d = r u + s e,   u ~ von Mises-Fisher(axis, kappa) on the unit sphere,   e ~ Normal(0, 1),   d the displacement of a step

The axis is the direction of the mean step; r, s and kappa are invariant, so the law turns with the bodies.

Such bodies vary little in speed and much in direction, along the way and across it by different amounts. Noise with one width in all
directions is too wide along the way, and puts bodies that turned around into the middle of the circle that they are on. The density is
exact: the sphere integrates to a ratio of normalisers of the von Mises-Fisher law. Without turns (kappa large) it is a Normal law around
r axis, with kappa = 0 a blurred sphere.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.backbones.bodies.base import safe_norm
from epns_pyro.models.normal import Shape

TRIES = 16  # of which one is accepted with a probability of at least 0.65 each: all fail once in 10^7 draws
LEAST, MOST = 1e-3, 1e4  # bounds of kappa


class Turning(TorchDistribution):
    """A mixture of a law around the mean step and of laws of turns.

    Parameters
    ----------
    usual : TorchDistribution, batch (*batch, body), event (space,)
        Of the next position, or of the velocity of the next step.
    origin : Tensor, (*batch, body, space)
        The present position, or zero.
    log_shares : Tensor, (*batch, body, 1 + turn)
        Normalised log weights: of `usual`, and of each law of turns.
    axis : Tensor, (*batch, body, space)
        Unit vectors.
    radius, kappa, width : Tensor, (*batch, body, turn)
        As in `log_density`.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)
    has_rsample = False

    def __init__(
        self, usual: TorchDistribution, origin: Tensor, log_shares: Tensor, axis: Tensor, radius: Tensor, kappa: Tensor, width: Tensor
    ) -> None:
        self.usual, self.origin, self.log_shares = usual, origin, log_shares
        self.axis, self.radius, self.kappa, self.width = axis, radius, kappa, width
        super().__init__(usual.batch_shape, usual.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.origin + (self.log_shares.exp()[..., None] * self._moments[0]).sum(-2)

    @property
    def variance(self) -> Tensor:
        means, variances = self._moments
        weights = self.log_shares.exp()[..., None]
        apart = means - (weights * means).sum(-2, keepdim=True)
        return (weights * (variances + apart.square())).sum(-2)

    @property
    def usual_scale(self) -> Tensor:
        """Standard deviation of the usual law: (*batch, body, channel)."""
        return self.usual.usual_scale

    def standardise(self, value: Tensor) -> Tensor:
        """Return how far a value is from the mean of the usual law, standardised: (*batch, body, channel)."""
        return self.usual.standardise(value)

    def expand(self, batch_shape: Shape, _instance: Turning | None = None) -> Turning:
        parts = (self.origin, self.log_shares, self.axis, self.radius, self.kappa, self.width)
        return Turning(self.usual.expand(batch_shape), *(part.expand(*batch_shape, part.shape[-1]) for part in parts))

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        with torch.no_grad():
            straight = self.usual.sample(sample_shape)
            shares = self.log_shares.expand(*straight.shape[:-1], -1)
            gumbel = -(-torch.rand_like(shares).clamp_min(1e-30).log()).log()
            chosen = (shares + gumbel).argmax(-1, keepdim=True)
            turn = (chosen - 1).clamp_min(0)
            parts = (part.expand(*straight.shape[:-1], -1).gather(-1, turn)[..., 0] for part in (self.radius, self.kappa, self.width))
            return torch.where(chosen == 0, straight, self.origin + draw(self.axis.expand(straight.shape), *parts))

    def log_prob(self, value: Tensor) -> Tensor:
        d = (value - self.origin)[..., None, :]
        turned = log_density(d, self.axis[..., None, :], self.radius, self.kappa, self.width)
        every = torch.cat([self.usual.log_prob(value)[..., None], turned], -1)
        return (self.log_shares + every).logsumexp(-1)

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of the displacement under each law, (*batch, body, 1 + turn, channel)."""
        mean, variance = moments(self.axis[..., None, :], self.radius, self.kappa, self.width)
        straight = self.usual.mean - self.origin
        return torch.cat([straight[..., None, :], mean], -2), torch.cat([self.usual.variance[..., None, :], variance], -2)


def log_density(d: Tensor, axis: Tensor, radius: Tensor, kappa: Tensor, width: Tensor) -> Tensor:
    """Return the log density of displacements, (*batch).

    Parameters
    ----------
    d : Tensor, (*batch, space)
    axis : Tensor, (*batch, space)
        Unit vectors.
    radius, kappa, width : Tensor, (*batch)
        Positive.
    """
    space = d.shape[-1]
    length = safe_norm(d)
    pull = radius * length / width.square()  # of the blur on the direction, beside kappa
    # Norm of kappa axis + pull d / |d|, and the small differences of large numbers written out.
    along = (d * axis).sum(-1) / length
    norm = (kappa.square() + pull.square() + 2 * kappa * pull * along).clamp_min(1e-12).sqrt()
    gain = kappa * (kappa + 2 * pull * along - norm - pull) / (norm + pull)  # norm - pull - kappa
    blur = -0.5 * ((length - radius) / width).square() - space * width.log() - 0.5 * space * math.log(2 * math.pi)
    return blur + gain + _log_normaliser(norm, space) - _log_normaliser(kappa, space)


def moments(axis: Tensor, radius: Tensor, kappa: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel of displacements: two of (*batch, space)."""
    space = axis.shape[-1]
    straight = _mean_cosine(kappa, space)
    across = (straight / kappa)[..., None]  # variance of u across the axis
    along = (1 - (space - 1) * across - straight.square()[..., None]).clamp_min(0)
    of_direction = across + (along - across) * axis.square()
    return (radius * straight)[..., None] * axis, radius.square()[..., None] * of_direction + width.square()[..., None]


def draw(axis: Tensor, radius: Tensor, kappa: Tensor, width: Tensor) -> Tensor:
    """Draw displacements, (*batch, space); the arguments are those of `log_density`."""
    noise = torch.randn_like(axis)
    across = torch.randn_like(axis)
    across = across - (across * axis).sum(-1, keepdim=True) * axis
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(1e-20)
    cosine = _draw_cosine(kappa, axis.shape[-1])[..., None]
    direction = cosine * axis + (1 - cosine.square()).clamp_min(0).sqrt() * across
    return radius[..., None] * direction + width[..., None] * noise


def _log_normaliser(kappa: Tensor, space: int) -> Tensor:
    """Return log of the mean of exp(kappa cos) over the sphere, minus kappa."""
    if space == 1:
        return torch.nn.functional.softplus(-2 * kappa) - math.log(2)
    if space == 2:
        return torch.special.i0e(kappa).log()
    return (-torch.expm1(-2 * kappa) / (2 * kappa)).log()


def _mean_cosine(kappa: Tensor, space: int) -> Tensor:
    if space == 1:
        return kappa.tanh()
    if space == 2:
        return torch.special.i1e(kappa) / torch.special.i0e(kappa)
    small = kappa < 0.1  # where 1 / tanh - 1 / kappa loses digits
    safe = torch.where(small, 1.0, kappa)
    return torch.where(small, kappa / 3 - kappa**3 / 45, 1 / safe.tanh() - 1 / safe)


def _draw_cosine(kappa: Tensor, space: int) -> Tensor:
    """Draw the cosine of the angle to the axis: exact, without a loop that waits for all to be accepted."""
    if space == 1:
        return torch.where(torch.rand_like(kappa) < (2 * kappa).sigmoid(), 1.0, -1.0).to(kappa)
    if space == 3:
        u = torch.rand_like(kappa).clamp_min(1e-30)
        return (1 + torch.log(u + (1 - u) * torch.exp(-2 * kappa)) / kappa).clamp(-1, 1)
    # Best and Fisher (1979), doi:10.2307/2346732: a wrapped Cauchy law proposes.
    k = kappa.double()
    tau = 1 + (1 + 4 * k.square()).sqrt()
    rho = (tau - (2 * tau).sqrt()) / (2 * k)
    r = (1 + rho.square()) / (2 * rho)
    u = torch.rand(2, TRIES, *kappa.shape, dtype=k.dtype, device=k.device)
    z = torch.cos(math.pi * u[0])
    cosine = (1 + r * z) / (r + z)
    c = k * (r - cosine)
    accepted = (c * (2 - c) > u[1]) | ((c / u[1].clamp_min(1e-300)).log() + 1 - c >= 0)
    first = accepted.to(torch.uint8).argmax(0, keepdim=True)
    return cosine.gather(0, first)[0].clamp(-1, 1).to(kappa)
