"""Bodies under forces with Brownian kicks to their velocities: what their systems share, with the law of one frame."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from epns_pyro.errors import ShapeError
from epns_pyro.systems.base import System, checked_seeds
from epns_pyro.threads import limited


class KickedBodies(System):
    """Positions and velocities in space, and the exact distribution of one frame to first order in the noise.

    Attributes
    ----------
    steps_per_frame : int
    sigma : float
        Standard deviation of the kicks to every velocity component, per square root of time.
    energy_jump : float
        A trajectory is no longer alive after a frame in which its total energy rises by more than this.
    """

    can_simulate = True
    has_oracle = True
    steps_per_frame: int
    sigma: float
    energy_jump: float

    @abstractmethod
    def total_energy(self, x: np.ndarray) -> np.ndarray:
        """Kinetic and potential energy of states (*batch, body, channel): (*batch,)."""

    @abstractmethod
    def _walked(self, x0: np.ndarray, steps: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run from x0 (n, body, channel) with seeds (n,) uint64: positions and velocities (n, steps + 1, body, 3)."""

    @abstractmethod
    def _propagated(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take states (n, body, channel) one frame on: positions and velocities (n, body, 3), covariance, all positions first."""

    @property
    def has_density(self) -> bool:
        """Whether there is a density: with a single noisy step the positions have no noise."""
        return self.sigma > 0 and self.steps_per_frame > 1

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Run the true process from x0 (n, body, channel) for `steps` frames: (n, steps + 1, body, channel).

        Every trajectory has its own random stream, made from its seed (n,) uint64; the result does not depend on the number of threads.
        """
        seeds = checked_seeds(self.spec, x0, seeds)
        with limited(workers):
            positions, velocities = self._walked(x0, steps, seeds)
        static = {f.name: self.spec.get(x0, f.name)[:, None] for f in self.spec.static_fields}
        return self.spec.pack(position=positions, velocity=velocities, **static)

    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans: True until a frame of x (*batch, time, body, channel) is not finite or gains too much energy."""
        with np.errstate(over="ignore", invalid="ignore"):
            energy = self.total_energy(x)
            gain = np.diff(energy, axis=-1, prepend=energy[..., :1])
            plausible = np.isfinite(x).all((-2, -1)) & np.isfinite(energy) & ~(gain > self.energy_jump)
        return np.logical_and.accumulate(plausible, axis=-1)

    # -- the oracle --------------------------------------------------------------------------------------------------------

    def transition_law(self, x: np.ndarray, *, workers: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of the next frame given x (*batch, body, channel), to first order in the noise.

        Returns
        -------
        mean : numpy.ndarray, (*batch, body, dynamic channel)
            The frame that the integrator reaches without noise.
        covariance : numpy.ndarray, (*batch, body * dynamic channel, body * dynamic channel)
            P <- A P A' + sigma^2 dt on the velocities, A the Jacobian of an integrator step; rows as in mean.reshape(*batch, -1).
        """
        self._require_oracle()
        self.spec.check(x)
        batch, bodies = x.shape[:-2], x.shape[-2]
        with limited(workers):
            position, velocity, covariance = self._propagated(x.reshape(-1, *x.shape[-2:]))
        mean = self.spec.pack_dynamic(position=position, velocity=velocity)
        # (field, body, axis) twice -> (body, field, axis) twice: the order of the dynamic channels of a state
        covariance = covariance.reshape(-1, 2, bodies, 3, 2, bodies, 3).transpose(0, 2, 1, 3, 5, 4, 6)
        return mean.reshape(*batch, bodies, 6), covariance.reshape(*batch, 6 * bodies, 6 * bodies)

    def transition_log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return log p(x' | x) = log Normal(x'; mean(x), covariance(x)): nats, (*batch,), for full states (*batch, body, channel).

        First order in the noise is accurate over one frame: squared Mahalanobis distances of simulated transitions have the expected
        chi-squared distribution.
        """

        def log_normal(deviation: np.ndarray, covariance: np.ndarray) -> np.ndarray:
            root = np.linalg.cholesky(covariance)
            white = np.linalg.solve(root, deviation.reshape(*root.shape[:-1], 1))[..., 0]
            log_root = np.log(np.diagonal(root, axis1=-2, axis2=-1))
            return -(0.5 * white**2 + log_root + 0.5 * np.log(2 * np.pi)).sum(-1)

        return self._score(x, x_next, log_normal)

    def diagonal_log_prob(self, x: np.ndarray, x_next: np.ndarray, *, isotropic: bool = False) -> np.ndarray:
        """Return log Normal(x'; mean(x), diag covariance(x)): nats, (*batch,); the upper limit of diagonal emissions without latents.

        The variances are the true ones; correlations are ignored. With `isotropic` a body has one variance per field, the mean over
        the axes: the upper limit of an emission that is also equivariant.
        """
        return np.sum(list(self.diagonal_log_prob_by_field(x, x_next, isotropic=isotropic).values()), axis=0)

    def diagonal_log_prob_by_field(self, x: np.ndarray, x_next: np.ndarray, *, isotropic: bool = False) -> dict[str, np.ndarray]:
        """Return the contribution of every dynamic field to `diagonal_log_prob`: nats, (*batch,) by name."""

        def log_normals(deviation: np.ndarray, covariance: np.ndarray) -> np.ndarray:
            variance = np.diagonal(covariance, axis1=-2, axis2=-1).reshape(deviation.shape)
            scores = []
            for field in self.spec.dynamic_fields:
                d, v = self.spec.get_dynamic(deviation, field.name), self.spec.get_dynamic(variance, field.name)
                v = v.mean(-1, keepdims=True) if isotropic else v
                scores.append(-0.5 * (d**2 / v + np.log(2 * np.pi * v)).sum((-2, -1)))
            return np.stack(scores, axis=-1)

        scores = self._score(x, x_next, log_normals)
        return {field.name: scores[..., i] for i, field in enumerate(self.spec.dynamic_fields)}

    def _score(self, x: np.ndarray, x_next: np.ndarray, log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Evaluate log_prob(x' - mean (n, body, dynamic channel), covariance) (n, ...) in blocks that fit in memory: (*batch, ...)."""
        self._require_oracle()
        self.spec.check(x_next, what="the next state")
        try:
            x, x_next = np.broadcast_arrays(x, x_next)
        except ValueError:
            raise ShapeError(f"the states {x.shape} and the next states {x_next.shape} do not have the same shape") from None
        batch, rows = x.shape[:-2], (-1, *x.shape[-2:])
        before, after = x.reshape(rows), self.spec.dynamic(x_next.reshape(rows))
        scores = []
        for block in _blocks(len(before), size=max(1, 10**7 // (6 * x.shape[-2]) ** 2)):
            mean, covariance = self.transition_law(before[block])
            scores.append(log_prob(after[block] - mean, covariance))
        joined = np.concatenate(scores)
        return joined.reshape(batch + joined.shape[1:])

    def _require_oracle(self) -> None:
        if not self.has_oracle:
            raise TypeError(
                f"the transition has no density with sigma = {self.sigma:g} and {self.steps_per_frame} integrator step(s) "
                "per frame: it needs noise and at least two steps"
            )


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, max(n, 1), size))  # an empty batch is one empty block
