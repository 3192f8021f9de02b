"""What a fusion block costs: both forms beside a chain of e3nn's tensor products, at equal diagrams, weights and results.

    python benchmarks/fusion_blocks.py --out benchmarks/results/fusion_blocks.csv

Counts the floating-point operations of matrix products forward (torch.utils.flop_counter), and the memory kept for the backward pass; the
times are of forward and backward, of processor time, taken in turns, as a ratio to the chain: the median over rounds. Float32, one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from common import write_table
from e3nn import o3
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from epns_pyro.backbones.bodies.fusion_blocks import CartesianBlock, FusionBlock, SphericalBlock
from epns_pyro.backbones.bodies.fusion_diagrams import Diagram, Legs
from epns_pyro.backbones.bodies.tensor_product import size

VECTORS = (("A", ("0e", "1o")), ("V", ("1o",)), ("N", ("1o",)))
TENSORS = (("A", ("0e", "1o", "2e")), ("V", ("1o", "2e")), ("N", ("1o",)))
ROOTS = ("0e", "1o")
BODIES, CHANNELS = 320, 16  # 64 states of 5 bodies


class Chain(nn.Module):
    """The same diagrams by e3nn: one TensorProduct per set of legs, applied to that without the last leg."""

    def __init__(self, block: FusionBlock, legs: Legs) -> None:
        super().__init__()
        self.block, self.irreps = block, dict(legs)
        self.groups: dict[tuple[str, ...], list[Diagram]] = {}
        for diagram in (d for found in block.after.values() for d in found):
            while len(diagram.legs) > 1:
                group = self.groups.setdefault(diagram.legs, [])
                if diagram not in group:
                    group.append(diagram)
                diagram = diagram.stem
        self.groups = dict(sorted(self.groups.items(), key=lambda item: len(item[0])))
        self.products = nn.ModuleDict({"".join(names): self._product(names) for names in self.groups})

    def _before(self, names: tuple[str, ...]) -> list[Diagram]:
        if len(names) > 1:
            return self.groups[names]
        return [Diagram(names, (irrep,), (irrep,)) for irrep in self.irreps[names[0]]]

    def _product(self, names: tuple[str, ...]) -> o3.TensorProduct:
        before, last = self._before(names[:-1]), self.irreps[names[-1]]
        combs = self.groups[names]
        return o3.TensorProduct(
            [(CHANNELS, d.out) for d in before],
            [(CHANNELS, irrep) for irrep in last],
            [(CHANNELS, d.out) for d in combs],
            [(before.index(d.stem), last.index(d.leaves[-1]), number, "uuu", False) for number, d in enumerate(combs)],
        )

    def forward(self, tensors: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        values = {(name,): self.flat(tensors[name], [size(i) for i in irreps]) for name, irreps in self.irreps.items()}
        made: dict[Diagram, Tensor] = {}
        for names in [*values, *self.groups]:
            if len(names) > 1:
                values[names] = self.products["".join(names)](values[names[:-1]], values[names[-1:]])
            combs = self._before(names)
            parts = values[names].split([CHANNELS * size(d.out) for d in combs], -1)
            made |= {d: part.unflatten(-1, (CHANNELS, size(d.out))) for d, part in zip(combs, parts, strict=True)}
        out = {}
        for (root, found), weight in zip(self.block.after.items(), self.block.split(weights), strict=True):
            out[root] = (weight[..., None] * torch.stack([made[d] for d in found], -2)).sum(-2) / len(found) ** 0.5
        return out

    @staticmethod
    def flat(leg: Tensor, sizes: list[int]) -> Tensor:
        """(channel, all components) to e3nn's (irrep, channel, component), flat."""
        return torch.cat([part.flatten(-2) for part in leg.split(sizes, -1)], -1)


def kept(run: Callable[[], object]) -> int:
    """Bytes of distinct tensors that a forward pass keeps."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(found.values())


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/fusion_blocks.csv"), show_default=True)
def main(rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    for lmax, legs, most in ((1, VECTORS, 2), (1, VECTORS, 3), (2, TENSORS, 2), (2, TENSORS, 3)):
        spherical = SphericalBlock(legs, most, ROOTS)
        forms: dict[str, nn.Module] = {"chain of e3nn products": Chain(spherical, legs), "spherical": spherical}
        if lmax == 1:
            forms["cartesian"] = CartesianBlock(legs, most, ROOTS)
        torch.manual_seed(0)
        tensors = {name: torch.randn(BODIES, CHANNELS, sum(map(size, irreps)), requires_grad=True) for name, irreps in legs}
        weights = torch.randn(BODIES, CHANNELS, spherical.weights, requires_grad=True)

        def step(form: nn.Module, tensors=tensors, weights=weights) -> None:
            loss = torch.stack([value.square().sum() for value in form(tensors, weights).values()]).sum()
            torch.autograd.grad(loss, [*tensors.values(), weights])

        expected = forms["chain of e3nn products"](tensors, weights)
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for number in range(rounds + 3):
            for name, form in forms.items():
                started = time.process_time()
                step(form)
                if number >= 3:  # e3nn compiles in the first calls
                    seconds[name].append(time.process_time() - started)
        for name, form in forms.items():
            found = form(tensors, weights)
            difference = max(((found[r] - expected[r]).abs().max() / expected[r].abs().max()).item() for r in ROOTS)
            if difference > 1e-4:
                raise SystemExit(f"{name}: the results differ from e3nn's by {difference:.1g}")
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                form({leg: tensor.detach() for leg, tensor in tensors.items()}, weights.detach())
            ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds["chain of e3nn products"], strict=True)]
            rows.append(
                {
                    "lmax": lmax,
                    "legs": most,
                    "diagrams": spherical.weights,
                    "form": name,
                    "time_to_chain": f"{statistics.median(ratios):.2f}",
                    "kept_mib": f"{kept(lambda form=form, t=tensors, w=weights: form(t, w)) / 2**20:.1f}",
                    "matrix_mflop": f"{counter.get_total_flops() / 1e6:.0f}",
                }
            )
            print(rows[-1], flush=True)
    write_table(rows, out)


if __name__ == "__main__":
    main()
