"""Numbers and lists in words, for the sentences of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable


def sentence(words: str) -> str:
    """Make a sentence: a capital first letter, and a full stop."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def number(value: float | None, form: str = ".2f") -> str:
    """Write a number, with a true minus sign; a dash where it is unknown."""
    if value is None or value != value:
        return "–"
    return format(value, form).replace("-", "−") if "e" not in form else format(value, form)


FINEST = 1e-5  # smaller errors are written with powers of ten


def precision(error: float | None) -> int:
    """Return the number of decimals to show, from the standard error: two digits of the error, so that 1.644 and 1.647 stay different.

    Two decimals where the error is unknown.
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return 2
    return max(1 - math.floor(math.log10(max(error, FINEST))), 0)


def measured(value: float, error: float | None = None, *, sign: bool = False) -> str:
    """Write a number with its standard error, in the decimals that the error allows: "1.644 ± 0.024", "3.20e-09 ± 4.1e-10"."""
    plus = "+" if sign else ""
    if error is None or not math.isfinite(error):
        return number(value, f"{plus}.3g")
    if 0 < error < FINEST and math.isfinite(value):
        digits = max(math.floor(math.log10(max(abs(value), error))) - math.floor(math.log10(error)) + 1, 1)
        return f"{number(value, f'{plus}.{digits}e')} ± {error:.1e}"
    form = f".{precision(error)}f"
    return f"{number(value, plus + form)} ± {number(error, form)}"


def p_value(p: float | None) -> str:
    """Write a p-value, with enough digits to multiply it by a number of tests."""
    return "–" if p is None or p != p else "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def listing(words: Iterable[str], most: int = 4) -> str:
    """Join words with commas and "and"; words beyond `most` are counted."""
    words = list(words)
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def brief(text: str, most: int = 44) -> str:
    """Shorten a label that a user chose, so that it fits a panel."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"
