"""Normal distributions and log-quadratic functions of flattened states, with the closed forms used for conditioning.

A distribution x = mean + factor e, e ~ Normal(0, I), is stored by its factor, so it may be degenerate (a known state). With
log psi(x) = constant + linear . x - x . precision x / 2 and M = I + factor^T precision factor

    Z      = integral of p(x) psi(x) dx
    p psi / Z = Normal(mean + factor M^-1 factor^T gradient, factor M^-1 factor^T),   gradient = d log psi / dx at the mean

M is at least I, so no singular matrix is inverted. Everything is in float64.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import NamedTuple

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor

from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.emissions import CoupledNormal
from epns_pyro.models.normal import unmasked
from epns_pyro.models.symplectic.laws import FullNormal

TINY, RIDGE = 1e-9, 1e-9  # smaller spreads count as zero; added to the diagonal of correlations before inversion


class NormalLaw(NamedTuple):
    """x = mean + factor e of flattened states: mean (particle, state), factor (particle, state, state)."""

    mean: Tensor
    factor: Tensor

    @property
    def covariance(self) -> Tensor:
        return self.factor @ self.factor.mT


class Tilted(NamedTuple):
    """Samples (particle, state) of the tilted distribution, and the logarithm of their importance weights (particle,)."""

    draws: Tensor
    log_weight: Tensor


class LogQuadratic(NamedTuple):
    """log psi(x) = constant + linear . x - x . precision x / 2.

    Parameters
    ----------
    precision : Tensor, (state, state)
        Positive semi-definite.
    linear : Tensor, (state,)
    constant : Tensor, ()
    """

    precision: Tensor
    linear: Tensor
    constant: Tensor

    @classmethod
    def of_measurement(cls, value: Tensor, noise: Tensor) -> LogQuadratic:
        """Return log Normal(value; x, noise) of the observed numbers; NaN is not observed, and contributes nothing.

        Parameters
        ----------
        value, noise : Tensor, (state,)
            Observed numbers and the standard deviations of their errors.
        """
        seen = value.isfinite()
        y, sigma = torch.where(seen, value, 0.0), torch.where(seen, noise, 1.0)
        precision = seen / sigma**2
        constant = -0.5 * (precision * y**2).sum() - (seen * (sigma.log() + 0.5 * math.log(2 * math.pi))).sum()
        return cls(precision.diag(), precision * y, constant)

    @classmethod
    def flat(cls, like: Tensor) -> LogQuadratic:
        """Return the function log psi = 0 of states (..., state)."""
        size = like.shape[-1]
        return cls(like.new_zeros(size, size), like.new_zeros(size), like.new_zeros(()))

    def __call__(self, x: Tensor) -> Tensor:
        """Return log psi of flattened states (particle, state): (particle,)."""
        return self.constant + x @ self.linear - 0.5 * (x * (x @ self.precision)).sum(-1)

    def times(self, other: LogQuadratic) -> LogQuadratic:
        """Return the product of the two functions psi."""
        return LogQuadratic(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def tilt(self, law: NormalLaw) -> Tilted:
        """Sample from p psi / Z, one sample per particle; the weight is Z."""
        mean, factor = law
        gradient = (self.linear - mean @ self.precision)[..., None]
        eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        root = torch.linalg.cholesky(eye + factor.mT @ self.precision @ factor)
        white = torch.linalg.solve_triangular(root, factor.mT @ gradient, upper=False)
        noise = torch.randn_like(white)
        draws = mean + (factor @ torch.linalg.solve_triangular(root.mT, white + noise, upper=True))[..., 0]
        log_weight = self(mean) + 0.5 * white.square().sum((-2, -1)) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return Tilted(draws, log_weight)

    def blurred(self, noise: Tensor) -> LogQuadratic:
        """Return log of the integral of Normal(x; m, noise) psi(x) dx, as a function of m; noise (state, state)."""
        eye = torch.eye(len(self.linear), dtype=self.linear.dtype, device=self.linear.device)
        gain = torch.linalg.inv(eye + self.precision @ noise)
        precision, linear = _symmetric(gain @ self.precision), gain @ self.linear
        return LogQuadratic(precision, linear, self.constant + 0.5 * (self.linear @ noise @ linear + torch.linalg.slogdet(gain).logabsdet))

    def after(self, slope: Tensor, offset: Tensor) -> LogQuadratic:
        """Return log psi(slope u + offset), as a function of u."""
        gradient = self.linear - self.precision @ offset
        constant = self.constant + 0.5 * offset @ (self.linear + gradient)
        return LogQuadratic(_symmetric(slope.T @ self.precision @ slope), slope.T @ gradient, constant)

    def before(self, step: LinearStep) -> LogQuadratic:
        """Return log of the integral of p(x' | x) psi(x') dx' for a linear step, as a function of x."""
        return self.blurred(step.total_noise).after(step.slope, step.offset)


class LinearStep(NamedTuple):
    """x' ~ Normal(A x + B e + b, S), with the standardised latents e ~ Normal(0, I).

    Parameters
    ----------
    slope : Tensor, (state, state)
        A.
    latent : Tensor, (state, latent)
        B; no columns if the latents count as noise.
    offset : Tensor, (state,)
        b.
    noise : Tensor, (state, state)
        S.
    """

    slope: Tensor
    latent: Tensor
    offset: Tensor
    noise: Tensor

    @property
    def total_noise(self) -> Tensor:
        """Return the covariance of x' given x, (state, state)."""
        return self.noise + self.latent @ self.latent.T

    @classmethod
    def fit(cls, x: Tensor, latents: Tensor, mean: Tensor, covariance: Tensor, weight: Tensor) -> LinearStep:
        """Fit one linear step to the steps of all particles; nonlinearity and differences between particles count as noise.

        Parameters
        ----------
        x, mean : Tensor, (particle, state)
            States, and the means of the distribution of the next state.
        latents : Tensor, (particle, latent)
            Standardised latents at which these means were computed.
        covariance : Tensor, (state, state)
            Mean covariance of these distributions.
        weight : Tensor, (particle,)
            Sums to one.
        """
        causes = torch.cat([x, latents], -1)
        weight = weight / weight.sum()
        centre, middle = weight @ causes, weight @ mean
        deviation, answer = causes - centre, mean - middle
        spread = (weight @ deviation.square()).sqrt()
        unit = torch.where(spread > TINY * (1 + centre.abs()), spread, math.inf)  # constant inputs get the coefficient 0
        standard = deviation / unit
        eye = torch.eye(len(unit), dtype=x.dtype, device=x.device)
        slope = torch.linalg.solve(standard.mT @ (weight[:, None] * standard) + RIDGE * eye, standard.mT @ (weight[:, None] * answer))
        left = answer - standard @ slope
        effective, parameters = 1 / weight.square().sum(), len(unit) + 1
        inflation = effective / (effective - parameters).clamp(min=0.1 * effective)  # residuals of a fit are too small
        noise = inflation * left.mT @ (weight[:, None] * left) + covariance
        slope = (slope / unit[:, None]).T
        of_x, of_latents = slope.split([x.shape[-1], latents.shape[-1]], -1)
        return cls(of_x, of_latents, middle - slope @ centre, _symmetric(noise))

    def draw_latents(self, x: Tensor, potential: LogQuadratic) -> Tilted:
        """Sample standardised latents in proportion to Normal(0, I) times psi(x'); the weight is Normal(0, I) over the sampling density."""
        goal = potential.blurred(self.noise)
        gradient = (goal.linear - (x @ self.slope.T + self.offset) @ goal.precision) @ self.latent
        eye = torch.eye(self.latent.shape[-1], dtype=x.dtype, device=x.device)
        root = torch.linalg.cholesky(eye + self.latent.T @ goal.precision @ self.latent)
        white = torch.linalg.solve_triangular(root, gradient.T, upper=False)
        noise = torch.randn_like(white)
        draws = torch.linalg.solve_triangular(root.T, white + noise, upper=True)
        return Tilted(draws.T, 0.5 * (noise.square() - draws.square()).sum(0) - root.diagonal().log().sum())


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


# -- emissions that are Normal -----------------------------------------------------------------------------------------------


@singledispatch
def normal_law(emission: object) -> NormalLaw | None:
    """Return an emission as the Normal distribution of a flattened state, or None if it is not Normal.

    Register a function here to use your own Normal emission in the filter: `normal_law.register(MyEmission)`.
    """
    return None


@normal_law.register
def _(emission: Independent) -> NormalLaw | None:
    base = unmasked(emission)
    if isinstance(base, CoupledNormal):
        return _of_bodies(
            base.loc, torch.kron(base.factor.contiguous(), torch.eye(base.loc.shape[-1] // base.factor.shape[-1]).to(base.factor))
        )
    if isinstance(base, FullNormal):
        return _of_bodies(base.loc, base.factor)
    if not isinstance(base, Normal):
        return None
    mean, scale = base.loc, base.scale
    events = emission.event_dim
    return NormalLaw(mean.flatten(-events).double(), torch.diag_embed(scale.flatten(-events).double()))


@normal_law.register
def _(emission: FullNormal) -> NormalLaw:
    return NormalLaw(emission.loc.flatten(-2).double(), emission.factor.double())


def _of_bodies(loc: Tensor, factor: Tensor) -> NormalLaw:
    """Return the law of independent bodies with means (*batch, body, channel) and factors (*batch, body, channel, channel)."""
    mean, factor = loc.double(), factor.double()
    blocks = torch.einsum("...bij,bc->...bicj", factor, torch.eye(mean.shape[-2], dtype=factor.dtype, device=factor.device))
    return NormalLaw(mean.flatten(-2), blocks.flatten(-4, -3).flatten(-2))


def exactly(x: Tensor) -> NormalLaw:
    """Return the degenerate distribution of states (particle, state) that are known."""
    return NormalLaw(x, x.new_zeros(*x.shape, x.shape[-1]))


def require_normal(emission: object) -> NormalLaw:
    law = normal_law(emission)
    if law is None:
        raise ConfigError(
            f"the proposal 'adapted' needs a Normal emission, found {type(emission).__name__}: choose the proposal 'forecast', "
            "or register the emission with epns_pyro.conditioning.gaussian.normal_law"
        )
    return law
