"""Laws of nature: networks of few numbers, which a second-order method fits in minutes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import Backbone, Features


class Form(NamedTuple):
    """What a law of nature has beside powers of the distance.

    Attributes
    ----------
    inertia : int, optional
        The scalar of a body with a power of which what moves the body is multiplied.
    screened : bool
        Whether forces fall off exponentially, too.
    """

    inertia: int | None = None
    screened: bool = False


PLAIN = Form()


class Reading(NamedTuple):
    """A law of nature, as it can be read.

    Attributes
    ----------
    powers : tuple of float
        Of the distance, that its forces are a sum of, the largest first.
    screening : float
        Rate m of a factor exp(-m r), per unit of the distance; 0 for none.
    inertia : dict of int to float
        The power of each scalar of a body that what moves it is multiplied with.
    """

    powers: tuple[float, ...]
    screening: float
    inertia: dict[int, float]


class CentralForces(NamedTuple):
    """Central forces as compiled code reads them, of states with their attributes; of heads and lengths only those that count.

    Parameters
    ----------
    strengths : numpy.ndarray, (state, body, other body, head)
        On a body by one of the others.
    there : numpy.ndarray, (state, body)
        Which bodies act on others.
    sides : numpy.ndarray, (state, space)
        Of a periodic box; zero where there is none.
    halves : numpy.ndarray, (length, head)
        Exponents of softened squared distances.
    squares : numpy.ndarray, (length,)
        What softens them.
    screening : float
    largest : float
        Bound on the length of a vector, or on its components if `axes`.
    axes : bool
    """

    strengths: np.ndarray
    there: np.ndarray
    sides: np.ndarray
    halves: np.ndarray
    squares: np.ndarray
    screening: float
    largest: float
    axes: bool


class Law(Backbone):
    """A network with a special case of few numbers, the law of nature: a sum of forces that go as powers of the distance."""

    @property
    @abstractmethod
    def linear_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters, all else fixed, in which the output is linear: where they are all that is not zero, it is their multiple."""

    @property
    @abstractmethod
    def simple_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters of the law of nature."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[nn.Parameter, ...]:
        """Logarithms of what bounds the output: nothing tells of them where the output is far from its bound."""

    @property
    @abstractmethod
    def powers(self) -> int:
        """Number of powers of the distance, of which a fit may leave some out."""

    @property
    @abstractmethod
    def kept(self) -> tuple[int, ...]:
        """The powers that are not left out."""

    @abstractmethod
    def keep(self, powers: Collection[int]) -> None:
        """Switch all other powers off, also for training."""

    @abstractmethod
    def belongs_to(self, parameter: nn.Parameter, powers: Collection[int]) -> Tensor:
        """Return which numbers of a parameter belong to some powers, or to all, and to the present form: (number,)."""

    @abstractmethod
    def sizes(self, features: Features) -> list[int]:
        """Return the scalars of bodies that may be their inertia."""

    @abstractmethod
    def starts(self, form: Form = PLAIN) -> Iterator[None]:
        """Set the law to some form and, one after the other, to all places from which a fit should start."""

    @abstractmethod
    def unsoften(self) -> bool:
        """Set the law to one that is nearly singular where two bodies meet; False, and nothing is done, if it is so already."""

    @abstractmethod
    def read(self, vector: int) -> Reading | None:
        """Return the law that an output vector follows; None where freedom was taken, so that it is no law of nature."""

    def central_forces(self, features: Features) -> CentralForces | None:
        """Return the only vector that goes out as forces between pairs, for compiled code; None where it is not such a sum."""
        return None
