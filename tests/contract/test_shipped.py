"""What epns_pyro.testing ships holds for our backbones, and names what is wrong with a defective one."""

from __future__ import annotations

import pytest
import torch

from epns_pyro.backbones import BACKBONES, Backbone, Features, Signature
from epns_pyro.backbones.bodies.base import safe_norm
from epns_pyro.errors import ConfigError
from epns_pyro.testing import ContractError, check_backbone


def small(name: str):
    return BACKBONES[name].parse({key: value for key, value in {"width": 8, "layers": 2}.items() if key in BACKBONES[name].model_fields})


def works_in(name: str, space: int) -> bool:
    try:
        small(name).build(Signature(1, 1, 1, 1, space=space))
    except ConfigError:
        return False
    return True


SPACES = [(name, space) for name in BACKBONES.names for space in (1, 2, 3) if works_in(name, space)]


@pytest.mark.parametrize(("name", "space"), SPACES)
def test_our_backbones_keep_the_contract(name, space):
    check_backbone(small(name), space=space)


class Defective(Backbone):
    """A sound network with one defect."""

    equivariant = True

    def __init__(self, network: Backbone, defect: str) -> None:
        super().__init__(network.signature)
        self.network, self.defect, self.idle = network, defect, torch.nn.Linear(1, 1) if defect == "idle" else None

    def evaluate(self, positions, features):
        out = self.network(positions, features)
        scalars, vectors = out.scalars, out.vectors
        if self.defect == "slice":  # EPNS.md, section 5: two of three components
            scalars = scalars + 1e-3 * safe_norm(features.vectors[..., 0, :2])[..., None]
        if self.defect == "parity":
            vectors = vectors + 1e-3 * torch.linalg.cross(features.vectors[..., :1, :], features.vectors[..., 1:, :])
        if self.defect == "place":
            scalars = scalars + 1e-6 * safe_norm(positions)[..., None]
        if self.defect == "order":
            scalars = scalars + 1e-3 * features.scalars[..., :1, :1]
        if self.defect == "batch":
            scalars = scalars + scalars.mean()
        if self.defect == "steep":
            scalars = scalars + (positions[..., :1, :] - positions[..., 1:2, :]).norm(dim=-1)[..., None] / positions[..., :1, :1].sub(
                positions[..., 1:2, :1]
            )
        if self.defect == "shape":
            scalars = scalars[..., :-1]
        return Features(scalars, vectors)


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("slice", "scalars are equivariant to"),
        ("parity", "vectors are equivariant to"),
        ("place", "scalars are equivariant to"),
        ("order", "scalars are equivariant to"),
        ("batch", "scalars do not depend on the batch"),
        ("steep", "has a finite gradient for two bodies in one place"),
        ("idle", "parameter idle.weight has a finite gradient"),
        ("shape", "scalars have the shape"),
    ],
)
def test_a_planted_defect_is_named(monkeypatch: pytest.MonkeyPatch, defect, said):
    config = small("vector")
    build = type(config).build
    monkeypatch.setattr(type(config), "build", lambda self, at: Defective(build(self, at), defect))
    with pytest.raises(ContractError, match=said):
        check_backbone(config)
