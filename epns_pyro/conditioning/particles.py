"""Sequential Monte Carlo with a transition: weighted particles, proposals, and sweeps with look-ahead.

A sweep moves particles with proposals that use later observations. Its target at step t is the posterior of the path so far times
psi_t(x_t), a log-quadratic estimate of p(y_{t+1:T} | x_t) (a twisting function: Guarniero, Johansen & Lee 2017, "The iterated auxiliary
particle filter"; Heng et al. 2020, "Controlled sequential Monte Carlo"). With Psi_t(x) = p(y_t | x) psi_t(x) and an emission that is
Normal given z,

    z_t ~ q(z),   x_t ~ p(x | h_t, z_t) Psi_t(x) / Z_t,   weight *= p(z_t | h_t) / q(z_t) Z_t / psi_{t-1}(x_{t-1})

where Z_t = E[Psi_t(x_t) | h_t, z_t] is a closed form. psi and the proposal q of the latents come from linear fits of the steps of an
earlier sweep without look-ahead; both cancel in the weights: a poor fit costs effective sample size, not correctness. With psi = 1 and
the prior as q this is the fully adapted filter.

Pyro's `SMCFilter` could express the fully adapted filter, but it drops the normaliser of its weights (no evidence), records neither
ancestors nor effective sample sizes, keeps its weights in float32 on the CPU, and cannot repeat a gap; a test compares with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from epns_pyro.conditioning.gaussian import LinearStep, LogQuadratic, NormalLaw, require_normal
from epns_pyro.errors import DataError
from epns_pyro.models import Transition
from epns_pyro.models.normal import unmasked
from epns_pyro.models.transition import Carry, Step

GUIDE_SAMPLES = 32  # latents sampled from the guide per particle to estimate the density of a step
DENSE = 2 * 10**7  # numbers in the covariances that are computed at once


# -- weighted states ---------------------------------------------------------------------------------------------------------


@dataclass
class ParticleSet:
    """Weighted particles at one time step.

    Parameters
    ----------
    carry : Carry
        States (particle, *site, channel), and what the transition remembers of the path of each.
    log_weight : Tensor, (particle,)
        Normalised: the weights sum to one.
    log_evidence : float
        Of all observations weighed in so far.
    """

    carry: Carry
    log_weight: Tensor
    log_evidence: float = 0.0

    @property
    def x(self) -> Tensor:
        return self.carry.x

    @property
    def weight(self) -> Tensor:
        return self.log_weight.exp()

    @property
    def ess(self) -> float:
        """Return the effective sample size, 1 / sum of squared weights."""
        return float((-(2 * self.log_weight).logsumexp(0)).exp())

    def copy(self) -> ParticleSet:
        return ParticleSet(self.carry, self.log_weight, self.log_evidence)

    def weigh(self, log_factor: Tensor, when: str) -> None:
        """Multiply the weights by factors, and the evidence by their mean.

        Raises
        ------
        DataError
            If no particle has any weight left.
        """
        raw = self.log_weight + torch.nan_to_num(log_factor, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        total = raw.logsumexp(0)
        if not total.isfinite():
            raise DataError(f"no particle can explain the observations at {when}: use more particles, or give a larger noise")
        self.log_weight, self.log_evidence = raw - total, self.log_evidence + float(total)

    def resample(self, threshold: float) -> Tensor | None:
        """Resample if the effective fraction is below the threshold; return the indices of the parents, or None."""
        if self.ess >= threshold * len(self.x):
            return None
        parents = systematic(self.weight)
        self.carry = self.carry[parents]
        self.log_weight = torch.full_like(self.log_weight, 1 / len(self.x)).log()
        return parents


def systematic(weight: Tensor, draws: int | None = None) -> Tensor:
    """Return indices (draw,) by systematic resampling, ascending; particle i occurs floor or ceil of draws x weight_i times."""
    draws = draws or len(weight)
    points = (
        torch.arange(draws, dtype=weight.dtype, device=weight.device) + torch.rand((), dtype=weight.dtype, device=weight.device)
    ) / draws
    return torch.searchsorted(weight.cumsum(0), points * weight.sum()).clamp_(max=len(weight) - 1)


# -- steps -------------------------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """One step of all particles.

    Parameters
    ----------
    carry : Carry
        States (particle, *site, channel) and memories after the step.
    log_weight : Tensor, (particle,)
        log of E[Psi(x') | h, z] p(z | h) / q(z); 0 for a forecast.
    fit : LinearStep
        A linear fit of the step, from state to state: a memory is left out, which costs effective sample size alone.
    """

    carry: Carry
    log_weight: Tensor
    fit: LinearStep


class Latents(NamedTuple):
    """Standardised latents (particle, latent), and the emission given them."""

    standard: Tensor
    emission: object


class ProposalTarget(NamedTuple):
    """The target of a proposal: Psi, and a linear step that relates the latents to it."""

    potential: LogQuadratic
    step: LinearStep


@dataclass(frozen=True)
class TransitionKernel:
    """Moves particles by a transition, a block of particles at a time."""

    transition: Transition

    def flat(self, x: Tensor) -> Tensor:
        """Return the dynamic channels of states (particle, *site, channel) as float64 vectors: (particle, state)."""
        return self.transition.spec.dynamic(x).flatten(1).double()

    def put(self, x: Tensor, flat: Tensor) -> Tensor:
        """Return the states with their dynamic channels replaced by the vectors."""
        y = flat.to(x.dtype).reshape(*x.shape[:-1], self.transition.spec.dynamic_channels)
        return self.transition.spec.advance(x, y)

    def sample(self, carry: Carry) -> Carry:
        """Sample x' ~ p(x' | x), for any emission."""
        steps = map(self.transition.step, carry.split(self.transition.block_size))
        return Carry.cat([self.after(step, self.transition.spec.advance(step.carry.x, sampled(step).sample())) for step in steps])

    @staticmethod
    def after(step: Step, x: Tensor) -> Carry:
        """Return the carry after a step to states x (particle, *site, channel)."""
        return Carry(x, step.advance(step.spec.dynamic(x)).memory if step.carry.memory else ())

    def move(self, carry: Carry, weight: Tensor, target: ProposalTarget | None = None) -> Move:
        """Move the particles one step, and fit a linear step to them.

        Parameters
        ----------
        carry : Carry, (particle, ...)
        weight : Tensor, (particle,)
            Normalised weights of the particles, for the fit.
        target : ProposalTarget, optional
            Target of the proposal of z and x'; without it z ~ p(z | h), x' ~ p(x' | h, z).
        """
        x = carry.x
        size = max(1, min(self.transition.block_size, DENSE // self.flat(x[:1]).shape[-1] ** 2))
        blocks, covariance, carries = [], torch.zeros(()), []
        for start in range(0, len(x), size):
            step = self.transition.step(carry[start : start + size])
            latents, log_ratio = self._latents(step, target)
            law = require_normal(latents.emission)
            if target is None:
                draws, log_mass = law.mean + (law.factor @ torch.randn_like(law.mean)[..., None])[..., 0], log_ratio
            else:
                draws, log_mass = target.potential.tilt(law)
            carries.append(self.after(step, self.put(step.carry.x, draws)))
            blocks.append((log_mass + log_ratio, latents.standard, law.mean))
            covariance = covariance + torch.einsum("p,pij->ij", weight[start : start + size], law.covariance)
        log_weight, standard, mean = map(torch.cat, zip(*blocks, strict=True))
        if len(x) < 2 * (mean.shape[-1] + standard.shape[-1] + 1):
            standard = standard[:, :0]
        return Move(Carry.cat(carries), log_weight, LinearStep.fit(self.flat(x), standard, mean, covariance, weight))

    def _latents(self, step: Step, target: ProposalTarget | None) -> tuple[Latents, Tensor]:
        """Sample z from the prior or the proposal, and return the log of its weight (particle,)."""
        x, prior = step.carry.x, unmasked(step.prior)
        if target is None or not target.step.latent.shape[-1]:
            standard = torch.randn_like(prior.loc)
            flat, log_ratio = standard.flatten(1).double(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        else:
            flat, log_ratio = target.step.draw_latents(self.flat(x), target.potential)
            standard = flat.to(x.dtype).reshape(prior.loc.shape)
        return Latents(flat, step.emission(prior.loc + prior.scale * standard)), log_ratio

    def log_density(self, carry: Carry, x_next: Tensor) -> Tensor:
        """Estimate log p(x' | x), unbiased in p, with latents from the guide: (particle,); x_next is one state (*site, channel)."""
        transition, size = self.transition, max(1, self.transition.block_size // GUIDE_SAMPLES)
        estimates = []
        for part in carry.split(size):
            one, following = transition.step(part), x_next.expand_as(part.x)
            guide = one.posterior(following)
            z = guide.sample((GUIDE_SAMPLES,))
            law, value = one.observe(one.emission(z), following)
            ratio = law.log_prob(value) + one.prior.log_prob(z) - guide.log_prob(z)
            estimates.append(ratio.double().logsumexp(0) - torch.tensor(GUIDE_SAMPLES).log())
        return torch.cat(estimates)


def sampled(step: Step) -> TorchDistribution:
    """Return p(x' | h, z) for one z sampled from the prior."""
    return step.emission(step.prior.sample())


# -- looking ahead -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pinned:
    """The last state (*site, channel) is known: Psi is a point mass. `flat` (state,) are its dynamic channels."""

    state: Tensor
    flat: Tensor

    def before(self, step: LinearStep) -> LogQuadratic:
        """Return log Normal(state; A x + b, S) as a function of x."""
        jitter = 1e-9 * step.total_noise.diagonal().mean() * torch.eye(len(self.flat), dtype=self.flat.dtype, device=self.flat.device)
        root = torch.linalg.cholesky(step.total_noise + jitter)
        white = torch.linalg.solve_triangular(root, torch.cat([step.slope, (self.flat - step.offset)[:, None]], 1), upper=False)
        slope, target = white[:, :-1], white[:, -1]
        constant = -0.5 * target @ target - root.diagonal().log().sum() - 0.5 * len(self.flat) * torch.log(torch.tensor(2 * torch.pi))
        return LogQuadratic(slope.T @ slope, slope.T @ target, constant)


Potential = LogQuadratic | Pinned


@dataclass(frozen=True)
class Plan:
    """Targets of a sweep over the steps t0 + 1 .. t1.

    Parameters
    ----------
    ahead : list of LogQuadratic
        psi at t0 .. t1 - 1.
    potentials : list
        Psi at t0 + 1 .. t1.
    fits : list of LinearStep
        The steps to t0 + 1 .. t1.
    """

    ahead: list[LogQuadratic]
    potentials: Sequence[Potential]
    fits: list[LinearStep]

    @classmethod
    def backward(cls, measured: Sequence[Potential], fits: list[LinearStep]) -> Plan:
        """Compute the look-ahead through linear steps: psi_{t-1}(x) = integral of p(x' | x) p(y_t | x') psi_t(x') dx'.

        Parameters
        ----------
        measured : list
            log p(y_t | x) at t0 + 1 .. t1.
        fits : list of LinearStep
        """
        ahead: list[LogQuadratic] = []
        potentials: list[Potential] = []
        for here, fit in zip(reversed(measured), reversed(fits), strict=True):
            potentials.append(here if isinstance(here, Pinned) or not ahead else here.times(ahead[-1]))
            ahead.append(potentials[-1].before(fit))
        return cls(ahead[::-1], potentials[::-1], fits)

    @classmethod
    def myopic(cls, measured: list[LogQuadratic]) -> Plan:
        """Use only the observation of each step, without look-ahead."""
        state = measured[0].linear
        blind = LinearStep(torch.zeros_like(measured[0].precision), state[:, None][:, :0], state, torch.zeros_like(measured[0].precision))
        return cls([LogQuadratic.flat(state)] * len(measured), measured, [blind] * len(measured))


class SweepStep(NamedTuple):
    """One step of a sweep: the indices of the particles' parents (None: each is its own), and a linear fit of the step."""

    parents: Tensor | None
    fit: LinearStep


def sweep(kernel: TransitionKernel, particles: ParticleSet, plan: Plan, threshold: float, first: int) -> Iterator[SweepStep]:
    """Move particles, whose weights already include psi of their frame, through a plan.

    The particles are changed in place, and can be read after each step; `first` numbers the first step.
    """
    for t, (psi, potential, fit) in enumerate(zip(plan.ahead, plan.potentials, plan.fits, strict=True), first):
        parents = particles.resample(threshold)
        before = psi(kernel.flat(particles.x))
        if isinstance(potential, Pinned):
            move = kernel.move(particles.carry, particles.weight)
            end = Carry(potential.state.expand_as(particles.x), move.carry.memory)
            move = Move(end, kernel.log_density(particles.carry, potential.state), move.fit)
        else:
            move = kernel.move(particles.carry, particles.weight, ProposalTarget(potential, fit))
        particles.carry = move.carry
        particles.weigh(move.log_weight - before, f"step {t}")
        yield SweepStep(parents, move.fit)


def start(kernel: TransitionKernel, x: Tensor, law: NormalLaw, potential: LogQuadratic, past: Tensor | None = None) -> ParticleSet:
    """Sample initial states from law x Psi_0 / Z, with weights Z; x (particle, *site, channel) gives the static fields.

    `past`, (particle, time, *site, channel), are the states before them.
    """
    draws, log_weight = potential.tilt(law)
    particles = ParticleSet(kernel.transition.started(kernel.put(x, draws), past), torch.full_like(log_weight, 1 / len(log_weight)).log())
    particles.weigh(log_weight, "the initial state")
    return particles
