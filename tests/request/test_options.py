"""Groups of options: their names, their values as JSON, and back."""

from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest

from sdm.errors import RequestError
from sdm.request import (
    Area,
    BBox,
    Delivery,
    Execution,
    IndexRequest,
    ListOptions,
    MapRequest,
    ModelRef,
    Query,
    Sampling,
    Storage,
)
from sdm.request.options import Option, Options, several, whole_number

GROUPS = (Area, Delivery, Execution, ListOptions, ModelRef, Query, Sampling, Storage)


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_is_declared_with_its_help(group):
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        option = get_args(hints[field.name])[1]
        assert isinstance(option, Option)
        assert option.help.endswith((".", ")")), field.name


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_are_valid_and_come_back(group):
    options = group()
    values = options.to_dict()
    assert list(values) == [f.name for f in fields(group)]
    assert group.from_dict(values) == options
    assert group.from_dict({**values, "of another group": 1}) == options
    with pytest.raises(FrozenInstanceError):
        setattr(options, next(iter(values)), None)


def test_a_request_comes_back_from_its_values():
    request = MapRequest.of(
        species=["Ursus arctos"],
        bbox=(170, 50, -165, 62),
        month="may",
        modalities="environment,location",
        environment=Path("a.tif"),
        photo=Path("b.jpg"),
        step=2,
        model=Path("models/x"),
    )
    values = request.to_dict()
    assert values["bbox"] == [170.0, 50.0, -165.0, 62.0]
    assert (values["month"], values["modalities"]) == (5, ["location", "environment"])
    assert (values["environment"], values["photo"], values["model"]) == (["a.tif"], ["b.jpg"], "models/x")
    again = MapRequest.from_dict(values)
    assert again.to_dict() == values
    assert again.area.bbox == BBox(170, 50, -165, 62)


def test_names_of_a_request_are_those_of_its_groups_and_its_own():
    names = MapRequest.names()
    assert len(set(names)) == len(names)
    assert {"species", "bbox", "month", "model", "index"} <= set(names) and "area" not in names
    assert "index" not in IndexRequest.names() and "encoding" in IndexRequest.names()


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="'speices' is not an option; choose any of species"):
        MapRequest.of(speices="x")


def test_objects_are_named_in_a_report():
    class Opened:
        name = "mammals-trees"

    class Index:
        name = None
        url = "s3://bucket/west.zarr"

    assert ModelRef(model=Opened()).to_dict()["model"] == "mammals-trees"
    assert MapRequest(index=Index()).to_dict()["index"] == "s3://bucket/west.zarr"
    assert Area(region=object()).to_dict()["region"] == "geometry"


@pytest.mark.parametrize("value", [2.0, "2", True, None, float("nan")])
def test_what_is_not_a_whole_number(value):
    with pytest.raises(RequestError, match=r"step .* must be a whole number"):
        whole_number("step", value)


def test_bounds_of_whole_numbers_are_inside():
    whole_number("step", 1, 1, 64)
    whole_number("step", 64, 1, 64)
    for value in (0, 65):
        with pytest.raises(RequestError, match=f"step {value} is outside 1..64 pixels"):
            whole_number("step", value, 1, 64, " pixels")


def test_one_or_several():
    assert several(None) == several([]) == ()
    assert several("a b") == ("a b",) and several(Path("a")) == ("a",)
    assert several(["a", Path("b")]) == ("a", "b")


@dataclass(frozen=True, kw_only=True)
class _Limited(Options):
    count: Annotated[int | None, Option("A count.", low=1)] = None
    share: Annotated[float, Option("A share.", low=0, high=0.5)] = 0.5


@dataclass(frozen=True, kw_only=True)
class _LimitedWithOwnCheck(_Limited):
    checked: Annotated[bool, Option("Set by the check.")] = False

    def __post_init__(self) -> None:
        self._set(checked=True)


@pytest.mark.parametrize("group", [_Limited, _LimitedWithOwnCheck])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 0}, "count 0 must be at least 1."),
        ({"share": 0.6}, "share 0.6 is outside 0..0.5."),
        ({"share": float("nan")}, "share nan is outside"),
        ({"share": "much"}, "share 'much' is not a number."),
    ],
)
def test_limits_hold_in_python_too(group, values, words):
    with pytest.raises(RequestError) as found:
        group(**values)
    assert words in str(found.value)
    assert group(count=None).share == group(share=0.5).share
    assert group is _Limited or group().checked
