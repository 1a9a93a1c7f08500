"""What lives at a place or in a region, against the maps of the same species."""

import csv
import json

import numpy as np
import pytest
from pyproj import Transformer

import sdm
from sdm import cli
from sdm.analysis.living import living_at, living_in
from sdm.errors import BoxError, RequestError
from sdm.request import Area

PLACE = (-110.4, 44.6)  # Yellowstone


@pytest.fixture(scope="module")
def here():
    return living_at(*PLACE, 0.0, models=["mammals-trees"])


def test_a_place_has_the_values_of_maps(here):
    found = {one.taxon.name: one.probability for one in here.species}
    names = ["Ursus arctos", "Puma concolor", "Canis lupus", "Panthera leo"]
    box = (PLACE[0] - 1e-3, PLACE[1] - 1e-3, PLACE[0] + 1e-3, PLACE[1] + 1e-3)
    maps = sdm.map_species(names, box, resolution=2e-3, step=1, model="mammals-trees").compute()
    for name in names:
        assert found[name] == pytest.approx(float(maps.sel(species=name).mean()), abs=0.02), name
    values = [one.probability for one in here.species]
    assert values == sorted(values, reverse=True) and found["Puma concolor"] > 0.9 > 0.1 > found["Panthera leo"]


def test_habitats_are_respected():
    at_sea = {one.taxon.name for one in living_at(-150.0, 40.0, 0.2, models=["mammals-trees"]).species}
    assert "Physeter catodon" in at_sea or "Physeter macrocephalus" in at_sea or "Balaenoptera physalus" in at_sea
    assert not at_sea & {"Ursus arctos", "Puma concolor", "Canis lupus"}


def test_a_region_has_the_highest_the_mean_and_the_area(here):
    area = Area(bbox=(-111, 44, -109, 45.5), resolution=0.25)
    found = {one.taxon.name: one for one in living_in(area, 0.3, models=["mammals-trees"]).species}
    one = found["Ursus arctos"]
    values = sdm.map_species("Ursus arctos", (-111, 44, -109, 45.5), resolution=0.25, model="mammals-trees").compute()
    assert one.probability == pytest.approx(float(values.max()), abs=0.02)
    assert one.mean == pytest.approx(float(values.mean()), abs=0.02)
    lat = np.radians(44.75)
    assert one.expected_km2 == pytest.approx(one.mean * 2 * 1.5 * 111.19**2 * np.cos(lat), rel=0.05)
    assert min(o.probability for o in found.values()) >= 0.3


def test_months_and_models():
    january, june = (
        {one.taxon.name for one in living_at(13.4, 52.5, 0.5, models=["birds"], month=month).species}
        for month in (1, 6)
    )
    assert "Apus apus" in june - january
    both = living_at(13.4, 52.5, 0.5, month=6)
    assert {one.model for one in both.species} == {"birds", "mammals-trees", "life"}
    assert len(both.notes) == 1 and "whole year" in both.notes[0]
    with pytest.raises(RequestError, match="omit the month June"):
        living_at(13.4, 52.5, models=["mammals-trees"], month=6)
    with pytest.raises(BoxError, match="longitude first"):
        living_at(46.9, 107.0)


def test_the_command(run, tmp_path):
    line = ("list", "--at", "-110.4,44.6", "--model", "mammals-trees", "--top", "5")
    code, table, err = run(*line, entry=cli.main_sdm)
    assert code == 0 and len(table.splitlines()) == 5, err
    rows = json.loads(run(*line, "--format", "json", entry=cli.main_sdm)[1])
    assert len(rows) == 5 and set(rows[0]) == {"species", "common_name", "group", "model", "probability"}
    assert run(*line, "--format", "csv", "--out", "o.csv", entry=cli.main_sdm)[0] == 0
    assert [row["species"] for row in csv.DictReader((tmp_path / "o.csv").open())] == [row["species"] for row in rows]
    for options, code, words in (
        ((), 2, "one of --at LON LAT, --bbox and --region"),
        (("--at", "1,2", "--bbox", "1,2,3,4"), 2, "one of --at"),
        (("--at", "1,2", "--min", "3"), 2, "not a probability"),
        (("--at", "1", "120"), 2, "did you mean --at 120 1?"),
        (("--at", "170", "120"), 2, "longitude first"),
    ):
        got, _, err = run("list", *options, entry=cli.main_sdm)
        assert got == code and words in err, err


def test_limits_of_maps_hold():
    """Where a map lowers probabilities, because the species is known not to live there, so does the list."""
    place = (-7.5, 53.0)  # inland Ireland: far from the sea for seals, and an island without weasels
    box = (place[0] - 1e-3, place[1] - 1e-3, place[0] + 1e-3, place[1] + 1e-3)
    found = {one.taxon.name: one.probability for one in living_at(*place, 0.0, models=["mammals-trees"]).species}
    for name in ("Phoca vitulina", "Mustela nivalis"):
        asked = {"resolution": 2e-3, "step": 1, "model": "mammals-trees", "mask": "none"}
        value, free = (float(sdm.map_species(name, box, limits=k, **asked).mean()) for k in ("auto", "none"))
        assert free > 0.3 > 0.1 > value
        assert found.get(name, 0.0) == pytest.approx(value, abs=0.01), name


@pytest.mark.parametrize(("crs", "resolution"), [("EPSG:4326", 0.25), ("EPSG:3857", 30_000)])
def test_a_place_in_an_index_is_the_pixel_it_lies_in(run, tmp_path, crs, resolution):
    box = ("--bbox", "-112,43,-109,46", "--crs", crs, "--resolution", resolution, "--model", "mammals-trees")
    assert run("index", "build", *box, "--out", "west.zarr", entry=cli.main_sdm)[0] == 0
    index = sdm.Index.open(tmp_path / "west.zarr")
    for place in (PLACE, (-111.99, 43.01), (-109.01, 45.99)):
        found = {one.taxon.name: one.probability for one in living_at(*place, 0.1, index=index).species}
        x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*place)
        for name in ("Ursus arctos", "Puma concolor"):
            value = float(index.query(name).sel(x=x, y=y, method="nearest"))
            assert found.get(name, 0.0) == pytest.approx(value if value >= 0.1 else 0.0, abs=1e-4)
    code, _, err = run("list", "--at", "7,46", "--index", "west.zarr", entry=cli.main_sdm)
    assert code == 2 and "lies outside the region index" in err
