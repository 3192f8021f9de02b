"""Check: what law of pairs has the equation of motion learned?

The acceleration that one body gives another, against their distance, at pairs of held-out states, beside the true law where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import xarray as xr

from epns_pyro.calibration.wording import sentence
from epns_pyro.evaluation.check import Check, Inputs
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures import model as figures
from epns_pyro.evaluation.parts import Figure, Key, Section, Text
from epns_pyro.evaluation.record import NAN, Count, HeadlineLine, Real, Record
from epns_pyro.inference.pair_law import HELD_OUT, STRIDE
from epns_pyro.state import StateSpec

INERTIA = "mass"  # the field that accelerations are divided by, where there is one
FEW_BODIES = 2


class PairLaw(Record):
    """The learned law of pairs, in words; its curves are in pair_law.nc.

    `form` is the law where it can be read; `per` divides accelerations, `times` multiplies them. `off` is the median over distances of how
    far the learned law is from the true one, as a share of it; NaN where none is known.
    """

    pairs: Count
    per: str
    off: Real = NAN
    times: str = ""
    form: str = ""


class PairLawCheck(Check[PairLaw]):
    key, title, record = "pair_law", "law of pairs", PairLaw

    def measure(self, inputs: Inputs) -> PairLaw | None:
        simulator, spec = inputs.simulator, inputs.store.spec
        if not simulator.transition.has_motion or simulator.infers_states or inputs.store.read("test", slice(0, 1)).shape[-2] < FEW_BODIES:
            return None
        law = simulator.transition.law
        times = next((name for name in law.inertia if not spec[name].dynamic), "") if law is not None else ""
        per = "" if times else acting_field(spec)
        found = simulator.pair_law(states(inputs), per=per, times=times)
        inputs.save("pair_law", found)
        return PairLaw(pairs=int(found["pairs"].sum()), per=per, off=share_off(found), times=times, form=found.attrs.get("law", ""))

    def sections(self, record: PairLaw | None, found: Evaluated) -> Iterator[Section]:
        data = found.files.get("pair_law")
        if record is None or data is None:
            return
        section = Section(
            "pair-law",
            "The law of pairs",
            "Acceleration that one body gives another along the line between them, by the learned equation of motion; negative where they "
            "attract each other. A wide band: it depends on more than the distance, or on other bodies; or it is steep, and then that of "
            "the true law is as wide.",
        )
        words = f"90% bands over {record.pairs} pairs of held-out states"
        words += f", per unit of the {record.per} of the body that acts" if record.per else ""
        words += f", times the {record.times} of the body that is moved" if record.times else ""
        if math.isfinite(record.off):
            words += f"; the learned law is {record.off:.1%} off in the median over distances"
        if record.form:
            section.items.append(Text(sentence(record.form)))
        key = (Key("model", "learned"), *((Key("truth", "true law"),) if "truth" in data else ()))
        section.items.append(
            Figure(figures.pair_law(data), alt=f"Acceleration against distance: {words}.", caption=sentence(words), key=key)
        )
        yield section

    def headline(self, record: PairLaw) -> Iterator[HeadlineLine]:
        if math.isfinite(record.off):
            beside = "median over distances, beside the true law"
            note = f"{beside}; {record.form}" if record.form else beside
            yield HeadlineLine(label="learned law of pairs", value=f"{record.off:.1%} off", note=note)
        elif record.form:
            yield HeadlineLine(label="learned law of pairs", value=record.form)


def states(inputs: Inputs) -> np.ndarray:
    """Return held-out states that are apart in time: (trajectory, time, body, channel)."""
    return inputs.store.read("test", slice(0, HELD_OUT))[:, ::STRIDE]


def acting_field(spec: StateSpec) -> str:
    """Return the field that accelerations are divided by: the mass of the body that acts; "" where there is none."""
    return INERTIA if INERTIA in spec and not spec[INERTIA].dynamic and not spec[INERTIA].is_vector else ""


def share_off(found: xr.Dataset) -> float:
    """Return the median over distances and kinds of |error| / |truth|; NaN where the truth is not known."""
    if "truth" not in found:
        return NAN
    error, truth = (np.abs(found[name].sel(quantile=0.5).values) for name in ("error", "truth"))
    known = np.isfinite(truth) & (truth > 1e-3 * np.nanmax(truth, initial=0.0))
    return float(np.median(error[known] / truth[known])) if known.any() else NAN
