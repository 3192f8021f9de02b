"""The one-screen summary of an evaluation."""

from __future__ import annotations

from typing import Any

from epns_pyro.calibration.wording import p_value
from epns_pyro.evaluation import summary

NAMED = 3  # faults; the table of verdicts has all


def headline(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of the summary: label, value, note, and whether it is good (True, False, or None: a matter of taste)."""
    lines = [
        *_likelihood(metrics["likelihood"]),
        *_calibration(metrics["verdicts"]),
        *_distributions(metrics),
        *_together(metrics["two_sample"]),
    ]
    latents, stable = metrics["latents"], metrics["stability"]
    lines.append(
        {
            "label": "latents in use",
            "value": f"{latents['active']} of {latents['latent']} dimensions, KL {metrics['likelihood']['kl']:.2f} nats",
            "note": "per transition; guide " + latents["guide"]["word"],
            "good": None if latents["active"] else False,
        }
    )
    lines.append(
        {
            "label": f"plausible after {stable['steps']} steps",
            "value": f"{stable['final_alive_model']:.0%}",
            "note": f"true process {stable['final_alive_truth']:.0%}, {stable['runs']} runs",
            "good": not summary.runs_die(stable),
        }
    )
    symmetry = metrics["equivariance"]
    value, good = f"{symmetry['maximum']:.0e}", not summary.breaks_symmetry(symmetry)
    lines.append({"label": "symmetry error", "value": value, "note": symmetry["group"], "good": good})
    return lines


def _likelihood(likelihood: dict[str, Any]) -> list[dict[str, Any]]:
    rows = {row["key"]: row for row in likelihood["rows"]}
    elbo = rows["elbo"]["value"]
    naive = rows.get("persistence")
    lines = [
        {
            "label": "log-likelihood (ELBO)",
            "value": f"{elbo:.2f} nats",
            "note": "per transition" + (f"; {naive['name']}: {naive['value']:.1f}" if naive else ""),
            "good": None if naive is None else not summary.loses_to_persistence(likelihood),
        }
    ]
    if "oracle" in rows:
        gap = rows["oracle"]["value"] - elbo
        note = f"the true transition density scores {rows['oracle']['value']:.2f}"
        lines.append({"label": "gap to the oracle", "value": f"{gap:.2f} nats", "note": note, "good": gap < 5})
    return lines


def _calibration(verdicts: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    judged = [v for group in verdicts.values() for v in group if v["word"] != "too few data to say"]
    good = [v for v in judged if v["word"] == "calibrated"]
    faults = [f"{v['subject']} {v['word']}" for v in judged if v not in good]
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return [
        {
            "label": "calibrated on held-out data",
            "value": f"{len(good)} of {len(judged)} quantities",
            "note": ", ".join(faults[:NAMED]) + more or "no test fails",
            "good": len(good) == len(judged) if judged else None,
        }
    ]


def _distributions(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    rows = metrics["same_init"]
    if not rows:
        return []
    worst = max(rows, key=lambda row: row["ks"] - row["typical"])
    differing = summary.distributions_that_differ(rows)
    return [
        {
            "label": "distributions from one initial state",
            "value": f"{len(differing)} of {len(rows)} differ",
            "note": f"largest D_KS {worst['ks']:.2f}, {worst['label']} at {worst['time']:g}; two true ensembles: {worst['typical']:.2f}",
            "good": not differing,
        }
    ]


def _together(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [p for test in tests for p in summary.joint_p_values(test)]
    if not known:
        return []
    told_apart = summary.initial_states_told_apart(tests)
    return [
        {
            "label": "all observables together",
            "value": f"{len(told_apart)} of {len(tests)} initial states differ",
            "note": f"energy distance and classifier, 5% over {len(known)} tests; smallest p times {len(known)}: "
            + p_value(min(1.0, len(known) * min(known))),
            "good": not told_apart,
        }
    ]
