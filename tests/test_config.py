"""Settings: what is wrong is said in one line that names the key, what was expected, what was found, and the way out."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import pytest

import epns_pyro.errors as errors
from epns_pyro.backbones import BACKBONES
from epns_pyro.config import Config, Registry, list_settings, one_of, parse_value
from epns_pyro.errors import ConfigError, EpnsError, nearest
from epns_pyro.models import TRANSITIONS
from epns_pyro.systems import SYSTEMS
from epns_pyro.training.presets import FAMILIES, preset

SHAPES = Registry("shape")


@SHAPES.register("disc")
class DiscConfig(Config):
    name: Literal["disc"] = "disc"
    radius: float = pydantic.Field(default=1.0, gt=0)


@SHAPES.register("rectangle")
class RectangleConfig(Config):
    name: Literal["rectangle"] = "rectangle"
    width: float = 1.0
    height: float = 2.0

    @pydantic.model_validator(mode="after")
    def _upright(self) -> RectangleConfig:
        if self.width > self.height:
            raise ValueError(f"a rectangle stands upright, found width {self.width} > height {self.height}")
        return self


class PenConfig(Config):
    colour: Literal["red", "blue"] = "red"
    width: int = pydantic.Field(default=1, ge=1)


class DrawingConfig(Config):
    shape: Annotated[Config, one_of(SHAPES)] = pydantic.Field(default="disc", validate_default=True)
    pen: PenConfig = PenConfig()
    copies: int = 1
    title: str = ""
    frame: PenConfig | None = None
    margin: float | None = None


DRAWINGS = Registry("drawing")


@DRAWINGS.register("sketch")
class SketchConfig(Config):
    name: Literal["sketch"] = "sketch"


@DRAWINGS.register("print")
class PrintConfig(Config):
    name: Literal["print"] = "print"
    shape: Annotated[Config, one_of(SHAPES)] = pydantic.Field(default="disc", validate_default=True)


# -- reading ---------------------------------------------------------------------------------------------------------------


def test_defaults_are_complete():
    drawing = DrawingConfig.parse({})
    assert drawing == DrawingConfig(shape=DiscConfig(), pen=PenConfig(colour="red", width=1), copies=1)


@pytest.mark.parametrize("raw", ["rectangle", {"name": "rectangle"}, RectangleConfig()])
def test_a_choice_is_a_name_a_mapping_or_a_config(raw):
    assert DrawingConfig.parse({"shape": raw}).shape == RectangleConfig()


def test_what_is_written_is_read_back():
    drawing = DrawingConfig.parse({"shape": {"name": "rectangle", "width": 0.5}, "pen": {"colour": "blue"}, "title": "a"})
    plain = drawing.model_dump(mode="json")
    assert plain["shape"] == {"name": "rectangle", "width": 0.5, "height": 2.0}
    assert DrawingConfig.parse(plain) == drawing


def test_configs_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        DrawingConfig().copies = 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"copis": 2}, "config: unknown key 'copis': did you mean 'copies'? (known: copies, frame, margin, pen, shape, title)"),
        ({"pen": {"color": "red"}}, "config: unknown key 'pen.color': did you mean 'colour'? (known: colour, width)"),
        ({"pen": {"colour": "green"}}, "config: pen.colour: input should be 'red' or 'blue', found 'green'"),
        ({"pen": {"width": 0}}, "config: pen.width: input should be greater than or equal to 1, found 0"),
        ({"pen": "thin"}, "config: pen: input should be a valid dictionary or instance of PenConfig, found 'thin'"),
        ({"copies": "many"}, "config: copies: input should be a valid integer, unable to parse string as an integer, found 'many'"),
        ({"shape": "disk"}, "config: shape: unknown shape 'disk': did you mean 'disc'? (known: disc, rectangle)"),
        (
            {"shape": {"radius": 2.0}},
            "expected a shape: a name or a mapping with the key 'name' (known: disc, rectangle), found {'radius': 2.0}",
        ),
        ({"shape": 3}, "expected a shape: a name or a mapping with the key 'name' (known: disc, rectangle), found 3"),
        ({"shape": {"name": "disc", "radios": 2}}, "shape disc: unknown key 'radios': did you mean 'radius'? (known: name, radius)"),
        ({"shape": {"name": "disc", "radius": -1}}, "shape disc: radius: input should be greater than 0, found -1"),
        ({"shape": {"name": "disc", "radius": float("nan")}}, "shape disc: radius: input should be a finite number, found nan"),
        ({"shape": {"name": "rectangle", "width": 3}}, "shape rectangle: a rectangle stands upright, found width 3.0 > height 2.0"),
    ],
)
def test_a_wrong_setting_is_one_line(raw, message):
    with pytest.raises(ConfigError) as error:
        DrawingConfig.parse(raw)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_problem_is_named():
    with pytest.raises(ConfigError, match=r"pen\.width.*; .*unknown key 'copis'"):
        DrawingConfig.parse({"copis": 2, "pen": {"width": 0}})


def test_the_place_of_a_config_is_named():
    with pytest.raises(ConfigError, match=r"^run\.yaml: unknown key 'copis'"):
        DrawingConfig.parse({"copis": 2}, where="run.yaml")
    with pytest.raises(ConfigError, match=r"^run\.yaml: expected a mapping, found list"):
        DrawingConfig.parse(["copies"], where="run.yaml")


# -- changing --------------------------------------------------------------------------------------------------------------


def test_dotted_keys_change_a_copy():
    drawing = DrawingConfig()
    changed = drawing.override({"pen.width": 3, "copies": 2, "shape.radius": 0.5})
    assert (changed.pen.width, changed.copies, changed.shape.radius) == (3, 2, 0.5)
    assert drawing == DrawingConfig()


def test_a_section_that_is_off_starts_from_its_defaults():
    assert DrawingConfig().override({"frame.width": 3}).frame == PenConfig(width=3)
    assert DrawingConfig(frame=PenConfig(colour="blue")).override({"frame.width": 3}).frame == PenConfig(colour="blue", width=3)
    assert DrawingConfig(frame=PenConfig()).override({"frame": None}).frame is None
    assert DrawingConfig().frame is None


def test_another_choice_starts_from_its_own_defaults():
    drawing = DrawingConfig().override({"shape.radius": 0.5})
    assert drawing.override({"shape.name": "rectangle"}).shape == RectangleConfig()
    assert drawing.override({"shape.name": "rectangle", "shape.width": 0.5}).shape == RectangleConfig(width=0.5)
    assert drawing.override({"shape": "rectangle"}).shape == RectangleConfig()
    assert drawing.override({"shape.name": "disc"}).shape == DiscConfig(radius=0.5)


@pytest.mark.parametrize("key", ["shape.name", "shape"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_choice_and_its_settings_may_come_in_any_order(key, order):
    changes = dict([(key, "rectangle"), ("shape.width", 0.5)][::order])
    assert DrawingConfig().override(changes).shape == RectangleConfig(width=0.5)


def test_settings_that_only_fit_together_are_changed_together():
    drawing = DrawingConfig(shape="rectangle").override({"shape.width": 5.0, "shape.height": 6.0})
    assert drawing.shape == RectangleConfig(width=5.0, height=6.0)


def test_choices_inside_choices_are_changed_from_the_outside_in():
    class PageConfig(Config):
        drawing: Annotated[Config, one_of(DRAWINGS)] = pydantic.Field(default="sketch", validate_default=True)

    changes = {"drawing.shape.width": 0.5, "drawing.shape.name": "rectangle", "drawing.name": "print"}
    assert PageConfig().override(changes).drawing == PrintConfig(shape=RectangleConfig(width=0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copis": 2}, "--set copis: unknown key 'copis': did you mean 'copies'?"),
        ({"pen.widht": 2}, "--set pen.widht: unknown key 'widht': did you mean 'width'? (known: colour, width)"),
        ({"pin.width": 2}, "--set pin.width: there is no section 'pin': did you mean 'pen'?"),
        ({"margin.width": 2}, "--set margin.width: 'margin' is a value, not a section"),
        ({"frame.widht": 2}, "--set frame.widht: unknown key 'widht': did you mean 'width'?"),
        ({"copies.width": 2}, "--set copies.width: 'copies' is a value, not a section"),
        ({"copies.name": "two"}, "--set copies.name: 'copies' is a value, not a section"),
        ({"copies": True}, "copies: expected a number, found True"),
        ({"pen.width": False}, "width: expected a number, found False"),
        ({"pen.name": "two"}, "--set pen.name: unknown key 'name': "),
        ({"pen": "thin"}, "pen: input should be a valid dictionary or instance of PenConfig, found 'thin'"),
        ({"pen.width": 0}, "pen.width: input should be greater than or equal to 1, found 0"),
        ({"shape.name": "disk"}, "unknown shape 'disk': did you mean 'disc'?"),
        ({"shape.width": 2}, "unknown key 'width'"),
        ({"shape.name": "rectangle", "shape.radius": 2}, "unknown key 'radius'"),
    ],
)
def test_a_wrong_change_is_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        DrawingConfig().override(changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e2", -250.0),
        ("010", 10),
        ("1:30", "1:30"),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{name: disc, radius: 2}", {"name": "disc", "radius": 2}),
        ("tensor-product", "tensor-product"),
        ("32x0e + 16x1o", "32x0e + 16x1o"),
        ("e", "e"),
        ("runs/one", "runs/one"),
        ("a: b: c", "a: b: c"),  # not YAML: taken as it stands
    ],
)
def test_values_mean_what_they_look_like(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


# -- registries and errors -------------------------------------------------------------------------------------------------


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="shape 'disc' is registered twice"):
        SHAPES.register("disc")(DiscConfig)


@pytest.mark.parametrize("registry", [BACKBONES, TRANSITIONS, SYSTEMS], ids=lambda r: r.kind)
def test_registered_configs_carry_their_name(registry):
    for name in registry.names:
        assert registry[name].model_fields["name"].default == name
        assert callable(registry[name].build)


@pytest.mark.parametrize("family", FAMILIES.names)
def test_every_setting_says_what_it_means(family):
    for setting in list_settings(preset(family)):
        assert setting.description or setting.choices, setting.key


def test_the_nearest_name_is_offered():
    assert nearest("widht", ["width", "layers"]) == "did you mean 'width'? (known: layers, width)"
    assert nearest("colour", ["width", "layers"]) == "known: layers, width"


def test_every_error_of_a_user_is_a_value_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 6
    assert all(issubclass(kind, EpnsError) and issubclass(kind, ValueError) and kind.__doc__ for kind in kinds)
