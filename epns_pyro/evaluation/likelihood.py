"""How probable held-out transitions are under the model, beside what is possible: nats per transition of the whole system."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from epns_pyro.calibration import sbc
from epns_pyro.calibration.scores import Estimate, mean_estimate
from epns_pyro.data import Store
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.inference import Simulator
from epns_pyro.inference.run import EvaluationConfig
from epns_pyro.inference.validation import as_tensor, draw_transitions


def score(simulator: Simulator, store: Store, settings: EvaluationConfig, references: dict[str, Forecaster]) -> dict[str, Any]:
    """Return the likelihood table: rows of name, key, value, error (over trajectories) and note."""
    system, samples = store.system, settings.importance_samples
    x, x_next = draw_transitions(store, "test", settings.likelihood_transitions)
    per_trajectory = len(x) // min(store.size("test"), int(np.sqrt(settings.likelihood_transitions)))
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        bounds = simulator.bounds(as_tensor(x), as_tensor(x_next)[:, None], num_samples=samples)
    rows: list[dict[str, Any]] = []

    def add(key: str, name: str, values: np.ndarray, note: str = "") -> None:
        estimate = _clustered(np.asarray(values, float), per_trajectory)
        rows.append({"key": key, "name": name, "value": float(estimate.value), "error": float(estimate.error), "note": note})

    add("elbo", "model, ELBO", bounds.elbo.cpu().numpy(), "reconstruction minus KL, never annealed")
    add("iwae", f"model, IWAE bound (K = {samples})", bounds.iwae.cpu().numpy(), "tighter: closer to the log-likelihood of the model")
    for name, reference in references.items():
        if hasattr(reference, "log_prob"):
            add(name, f"{name} with fitted noise", reference.log_prob(x, x_next), "what needs no learning")
    if hasattr(system, "diagonal_log_prob") and system.has_oracle:
        diagonal = system.diagonal_log_prob(x, x_next)
        add("diagonal", "best diagonal Normal", diagonal, "no emission of independent channels passes this without latents")
    if system.has_oracle:
        add("oracle", "oracle", system.transition_log_prob(x, x_next), "the true transition density: nothing can do better")
    kl, log_likelihood = (_clustered(v.cpu().numpy(), per_trajectory) for v in (bounds.kl, bounds.log_likelihood))
    return {
        "unit": "nats per transition",
        "transitions": len(x),
        "rows": rows,
        "reconstruction": float(log_likelihood.value),
        "kl": float(kl.value),
        "gap_sentence": sbc.bound_gap(bounds.elbo.cpu().numpy(), bounds.iwae.cpu().numpy(), transitions=1, samples=samples).sentence(),
    }


def latents(simulator: Simulator, store: Store, settings: EvaluationConfig) -> dict[str, Any]:
    """Say which latents are used, and whether the guide is honest about them."""
    transition, spec = simulator.transition, simulator.spec
    x, x_next = draw_transitions(store, "test", settings.guide_transitions)
    x, x_next = as_tensor(x, simulator.device), as_tensor(x_next, simulator.device)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(settings.seed + 1)
        h = transition.forward_model(x)
        prior, posterior = transition.prior(x, h), transition.posterior(x, h, x_next)
        kl = torch.distributions.kl_divergence(posterior.base_dist, prior.base_dist)
        usage = sbc.latent_usage(*(v.cpu().numpy() for v in (kl, posterior.base_dist.loc, prior.base_dist.loc, prior.base_dist.scale)))
        # The guide against the model's own draws: z ~ p(z | h), x' ~ p(x' | h, z), then z ~ q(z | h, x').
        z = prior.sample()
        imagined = spec.advance(x, transition.emission(x, h, z).sample())
        draws = transition.posterior(x, h, imagined).sample((settings.guide_draws,))
    rng = np.random.default_rng((settings.seed, 2))
    verdict = sbc.judge_guide(sbc.sbc_diagnostics(draws.cpu().numpy(), z.cpu().numpy(), rng=rng))
    return {
        "kl_total": float(kl.sum((-2, -1)).mean()),
        "active": int(usage.active.sum()),
        "latent": len(usage.active),
        "entities": int(kl.shape[-2]),
        "kl_by_dimension": usage.kl.tolist(),
        "sentence": usage.sentence(),
        "guide": verdict.as_dict(),
    }


def _clustered(values: np.ndarray, per_trajectory: int) -> Estimate:
    """Mean of values (transition,), its error from the scatter between trajectories, the only independent units."""
    return mean_estimate(values.reshape(-1, per_trajectory).mean(1))
