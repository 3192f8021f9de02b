"""Check: which latents are used, and is the guide calibrated?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from epns_pyro.calibration import sbc
from epns_pyro.calibration.wording import number, sentence
from epns_pyro.data import Store
from epns_pyro.evaluation.check import Check, Inputs
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures import model as figures
from epns_pyro.evaluation.lines import after_word
from epns_pyro.evaluation.parts import Figure, Judged, Key, Section
from epns_pyro.evaluation.record import HeadlineLine, Latents, VerdictRecord
from epns_pyro.models.hidden.recording import recording_of
from epns_pyro.models.normal import unmasked
from epns_pyro.models.transition import Step
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig
from epns_pyro.training.validation import draw_windows, draw_with_past


class LatentsCheck(Check[Latents]):
    key, title, record = "latents", "latents", Latents

    def measure(self, inputs: Inputs) -> Latents | None:
        return latents(inputs.simulator, inputs.store, inputs.settings)

    def sections(self, record: Latents | None, found: Evaluated) -> Iterator[Section]:
        if record is None:
            return
        section = Section(
            "latents",
            "Latents",
            "How many nats each latent dimension carries, and whether the guide is calibrated: latents are sampled from the model, and "
            "their "
            "ranks among samples of the guide must be uniform. Unused latents are shown too.",
        )
        if record.kl_by_dimension:
            together = "" if record.entities is None else f" For all {record.entities} entities together: {number(record.kl_total)} nats."
            section.items.append(
                Figure(
                    figures.latent_bars(record.kl_by_dimension),
                    alt=f"KL per latent dimension: {record.sentence}.",
                    caption=sentence(record.sentence or "KL per latent dimension") + (together if math.isfinite(record.kl_total) else ""),
                    key=(Key("model", "used"), Key("floor", "not used")),
                    size="wide",
                )
            )
        if guide := record.guide:
            section.items.append(Judged("The guide is", guide.word, sentence(after_word(guide.sentence, guide.word))))
        yield section

    def headline(self, record: Latents) -> Iterator[HeadlineLine]:
        yield HeadlineLine(
            label="latents in use",
            value=f"{record.active} of {record.latent} dimensions, KL {number(record.kl_total)} nats",
            note="per transition" + (f"; guide {record.guide.word}" if record.guide else ""),
            good=None if record.active else False,
        )


def latents(simulator: Simulator, store: Store, settings: EvaluationConfig) -> Latents | None:
    """Measure which latents are used, and test whether the guide is calibrated; None for a model without latents."""
    transition = simulator.transition
    past, x, x_next = _transitions(simulator, store, settings)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(settings.seed + 1)
        carry, size, parts = transition.started(x, past), transition.at_once(x), []
        for some, following in zip(carry.split(size), x_next.split(size), strict=True):
            parts.append(_of_block(transition.step(some), following, settings.guide_draws))
    kl, loc, prior_loc, prior_scale, z, draws = (np.concatenate(part, -3) for part in zip(*parts, strict=True))
    if not kl.shape[-1]:
        return None
    usage = sbc.latent_usage(kl, loc, prior_loc, prior_scale)
    rng = np.random.default_rng((settings.seed, 2))
    verdict = sbc.judge_guide(sbc.sbc_diagnostics(draws, z, rng=rng))
    return Latents(
        kl_total=float(kl.sum((-2, -1), dtype=np.float64).mean()),
        active=int(usage.active.sum()),
        latent=len(usage.active),
        entities=int(kl.shape[-2]),
        kl_by_dimension=tuple(usage.kl.tolist()),
        sentence=usage.sentence(),
        guide=VerdictRecord.model_validate(verdict),
    )


def _of_block(step: Step, x_next: torch.Tensor, draws: int) -> tuple[np.ndarray, ...]:
    """Return KL, means of guide and prior, scale of the prior, latents z of the model and draws of the guide given what z makes.

    Each (*draw, transition, entity, latent): to test the guide, z ~ p(z | h), x' ~ p(x' | h, z), then z ~ q(z | h, x').
    """
    prior, posterior = step.prior, step.posterior(x_next)
    kl = torch.distributions.kl_divergence(posterior.base_dist, prior.base_dist)
    z = prior.sample()
    guide = step.posterior(step.advance(step.emission(z).sample()).x)
    of_prior = unmasked(prior)
    found = (kl, unmasked(posterior).loc, of_prior.loc, of_prior.scale, z, guide.sample((draws,)))
    return tuple(value.cpu().numpy() for value in found)


def _transitions(simulator: Simulator, store: Store, settings: EvaluationConfig) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return test transitions (transition, *site, channel), the states before them first; of hidden states those that the guide infers."""
    if not simulator.infers_states:
        parts = draw_with_past(store, "test", settings.guide_transitions, simulator.transition.earlier_frames)
        past, before, after = map(simulator.local, parts)
        return past, before, after
    windows = simulator.local(draw_windows(store, "test", settings.guide_transitions, store.system.frames_given))
    recording = recording_of(simulator.transition)
    with torch.no_grad():
        frames = recording.read(windows)
        x = recording.state(frames, slice(None), recording.infer(simulator.transition, frames).path())
    return None, x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)
