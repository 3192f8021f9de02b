"""Functions drawn from a sparse Gaussian process: a draw is one function, to be evaluated anywhere and any number of times.

    f(x) = Phi(x) w + k(x, Z) L^-T (u - L^-1 Phi(Z) w),    L L^T = k(Z, Z),   w ~ Normal(0, 1),   u ~ q(u)

Random Fourier features make a draw of the prior, and the second term moves it through the inducing outputs L u (Wilson et al., Efficiently
Sampling Functions from Gaussian Process Posteriors, ICML 2020). An integrator needs just that: the same function at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

JITTER = 1e-4  # of the variance, on the diagonal of k(Z, Z)


class SparseGP(nn.Module):
    """Independent Gaussian processes with one squared exponential kernel, a length scale per input, and common inducing inputs.

    Parameters
    ----------
    inputs, outputs : int
    inducing : int
        Number of inducing inputs Z.
    features : int
        Random Fourier features of a prior draw.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, inputs: int, outputs: int, inducing: int, features: int) -> None:
        super().__init__()
        self.outputs, self.features = outputs, features
        self.log_lengthscale = nn.Parameter(torch.zeros(inputs))
        self.log_amplitude = nn.Parameter(torch.zeros(()))
        self.inducing = nn.Parameter(torch.randn(inducing, inputs))
        self.register_buffer("frequencies", torch.randn(inputs, features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))

    @property
    def amplitude(self) -> Tensor:
        return self.log_amplitude.exp()

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """k(x, y) = a^2 exp(-|(x - y) / l|^2 / 2), x (*batch, point, input), y (other, input): (*batch, point, other)."""
        x, y = x / self.log_lengthscale.exp(), y / self.log_lengthscale.exp()
        square = x.square().sum(-1, keepdim=True) - 2 * x @ y.mT + y.square().sum(-1)
        return self.amplitude.square() * torch.exp(-0.5 * square.clamp_min(0.0))

    def fourier(self, x: Tensor) -> Tensor:
        """Phi(x), with E[Phi(x) Phi(y)^T] = k(x, y) over frequencies and phases: (*batch, point, feature)."""
        angles = (x / self.log_lengthscale.exp()) @ self.frequencies + self.phases
        return self.amplitude * math.sqrt(2 / self.features) * angles.cos()

    def draw(self, u: Tensor, w: Tensor) -> Function:
        """Return the function with whitened inducing outputs u (*draw, inducing, output) and weights w (*draw, feature, output)."""
        covariance = self.kernel(self.inducing, self.inducing)
        eye = torch.eye(len(self.inducing), dtype=covariance.dtype, device=covariance.device)
        factor = torch.linalg.cholesky(covariance + JITTER * self.amplitude.square() * eye)
        residual = u - torch.linalg.solve_triangular(factor, self.fourier(self.inducing) @ w, upper=False)
        return Function(self, w, torch.linalg.solve_triangular(factor.mT, residual, upper=True))


@dataclass(frozen=True)
class Function:
    """A draw of a Gaussian process."""

    process: SparseGP
    weights: Tensor
    coefficients: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """f(x) at (*draw, point, input): (*draw, point, output)."""
        return self.process.fourier(x) @ self.weights + self.process.kernel(x, self.process.inducing) @ self.coefficients
