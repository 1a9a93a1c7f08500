"""Limits that a model does not know: near water, on islands, in winter quarters."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import sdm
from sdm.engine.limits import ABSENT, AwayToBreed, NearWater, NotOnIslands, Pixels, ScarceInMonth, limits_of
from sdm.engine.tile import score_tile
from sdm.errors import ModelError
from sdm.maps.batch.plan import plan_batch
from sdm.maps.batch.run import write_batch
from sdm.maps.plan import plan
from sdm.models import limits as tables
from sdm.models.registry import open_model

PIXEL = np.asarray(0.05)


def factor(model, name, *places, month=0, pixel=PIXEL):
    """The product of all limits of a name at places (lon, lat)."""
    opened = open_model(model)
    lon, lat = np.array(places, dtype=float).T
    values = np.ones(lon.size, dtype=np.float32)
    Pixels(lon, lat, pixel).apply(limits_of(opened, opened.resolve(name), month), values)
    return values.round(2).tolist()


def test_animals_of_the_shore_end_inland():
    birmingham, skegness, north_sea, desert = (-1.9, 52.48), (0.3, 53.15), (2.0, 54.0), (14.93, -22.9)
    assert factor("mammals-trees", "Phoca vitulina", birmingham, skegness, north_sea) == [0.0, 1.0, 1.0]
    assert factor("mammals-trees", "Arctocephalus pusillus", (14.5, -22.9), desert) == [
        1.0,
        pytest.approx(0.25, abs=0.25),
    ]
    assert factor("birds", "Spheniscus demersus", (26.2, -29.1), (18.45, -34.2)) == [0.0, 1.0]  # Bloemfontein
    assert factor("mammals-trees", "Ursus maritimus", (-151.5, 68.1), (-156.8, 71.2)) == [0.0, 1.0]  # Brooks Range
    assert factor("mammals-trees", "Vulpes lagopus", (-151.5, 68.1)) == [1.0]
    # A pixel of two degrees reaches the shore from as far as its half.
    assert factor("mammals-trees", "Phoca vitulina", birmingham, pixel=np.asarray(2.0)) == [1.0]


def test_birds_that_leave_are_lowered_by_month():
    sydney, johannesburg, berlin = (151.2, -33.8), (28.0, -26.2), (13.4, 52.5)
    assert (
        factor("birds", "Eudynamys orientalis", sydney, month=12)[0]
        > 0.9
        > 0.3
        > factor("birds", "Eudynamys orientalis", sydney, month=7)[0]
    )
    assert factor("birds", "Parus major", berlin, month=1) == factor("birds", "Parus major", berlin, month=7) == [1.0]
    assert factor("birds", "Merops apiaster", johannesburg, month=0) == [1.0]
    cells = np.ones((36, 36), np.float32)
    cells[8, 19] = 0.0  # around (15 E, 47.5 N)
    limit = ScarceInMonth(cells)
    lon, lat = np.array([15.0, 20.0, 15.0, 25.0, -179.9, np.nan]), np.array([47.5, 47.5, 45.0, 47.5, 89.9, np.nan])
    assert limit.factor(Pixels(lon, lat, PIXEL))[:5] == pytest.approx([0.0, 0.5, 0.5, 1.0, 1.0], abs=1e-6)
    assert limit.factor(Pixels(lon[3:5], lat[3:5], PIXEL)) is None


def test_seals_of_lakes_and_dolphins_of_rivers_stay():
    lakes = [(28.3, 61.9), (31.5, 60.9), (107.7, 53.4), (50.8, 41.7)]  # Saimaa, Ladoga, Baikal, Caspian
    assert factor("mammals-trees", "Pusa hispida", *lakes[:2]) == [1.0, 1.0]
    assert (
        factor("mammals-trees", "Pusa sibirica", lakes[2]) == factor("mammals-trees", "Pusa caspica", lakes[3]) == [1.0]
    )
    assert factor("mammals-trees", "Inia geoffrensis", (-60.0, -3.15), (-67.25, -4.42)) == [1.0, 0.0]
    assert factor("mammals-trees", "Trichechus manatus", (-82.6, 28.89)) == [1.0]


def test_species_do_not_cross_straits():
    aomori, hokkaido, alps = (140.7, 40.7), (143.0, 43.3), (137.6, 36.3)
    assert factor("mammals-trees", "Ursus arctos", aomori, hokkaido) == [pytest.approx(ABSENT), 1.0]
    assert factor("mammals-trees", "Capricornis crispus", aomori, alps, hokkaido) == [1.0, 1.0, pytest.approx(ABSENT)]
    assert factor("mammals-trees", "Phoca vitulina", hokkaido) == [0.0]
    assert factor("mammals-trees", "Lepus timidus", (-4.0, 57.2), (-8.0, 53.3)) == [1.0, 1.0]


def test_migrants_leave_for_the_summer():
    africa, europe = (28.0, -26.0), (10.0, 48.0)
    for name in ("Hirundo rustica", "Ciconia ciconia", "Apus apus"):
        assert factor("birds", name, africa, europe, month=7) == [0.0, 1.0]
        assert factor("birds", name, africa, month=1) == [1.0]
        assert factor("birds", name, africa, europe) == [1.0, 1.0]
    assert factor("birds", "Calidris alba", africa, month=7) == [1.0]  # young birds of the coast stay


def test_limits_are_asked_for_and_told():
    box = {"bbox": (-4.0, 51.0, 1.0, 54.0), "resolution": 0.1}
    limited, whole = (sdm.map_species("Phoca vitulina", limits=limits, **box).values for limits in ("auto", "none"))
    assert (limited <= whole).all() and (limited[whole > 0.5] == 0.0).any() and (limited == whole).any()
    job = plan("Phoca vitulina", **box)
    assert "from 10 to 40 km from the sea or large lakes" in " ".join(job.notes[0])
    assert not plan("Phoca vitulina", limits="none", **box).plan.targets[0].limits
    assert "large islands" not in " ".join(plan("Ursus arctos", bbox=(10.0, 45.0, 12.0, 47.0)).notes[0])
    assert "large islands" in " ".join(plan("Ursus arctos", bbox=(139.0, 35.0, 142.0, 42.0)).notes[0])
    # Tile by tile, the same bits.
    small = dataclasses.replace(job.plan, grid=dataclasses.replace(job.plan.grid, tile_size=16))
    for tile in list(small.grid.tiles())[:3]:
        np.testing.assert_array_equal(score_tile(small, tile)[0], limited[tile.rows, tile.cols])


def test_a_list_is_limited_as_a_map(tmp_path):
    box = {"bbox": (-3.0, 52.0, 0.5, 53.5), "resolution": 0.1}
    write_batch(plan_batch(["Phoca vitulina", "Vulpes vulpes"], **box), tmp_path / "out")
    stored = xr.open_zarr(tmp_path / "out" / "probability.zarr").probability
    for k, name in enumerate(("Phoca vitulina", "Vulpes vulpes")):
        expected = sdm.map_species(name, **box).values
        np.testing.assert_array_equal(np.isnan(stored[k].values), np.isnan(expected))
        difference = np.abs(stored[k].values - expected)
        assert np.nanmean(difference) < 1e-3 and np.nanmax(difference) < 0.05


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("islands.csv", "species,islands\nUrsus arctos,3\n", "lacks the row"),
        ("islands.csv", "species,islands\n*,3 400\n", "beyond 255"),
        ("islands.csv", "species,islands\n*,three\n", "whole numbers"),
        ("islands.csv", "name,islands\n", "must have the columns"),
        ("seasons.csv", "species,south,north,months\nApus apus,50,20,\n", "beyond its north"),
        ("seasons.csv", "species,south,north,months\nApus apus,nan,20,\n", "none"),
        ("seasons.csv", "species,south,north,months\nApus apus,5\n", "2 columns"),
        ("seasons.csv", "species,south,north,months\nApus apus,,,7:fff\n", "twelve digits"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=problem):
        tables.absent_islands(tmp_path, "Ursus arctos")
        tables.scarce(tmp_path, "Apus apus", 7)
    assert tables.absent_islands(tmp_path / "none", "Ursus arctos") == frozenset()


def test_each_limit_says_what_it_does():
    bear = open_model("mammals-trees")
    kinds = {type(limit) for limit in limits_of(bear, bear.resolve("Ursus maritimus"), 0)}
    assert kinds == {NearWater}
    for limit in (
        NotOnIslands(frozenset({1})),
        AwayToBreed(27.0, True, 5.0, 20.0),
        *limits_of(bear, bear.resolve("Phocidae"), 0),
    ):
        assert "--limits none" in limit.sentence
