"""What is held out: blocks, continents, climates, species."""

import numpy as np
import pytest

from sdm.errors import RequestError
from sdm.training.data import splits


def test_held_out_blocks_are_whole_blocks():
    rng = np.random.default_rng(2)
    lonlat = np.stack([rng.uniform(-180, 180, 20_000), rng.uniform(-60, 85, 20_000)], axis=1)
    out = splits.held_out_places("blocks", lonlat, block_degrees=10.0, fraction=0.2, seed=7)
    assert 0.1 < out.mean() < 0.3
    tens = np.floor(lonlat / 10.0)
    for block in np.unique(tens, axis=0)[:200]:
        inside = (tens == block).all(axis=1)
        assert out[inside].all() or not out[inside].any()


CITIES = {
    "africa": [(31.2, 30.0), (-5.8, 35.7), (47, -19), (42.6, 11.6)],
    "asia": [(34, 29), (139.7, 35.7), (30, 40.9), (107, -6.2), (-172, 66), (83, 55), (125, 8)],
    "australia": [(151, -33.9), (147.2, -9.4), (172, -43), (-149.5, -17.6)],
    "europe": [(0, 51.5), (-22, 64.1), (16, 78), (25, 35.2), (37.6, 55.7), (14.4, 35.9)],
    "north-america": [(-74, 40.7), (-40, 70), (-156, 20), (-80.5, 8.6), (-160, 66), (-61, 14)],
    "south-america": [(-74.1, 4.6), (-91, -0.7), (-68, -54), (-61.3, 10.4)],
    "antarctica": [(0, -80)],
}


def test_continents():
    for name, cities in CITIES.items():
        assert set(splits.continents_at(np.array(cities, float))) == {name}
    here = np.array([(31.2, 30.0), (0, 51.5), (-74, 40.7)])
    held = splits.held_out_places("continents", here, continents=("africa", "north-america"))
    assert held.tolist() == [True, False, True]


def test_climates():
    places = {"A": (101.7, 3.1), "B": (25, 25), "C": (0, 51.5), "D": (83, 55), "E": (-40, 72)}
    lonlat = np.array(list(places.values()), float)
    assert splits.koeppen(lonlat).tolist() == list(places)
    assert splits.held_out_places("climate", lonlat, climate=("A", "E")).tolist() == [True, False, False, False, True]
    assert splits.held_out_places("climate", lonlat, climate=("dry",)).tolist()[1:3] == [True, False]
    cold = splits.in_climate(lonlat, ("cold",), 0.2)
    assert cold[4] and not cold[:3].any()


def test_held_out_species_are_a_share():
    out = splits.held_out_species([str(k) for k in range(50)], 0.3, seed=1)
    assert out.sum() == 15 and (out == splits.held_out_species([""] * 50, 0.3, seed=1)).all()
    assert not splits.held_out_places("species", np.zeros((3, 2))).any()


def test_splits_that_are_refused():
    here = np.zeros((2, 2))
    for split, options, said in [
        ("halves", {}, "split 'halves' is not known; choose blocks, cells, continents"),
        ("continents", {}, "needs continents, those held out: africa"),
        ("continents", {"continents": ("atlantis",)}, "continent 'atlantis' is not known"),
        ("climate", {"climate": ("nice",)}, "climate 'nice' is not known; choose A, B"),
        ("climate", {}, "needs climate"),
    ]:
        with pytest.raises(RequestError, match=said):
            splits.held_out_places(split, here, **options)
