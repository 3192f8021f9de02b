"""Fast random numbers for compiled simulators: one xoshiro256++ stream per trajectory, so results do not depend on threads.

A generator is its state, a uint64 array of length 4 made by `seeded`; every function advances it in place. All of them are compiled
by numba and can be called from compiled code or from Python. (Numba caches a compiled caller by the date of the caller's own file:
after editing this one, remove ``__pycache__/*.nb[ic]``.)

Sources: Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 47 (2021); Marsaglia and Tsang, "The ziggurat
method for generating random variables", J. Stat. Softw. 5 (2000), in the form of Doornik, "An improved ziggurat method" (2005).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_LOW_HALF = np.uint64(0xFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@njit(cache=True)
def seeded(seed: np.uint64) -> np.ndarray:
    """Return the generator of a 64-bit seed: (4,) uint64, four steps of splitmix64, never all zero."""
    state = np.empty(4, np.uint64)
    x = np.uint64(seed)
    for i in range(4):
        x = np.uint64(x + _GOLDEN)
        z = x
        z = np.uint64((z ^ (z >> np.uint64(30))) * _MIX_1)
        z = np.uint64((z ^ (z >> np.uint64(27))) * _MIX_2)
        state[i] = z ^ (z >> np.uint64(31))
    return state


@njit(cache=True)
def _rotated(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@njit(cache=True)
def bits64(rng: np.ndarray) -> np.uint64:
    """Draw 64 random bits: xoshiro256++, period 2^256 - 1."""
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    result = np.uint64(_rotated(np.uint64(s0 + s3), 23) + s0)
    shifted = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= shifted
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, _rotated(s3, 45)
    return result


@njit(cache=True)
def uniform(rng: np.ndarray) -> float:
    """U[0, 1): one of the 2^53 equally spaced doubles."""
    return (bits64(rng) >> np.uint64(11)) * 2.0**-53


@njit(cache=True)
def below(rng: np.ndarray, n: int) -> int:
    """Uniform integer in 0 .. n - 1, for 0 < n < 2^32: floor(n bits / 2^64), whose bias is below n / 2^64."""
    bits, count = bits64(rng), np.uint64(n)
    carry = ((bits & _LOW_HALF) * count) >> np.uint64(32)
    return np.int64(((bits >> np.uint64(32)) * count + carry) >> np.uint64(32))  # type: ignore[return-value]


@njit(cache=True)
def exponential(rng: np.ndarray) -> float:
    """Exponential(1), by inversion."""
    return -math.log(1.0 - uniform(rng))


_LAYERS = 256
_TAIL = 3.6541528853610088  # where the bottom layer's box ends, for 256 layers of equal area


def _layer_edges() -> np.ndarray:
    """Right edges of the layers under exp(-x^2 / 2), from the widest (that of the bottom layer, tail included) down to 0."""
    area = _TAIL * math.exp(-0.5 * _TAIL**2) + math.sqrt(math.pi / 2) * math.erfc(_TAIL / math.sqrt(2))
    edges = np.zeros(_LAYERS + 1)
    edges[0], edges[1] = area / math.exp(-0.5 * _TAIL**2), _TAIL
    for i in range(2, _LAYERS):
        edges[i] = math.sqrt(-2.0 * math.log(area / edges[i - 1] + math.exp(-0.5 * edges[i - 1] ** 2)))
    return edges


_EDGES = _layer_edges()


@njit(cache=True)
def normal(rng: np.ndarray) -> float:
    """Normal(0, 1), by the ziggurat with 256 layers."""
    while True:
        bits = bits64(rng)
        layer = np.int64(bits & np.uint64(_LAYERS - 1))
        u = (bits >> np.uint64(11)) * 2.0**-52 - 1.0
        x = u * _EDGES[layer]
        if abs(x) < _EDGES[layer + 1]:
            return x
        if layer == 0:
            return math.copysign(_beyond_tail(rng), u)
        above = math.exp(0.5 * (x**2 - _EDGES[layer + 1] ** 2))
        under = math.exp(0.5 * (x**2 - _EDGES[layer] ** 2))
        if under + uniform(rng) * (above - under) < 1.0:
            return x


@njit(cache=True)
def _beyond_tail(rng: np.ndarray) -> float:
    """A standard normal given that it is above _TAIL (Marsaglia 1964)."""
    while True:
        x, y = exponential(rng) / _TAIL, exponential(rng)
        if 2.0 * y > x**2:
            return _TAIL + x
