"""Equivariant message passing with spherical tensors, after NequIP (Batzner et al., Nature Communications 2022), on e3nn.

Every body has tensor features of O(3) of any degree and parity. A message is the tensor product of the sender's tensors with the spherical
harmonics of the direction to it; a function of invariants weights every channel of every path (NequIP's "uvu" product: a linear
map after it makes it as general as a fully connected one, at a fraction of the weights per edge).

Irreps are named as in e3nn: "1o" is a vector, its components in the order x, y, z.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron
from epns_pyro.backbones.bodies.edges import DISTANCE_CHANNELS, Edges, bounded, gram
from epns_pyro.backbones.bodies.graphs import Graph, GraphConfig
from epns_pyro.errors import ConfigError

Irreps = dict[str, int]  # number of channels by irrep, e.g. {"0e": 64, "1o": 16}
Tensors = dict[str, Tensor]  # (..., channel, component) by irrep


# -- irreps ----------------------------------------------------------------------------------------------------------------


def parse_irreps(text: str) -> Irreps:
    """Read "64x0e + 16x1o"; repeated irreps add up.

    Raises
    ------
    ValueError
        If a term is not a number of channels times an irrep.
    """
    irreps: Irreps = {}
    for term in text.split("+"):
        match = re.fullmatch(r"\s*([1-9]\d*)\s*x\s*(\d+[eo])\s*", term)
        if not match:
            raise ValueError(f"expected irreps such as '64x0e + 16x1o', found the term {term.strip()!r}")
        count, irrep = match.groups()
        irreps[irrep] = irreps.get(irrep, 0) + int(count)
    return irreps


def size(irrep: str) -> int:
    """Number of components, 2 l + 1."""
    return 2 * degree(irrep) + 1


def degree(irrep: str) -> int:
    return int(irrep[:-1])


def products(irrep: str, harmonic: int) -> list[str]:
    """Irreps in the product of `irrep` with the spherical harmonic of degree `harmonic`, whose parity is (-1)^harmonic."""
    odd = (irrep[-1] == "o") ^ (harmonic % 2 == 1)
    return [f"{l}{'o' if odd else 'e'}" for l in range(abs(degree(irrep) - harmonic), degree(irrep) + harmonic + 1)]  # noqa: E741


def reached(before: Iterable[str], lmax: int) -> set[str]:
    """Irreps that one layer can produce from those `before`; its residual connection keeps those."""
    return {out for irrep in before for l in range(lmax + 1) for out in products(irrep, l)}  # noqa: E741


def plan(hidden: Irreps, last: Irreps, lmax: int, layers: int) -> list[Irreps]:
    """Irreps before, between and after `layers` layers: those of `hidden` that the input can reach and that can reach `last`."""
    reachable = [{"0e", "1o"}]
    for _ in range(layers - 1):
        reachable.append(reached(reachable[-1], lmax) & hidden.keys())
    levels, useful = [last], set(last)
    for level in reversed(reachable):
        useful = {irrep for irrep in level if reached([irrep], lmax) & useful}
        levels.insert(0, {irrep: count for irrep, count in hidden.items() if irrep in useful})
    return levels


# -- layers ----------------------------------------------------------------------------------------------------------------


class Mix(nn.Module):
    """Linear maps between channels of the same irrep; an irrep that `before` lacks contributes zero."""

    def __init__(self, before: Irreps, after: Irreps) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({ir: nn.Linear(before[ir], count, bias=False) for ir, count in after.items() if ir in before})

    def forward(self, tensors: Tensors) -> Tensors:
        return {irrep: linear.get_parameter("weight") @ tensors[irrep] for irrep, linear in self.maps.items()}


class TensorProduct(nn.Module):
    """x ⊗ Y for all paths (irrep of x) ⊗ l -> (irrep of the result), one weight per path and channel of x.

    The products with Y of all paths from one irrep are columns of one matrix, so that they cost one batched matrix product.
    Components are normalised: for Normal x, uniform directions and unit weights every component of a result has variance one.
    """

    _table: Tensor

    def __init__(self, before: Irreps, after: Iterable[str], lmax: int) -> None:
        super().__init__()
        from e3nn.o3 import wigner_3j  # imported here: it takes a second, and most runs do not need it

        wanted = set(after)
        self.before = before
        self.paths = {ir: [(l, out) for l in range(lmax + 1) for out in products(ir, l) if out in wanted] for ir in before}  # noqa: E741
        self.after: Irreps = {}
        for irrep, paths in self.paths.items():
            for _, out in paths:
                self.after[out] = self.after.get(out, 0) + before[irrep]
        self.weights = {irrep: before[irrep] * len(paths) for irrep, paths in self.paths.items()}  # per edge

        columns = []
        for irrep, paths in self.paths.items():
            table = torch.zeros((lmax + 1) ** 2, size(irrep), sum(size(out) for _, out in paths), dtype=torch.float64)
            start = 0
            for l, out in paths:  # noqa: E741
                symbol = wigner_3j(degree(irrep), l, degree(out), dtype=torch.float64).transpose(0, 1)
                table[l**2 : (l + 1) ** 2, :, start : start + size(out)] = size(out) ** 0.5 * symbol
                start += size(out)
            columns.append(table.flatten(1))
            spread = torch.repeat_interleave(torch.eye(len(paths)), torch.tensor([size(out) for _, out in paths], dtype=torch.long), 1)
            self.register_buffer(f"_spread_{irrep}", spread, persistent=False)  # (path, component)
        self._exact = torch.cat(columns, -1)  # not a buffer: stays in double precision when the module is cast
        self.register_buffer("_table", self._exact.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TensorProduct:
        super()._apply(fn, recurse)
        self._table = self._exact.to(self._table)
        return self

    def forward(self, tensors: Tensors, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensors:
        """Sum w (x ⊗ Y) over the edges at every receiver.

        Parameters
        ----------
        tensors : dict of Tensor, (*batch, body, channel, component)
            Of the senders.
        harmonics : Tensor, (*edge, (lmax + 1)^2)
        weights : Tensor, (*edge, sum of `self.weights`)
        """
        matrices = (harmonics @ self._table).split([size(ir) * self._components(ir) for ir in self.before], -1)
        parts: dict[str, list[Tensor]] = {irrep: [] for irrep in self.after}
        for irrep, matrix, weight in zip(self.before, matrices, weights.split(list(self.weights.values()), -1), strict=True):
            product = graph.senders(tensors[irrep]) @ matrix.unflatten(-1, (size(irrep), -1))
            spread = weight.unflatten(-1, (self.before[irrep], -1)) @ self.get_buffer(f"_spread_{irrep}")
            summed = graph.collect(product * spread).split([size(out) for _, out in self.paths[irrep]], -1)
            for (_, out), part in zip(self.paths[irrep], summed, strict=True):
                parts[out].append(part)
        return {out: torch.cat(found, -2) for out, found in parts.items()}

    @property
    def largest(self) -> int:
        """Numbers per edge in the largest tensor."""
        return self._table.shape[-1]

    def _components(self, irrep: str) -> int:
        return sum(size(out) for _, out in self.paths[irrep])


class Interaction(nn.Module):
    """x_i <- W x_i + gate(W' sum_j w(s_i, s_j, |r_ij|) (W'' x_j) ⊗ Y(r_ij / |r_ij|)), s the scalars of x."""

    def __init__(self, before: Irreps, after: Irreps, lmax: int, width: int, pairs: int = 0) -> None:
        super().__init__()
        self.after = after
        self.gated = {irrep: count for irrep, count in after.items() if degree(irrep)}
        self.product = TensorProduct(before, after, lmax)
        self.norm = nn.LayerNorm(before["0e"])
        self.receiver = nn.Linear(before["0e"], width)
        self.sender = nn.Linear(before["0e"], width, bias=False)
        self.edge = nn.Linear(DISTANCE_CHANNELS + pairs, width, bias=False)
        self.weigh = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.weights = nn.Linear(width, sum(self.product.weights.values()), bias=False)
        self.send = Mix(before, before)
        self.skip = Mix(before, after)
        self.receive = Mix(self.product.after, after | {"0e": after["0e"] + sum(self.gated.values())})

    def forward(self, tensors: Tensors, harmonics: Tensor, edges: Edges, graph: Graph) -> Tensors:
        seen = self.norm(tensors["0e"][..., 0])
        joint = graph.receivers(self.receiver(seen)) + graph.senders(self.sender(seen)) + self.edge(edges.distance)
        weights = self.weights(self.weigh(joint) * edges.envelope)
        change = self._gate(self.receive(self.product(self.send(tensors), harmonics, weights, graph)))
        kept = self.skip(tensors)
        return {irrep: change[irrep] + kept[irrep] if irrep in kept else change[irrep] for irrep in self.after}

    def _gate(self, tensors: Tensors) -> Tensors:
        """Apply SiLU to scalars and tanh (an odd function) to pseudoscalars; multiply all others by the sigmoid of a scalar."""
        scalars, *gates = tensors["0e"].split([self.after["0e"], *self.gated.values()], -2)
        bent = {"0e": nn.functional.silu(scalars)}
        if "0o" in self.after:
            bent["0o"] = torch.tanh(tensors["0o"])
        return bent | {irrep: gate.sigmoid() * tensors[irrep] for irrep, gate in zip(self.gated, gates, strict=True)}


# -- the network -----------------------------------------------------------------------------------------------------------


class TensorProductNetwork(Backbone):
    """Pass messages between spherical tensors for `layers` rounds, from scalars and vectors to scalars and vectors."""

    equivariant: ClassVar[bool] = True
    periodic: ClassVar[bool] = True

    def __init__(self, signature: Signature, config: TensorProductConfig) -> None:
        super().__init__(signature)
        from e3nn.o3 import spherical_harmonics

        self._harmonics = spherical_harmonics
        self.graph, self.degrees = config.graph, list(range(config.lmax + 1))
        s, seen = signature, signature.in_vectors
        hidden = parse_irreps(config.hidden)
        last = {irrep: hidden[irrep] for irrep in ("0e", "1o")[: 1 + bool(s.out_vectors)]}
        levels = plan(hidden, last, config.lmax, config.layers)
        self.embed_scalars = perceptron(s.in_scalars + seen * (seen + 1) // 2, config.width, hidden["0e"])
        self.vectors = hidden["1o"]
        if seen:
            self.embed_vectors = nn.Linear(seen, hidden["1o"], bias=False)
        self.layers = nn.ModuleList(
            Interaction(before, after, config.lmax, config.width, s.pairs) for before, after in itertools.pairwise(levels)
        )
        self.norm = nn.LayerNorm(hidden["0e"])
        self.out_scalars = perceptron(hidden["0e"], config.width, s.out_scalars)
        if s.out_vectors:
            self.out_vectors = nn.Linear(hidden["1o"], s.out_vectors, bias=False)

    def largest(self, bodies: int) -> int:
        return self.graph.edges(bodies, self.signature.space) * max(
            product.largest for product in self.modules() if isinstance(product, TensorProduct)
        )

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (self.out_scalars[-1], *((self.out_vectors,) if self.signature.out_vectors else ()))

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        space = self.signature.space_of(features)
        graph = self.graph.connect(positions, features.mask, space)
        edges = Edges.between(positions, graph, space, features.pairs)
        harmonics = self._harmonics(self.degrees, edges.direction, normalize=False, normalization="component")
        seen = bounded(features.vectors)
        tensors = {
            "0e": self.embed_scalars(torch.cat([features.scalars, gram(seen)], -1))[..., None],
            "1o": self.embed_vectors.weight @ seen if self.signature.in_vectors else seen.new_zeros(*seen.shape[:-2], self.vectors, 3),
        }
        for layer in self.layers:
            tensors = layer(tensors, harmonics, edges, graph)
        scalars = self.out_scalars(self.norm(tensors["0e"][..., 0]))
        if not self.signature.out_vectors:
            return Features(scalars, seen[..., :0, :])
        return Features(scalars, self.out_vectors.weight @ tensors["1o"])


@BACKBONES.register("tensor-product")
class TensorProductConfig(BackboneConfig):
    """Equivariant message passing with spherical tensors, in 3 dimensions."""

    name: Literal["tensor-product"] = "tensor-product"
    hidden: str = pydantic.Field(
        default="32x0e + 16x1o + 8x1e + 8x2e", validate_default=True, description="channels per body, in e3nn's notation"
    )
    lmax: int = pydantic.Field(default=2, ge=1, le=6, description="highest degree of the spherical harmonics")
    layers: int = pydantic.Field(default=3, gt=0, description="rounds of messages")
    width: int = pydantic.Field(default=64, gt=0, description="width of the perceptrons that weight the messages")
    graph: GraphConfig = GraphConfig()

    @pydantic.field_validator("hidden")
    @classmethod
    def _has_scalars_and_vectors(cls, value: str) -> str:
        if missing := sorted({"0e", "1o"} - parse_irreps(value).keys()):
            raise ValueError(f"expected scalars (0e) and vectors (1o) among the irreps, found no {' and no '.join(missing)} in {value!r}")
        return value

    @pydantic.model_validator(mode="after")
    def _all_used(self) -> TensorProductConfig:
        hidden = parse_irreps(self.hidden)
        levels = plan(hidden, {irrep: hidden[irrep] for irrep in ("0e", "1o")}, self.lmax, self.layers)
        if idle := sorted(hidden.keys() - {irrep for level in levels for irrep in level}):
            raise ValueError(
                f"hidden: no layer can produce or use {', '.join(idle)} with layers = {self.layers} and lmax = {self.lmax}: leave it out"
            )
        return self

    def build(self, signature: Signature) -> TensorProductNetwork:
        if signature.space != 3:
            raise ConfigError(f"backbone 'tensor-product' works in 3 dimensions, found {signature.space}: use 'vector' or 'frames'")
        return TensorProductNetwork(signature, self)
