"""How recordings come about from states, and what a state may have been, given a recording.

    y_t ~ Normal(H x_t, noise)            of the recorded fields, where a body is detected; noise 0: y_t = H x_t
    x_0 ~ Normal(y_0, noise)              of the recorded fields of a body, in the first frame that it is detected in
          Normal(0, spread)               of its hidden velocity

A first detection only says where a body begins, so it is given, as the initial state is where states are recorded. A body is there from its
first detection to its last one; frames in between in which it is not detected say nothing about it.

What is inferred is Normal: the linear law nearest to that of the transition at the states inferred before, smoothed in closed form. The
first time it is persistence with the noise of the data. All laws are the same for all axes of space, so they turn with the recording.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epns_pyro.context import DataContext
from epns_pyro.derived import PATIENCE
from epns_pyro.durations import noise_power, relative
from epns_pyro.errors import ConfigError
from epns_pyro.fields import LEARN
from epns_pyro.models.bodies.emissions import CoupledNormal
from epns_pyro.models.bodies.kicks import error_share
from epns_pyro.models.bodies.mixture import ScaleMixture
from epns_pyro.models.hidden.laws import PartlyKnown
from epns_pyro.models.hidden.smoother import Evidence, LinearLaw, PathLaw, smooth
from epns_pyro.models.normal import unmasked
from epns_pyro.models.transition import Transition

SWEEPS, MORE_SWEEPS = 2, 3  # linearisations about the states inferred before, in training and in evaluation


@dataclass(frozen=True)
class Frames:
    """A recording (batch, time, ...) as the laws of states read it.

    Parameters
    ----------
    x : Tensor, (batch, time, body, channel)
        Full states as they were read: NaN in the dynamic fields of bodies that were not detected.
    evidence : Evidence
    """

    x: Tensor
    evidence: Evidence

    @property
    def entry(self) -> Tensor:
        """The frame in which every body enters, (batch, body); 0 for those that never do."""
        return self.evidence.first.int().argmax(1)

    @property
    def stays(self) -> Tensor:
        """Which bodies are there before and after each step, (batch, time - 1, body)."""
        return self.evidence.there[:, 1:] & self.evidence.there[:, :-1]

    @property
    def scored(self) -> Tensor:
        """Which detections are told something by the states before: all but the first of each body, (batch, time, body)."""
        return self.evidence.seen & ~self.evidence.first


class Recording(nn.Module):
    """The law of a recording given states, with what is learned of it.

    Attributes
    ----------
    recorded : tuple of bool
        Which dynamic fields are recorded.
    """

    step_scales: Tensor
    drift: Tensor
    start: Tensor
    sizes: Tensor
    learned: Tensor

    def __init__(self, context: DataContext) -> None:
        super().__init__()
        self.spec, self.frame_dt = context.spec, context.frame_dt
        fields = self.spec.dynamic_fields
        if odd := [f.name for f in fields if not f.is_vector]:
            raise ConfigError(
                f"field {odd[0]!r} is a dynamic scalar: where states are hidden or have noise, dynamic fields are vectors: leave it out, "
                "or declare it static"
            )
        self.recorded = tuple(not f.hidden for f in fields)
        scales = torch.tensor([context.step_scales[f.name] for f in fields], dtype=torch.float64)
        rates = {f.rate_of: i for i, f in enumerate(fields) if f.rate_of}
        matrix = torch.eye(len(fields), dtype=torch.float64)
        for i, f in enumerate(fields):
            if f.name in rates:
                matrix[i, rates[f.name]] = self.frame_dt
        start = [_error(context, f.name, rates) if f.noise == LEARN else float(f.noise) for f in fields]
        self._noise_powers = torch.tensor([noise_power(self.spec, f) for f in fields], dtype=torch.float64)
        self.register_buffer("step_scales", scales, persistent=False)
        self.register_buffer("drift", matrix, persistent=False)
        self.register_buffer("start", torch.tensor(start, dtype=torch.float64), persistent=False)
        self.register_buffer("sizes", torch.tensor([f.scale for f in fields], dtype=torch.float64), persistent=False)
        self.register_buffer("learned", torch.tensor([f.noise == LEARN for f in fields]), persistent=False)
        count = len(fields)
        self.log_noise = nn.Parameter(torch.zeros(count))  # of what is recorded, relative to the start
        self.log_spread = nn.Parameter(torch.zeros(count))  # of hidden velocities of bodies that enter, relative to the scale
        self.return_rate = nn.Parameter(torch.zeros(count, count))  # how the inferred law differs from a free motion, in units of a step
        self.widening = nn.Parameter(torch.zeros(count, count))  # and from the noise of the transition

    @property
    def noise(self) -> Tensor:
        """Standard deviation of the error of every recorded field, in its unit: (field,); 0 where it is exact or hidden."""
        return self.start.double() * torch.where(self.learned, self.log_noise.double(), 0.0).exp()

    @property
    def spread(self) -> Tensor:
        """Standard deviation of every field of a body in the frame that it enters in: (field,)."""
        recorded = torch.tensor(self.recorded, device=self.sizes.device)
        return torch.where(recorded, self.noise, self.sizes.double() * self.log_spread.double().exp())

    # -- reading ---------------------------------------------------------------------------------------------------------

    def read(self, x: Tensor, *, forecast: bool = False) -> Frames:
        """Read a recording, full states (batch, time, body, channel) with NaN for bodies that were not detected.

        With `forecast` a body that was missed in the last PATIENCE frames is there to the end.
        """
        values = self.by_field(self.spec.dynamic(x)).double()
        seen = ~values[..., self.recorded.index(True), :].isnan().any(-1)
        began, goes_on = seen.cummax(1).values, seen.flip(1).cummax(1).values.flip(1)
        if forecast:
            tail = seen[:, -1 - PATIENCE :].any(1, keepdim=True)
            goes_on = goes_on | tail
        there = began & goes_on
        first = there & ~torch.cat([torch.zeros_like(began[:, :1]), began[:, :-1]], 1)
        return Frames(x, Evidence(torch.where(seen[..., None, None], self._unwrapped(x, values), 0.0), seen, first, there))

    def _unwrapped(self, x: Tensor, values: Tensor) -> Tensor:
        """Follow positions through the walls of a periodic box: each to the image nearest to the last one that was detected."""
        space, position = self.spec.space_of(x[:, 0].double()), self.spec.position
        if not space.periodic or position is None:
            return values
        k = [f.name for f in self.spec.dynamic_fields].index(position.name)
        parts = [values[:, 0, :, k]]
        for here in values[:, 1:, :, k].unbind(1):
            image = space.nearest(here, torch.where(parts[-1].isnan(), here, parts[-1]))
            parts.append(torch.where(image.isnan(), parts[-1], image))
        track = torch.stack(parts, 1)
        return torch.cat([values[..., :k, :], track[..., None, :], values[..., k + 1 :, :]], -2)

    def by_field(self, y: Tensor) -> Tensor:
        """Take dynamic channels (*batch, body, dynamic channel) apart: (*batch, body, field, space)."""
        return y.unflatten(-1, (len(self.recorded), self.spec.space))

    def state(self, frames: Frames, t: slice | int, fields: Tensor) -> Tensor:
        """Full states of fields (*sample, batch, [time,] body, field, space), with NaN for bodies that are not there."""
        there = frames.evidence.there[:, t]
        x: Tensor = frames.x[:, t]
        return self.spec.advance(x, torch.where(there[..., None], fields.flatten(-2).to(x.dtype), torch.nan))

    # -- laws ------------------------------------------------------------------------------------------------------------

    def entry_law(self, frames: Frames) -> PartlyKnown:
        """p(x_0): the law of the state of every body in the frame that it enters in, batch (batch, body)."""
        values, like = frames.evidence.values, frames.x
        at = frames.entry[:, None, :, None, None].expand(-1, 1, -1, *values.shape[-2:])
        recorded = torch.tensor(self.recorded, device=values.device)
        mean = torch.where(recorded[:, None], values.gather(1, at)[:, 0], 0.0)
        factor = torch.diag_embed(self.spread).expand(*mean.shape[:-2], -1, -1)
        return PartlyKnown(mean.flatten(-2).to(like.dtype), factor.to(like.dtype), validate_args=False)

    def law(self, y: Tensor) -> PartlyKnown:
        """p(y_t | x_t): the law of what is recorded of dynamic channels y (*batch, body, dynamic channel), batch (*batch, body)."""
        kept = list(self.recorded)
        seen = self.by_field(y)[..., kept, :]
        return PartlyKnown(
            seen.flatten(-2), torch.diag_embed(self.noise[kept]).to(y.dtype).expand(*seen.shape[:-2], -1, -1), validate_args=False
        )

    def values(self, frames: Frames) -> Tensor:
        """What was recorded of the recorded fields: (batch, time, body, recorded channel)."""
        return frames.evidence.values[..., list(self.recorded), :].flatten(-2).to(frames.x.dtype)

    # -- inference -------------------------------------------------------------------------------------------------------

    def infer(self, transition: Transition, frames: Frames, *, sweeps: int = SWEEPS) -> PathLaw:
        """Return the law of the paths that a recording may be of, Normal and nearest to what the transition says.

        The linearisation has no gradient: the bound is nearly flat in it, as in a step of expectation maximisation.
        """
        shape, rest = frames.evidence.values.shape, frames.evidence.values[:, 1:] * 0.0
        each = (shape[0], shape[1] - 1, shape[2])  # a step of a body
        ratio = self._relative(frames)
        matrix, free = (self._longer(step, ratio).expand(*each, -1, -1) for step in (self.matrix, self.drift.double()))
        noise = torch.diag_embed((self.step_scales.double() * ratio[..., None] ** self._noise_powers.to(ratio.device)).square()).expand(
            *each, -1, -1
        )
        law = LinearLaw(free, rest, noise, self.noise.square(), self.recorded, self.spread.square())
        if shape[1] == 1:
            return smooth(frames.evidence, law)
        for _ in range(sweeps):
            with torch.no_grad():
                path = smooth(frames.evidence, law).path()
                mean, root = self._linearised(transition, frames, path)
            wide = self._widened(root)
            law = law._replace(matrix=matrix, offset=mean - matrix @ path[:, :-1], noise=wide @ wide.mT)
        return smooth(frames.evidence, law)

    def _relative(self, frames: Frames) -> Tensor:
        """Durations of steps in nominal ones, (batch, time - 1, body), or ones (1, 1, 1) where frames are even."""
        ratio = relative(self.spec, frames.x[:, :-1])
        return self.step_scales.new_ones(1, 1, 1) if ratio is None else ratio.double()

    @staticmethod
    def _longer(matrix: Tensor, ratio: Tensor) -> Tensor:
        """Return the matrix (field, field) of a nominal step for steps that last longer: what changes grows with the duration."""
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return eye + ratio[..., None, None] * (matrix - eye)

    @property
    def matrix(self) -> Tensor:
        """A of a nominal step: free motion, and the learned pull back to rest."""
        units = self.step_scales.double()
        return self.drift.double() - units[:, None] * self.return_rate.double() / units

    def _widened(self, root: Tensor) -> Tensor:
        units = self.step_scales.double()
        bent = torch.diag_embed(self.widening.diagonal().double().exp()) + self.widening.double().tril(-1)
        return (units[:, None] * bent / units) @ root

    def _linearised(self, transition: Transition, frames: Frames, path: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and noise of the steps from the states of a path: (batch, time - 1, body, field, space) and (..., field, field)."""
        x = self.state(frames, slice(None), path)
        means, roots = [], []
        for carry in transition.carries(x[:, 0], x[:, 1:]).split(transition.block_size):
            step = transition.step(carry)
            law = step.emission(step.prior.mean)
            means.append(self.by_field(law.mean))
            roots.append(noise_factor(unmasked(law), len(self.recorded)).expand(*means[-1].shape[:-1], len(self.recorded)))
        split = x.shape[0], x.shape[1] - 1
        return torch.cat(means).double().unflatten(0, split), torch.cat(roots).double().unflatten(0, split)


def _error(context: DataContext, name: str, rates: dict[str, int]) -> float:
    """Return the error of a field that learning starts from.

    A change that is all error is that of two or, of an integral of rates, four of them: one, one, and twice one that counts double.
    """
    size = context.step_scales[name]
    return size * math.sqrt(error_share(context, name) / 6) if name in rates else size / math.sqrt(2)


def recording_of(transition: Transition) -> Recording:
    """Return how the hidden states of a transition are recorded."""
    if not isinstance(transition.recording, Recording):
        raise TypeError("the states of this transition are not hidden: the recording is the state")
    return transition.recording


def noise_factor(law: torch.distributions.Distribution, fields: int) -> Tensor:
    """Return L, (*batch, body, field, field), of the law of a step per body: noise (L ⊗ I) e, isotropic in space."""
    if isinstance(law, ScaleMixture):
        width = (law.log_weights + 2 * law.log_scales).logsumexp(-1).exp().sqrt()
        base = law.base if isinstance(law.base, CoupledNormal) else law.base.base_dist
        return noise_factor(base, fields) * width[..., None, None]
    if isinstance(law, CoupledNormal):
        return law.factor
    return torch.diag_embed(law.variance.unflatten(-1, (fields, -1)).mean(-1).sqrt())
