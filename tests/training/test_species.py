"""Species fitted to the encoders of another model: readers, the fit, lists of areas, and a recipe run."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix
from shapely.geometry import box

from sdm.errors import LayerError, RequestError
from sdm.models.bundled import BundledModel
from sdm.models.known_ranges import read_known_ranges
from sdm.training.data.areas import AreaLists, Outlines, countries_at
from sdm.training.data.grids import DegreeGrid, GridRanges
from sdm.training.data.range_parts import RangeParts
from sdm.training.measures.scores import auc
from sdm.training.recipe import SpeciesRecipe
from sdm.training.recipe.species_recipe import FitSettings, GridSettings
from sdm.training.species.export import quantised, read_table
from sdm.training.species.fit import Labels, Lineages, fit_vectors
from sdm.training.species.groups import open_groups
from sdm.training.species.held_areas import held_out_areas
from sdm.training.species.inside import Areas, Inside, Listed
from sdm.training.species.ranges import fit_known_range
from sdm.training.species.run import run_species_recipe
from sdm.training.species.world import land_places, with_places

HEADER = "species,kingdom,phylum,class,order,family,genus,common,synonyms,group,cells,marine\n"
RECIPE = """
name = "toy"
title = "Toys"
version = "1"
licence = "CC0-1.0"
encoders = "mammals-trees"
[[source]]
kind = "grid"
name = "reptiles"
group = "reptile"
path = "{folder}/ranges.npz"
[[source]]
kind = "areas"
name = "amphibians"
group = "amphibian"
path = "{folder}/lists.parquet"
steps = 30
[fit]
points = 1
steps = 40
batch = 128
[evaluation]
splits = ["blocks", "areas"]
block_degrees = 20.0
min_cells = 2
"""


def write_ranges(path: Path, ranges: dict[str, np.ndarray], step: float) -> None:
    indptr = np.cumsum([0, *(cells.size for cells in ranges.values())])
    cells = np.concatenate([*ranges.values()]).astype(np.uint32)
    np.savez(path, species=np.array(list(ranges)), indptr=indptr, cells=cells, step=step)


def lineage(name: str, class_: str = "Reptilia") -> tuple[str, ...]:
    genus = name.split()[0]
    return ("Animalia", "Chordata", class_, "Squamata", f"{genus}idae", genus, name)


def test_cells_of_a_degree_grid_and_their_boxes():
    grid = DegreeGrid(0.5)
    cells = grid.cells(np.array([-179.9, 179.9, 0.1]), np.array([89.9, -89.9, 0.1]))
    assert cells.tolist() == [0, 360 * 720 - 1, 179 * 720 + 360]
    assert grid.centres(cells)[2].tolist() == [0.25, 0.25]
    assert grid.cells(*grid.centres(cells).T).tolist() == cells.tolist()
    # Two neighbours share a box, the end of a row and the start of the next do not.
    assert grid.boxes(np.array([0, 1, 719, 720])).tolist() == [
        [-180, 89.5, -179, 90],
        [179.5, 89.5, 180, 90],
        [-180, 89, -179.5, 89.5],
    ]


def test_ranges_of_a_grid_are_read_and_united(tmp_path):
    write_ranges(tmp_path / "r.npz", {"A_a": np.array([3, 1]), "B b": np.array([1, 2]), "C c": np.array([], int)}, 10)
    assert GridRanges.names(tmp_path / "r.npz") == ["A a", "B b"]
    ranges = GridRanges.read(tmp_path / "r.npz", {"A a": "A a", "B b": "A a"})
    assert ranges.species == ("A a",) and ranges.cells_of(0).tolist() == [1, 2, 3]
    assert ranges.presence.data.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "why"), [({"step": 0.7}, "divide"), ({"indptr": [0, 5]}, "fit together"), ({"cells": [9999]}, "fit")]
)
def test_damaged_ranges_of_a_grid_are_refused(tmp_path, change, why):
    arrays = {"species": np.array(["A a"]), "indptr": np.array([0, 1]), "cells": np.array([1]), "step": 10.0}
    np.savez(tmp_path / "r.npz", **(arrays | {k: np.array(v) for k, v in change.items()}))
    with pytest.raises(LayerError, match=why):
        GridRanges.names(tmp_path / "r.npz")


def write_lists(path: Path, rows: list[tuple[str, str, str]]) -> None:
    pq.write_table(pa.table(dict(zip(("species", "iso2", "status"), zip(*rows, strict=True), strict=True))), path)


def test_lists_of_areas_leave_out_what_was_introduced(tmp_path):
    rows = [("A a", "FR", "native"), ("A a", "US", "introduced"), ("B b", "XX", "native"), ("C c", "FR", "native")]
    write_lists(tmp_path / "l.parquet", rows)
    lists = AreaLists.read(tmp_path / "l.parquet", ("species", "iso2"), {"A a", "B b"})
    assert lists.species == ("A a", "B b") and lists.areas == ("FR", "XX")
    there = lists.to(("DE", "FR"))
    assert there.species == ("A a",) and there.listed.tolist() == [[False, True]]
    with pytest.raises(LayerError, match="no column 'country'"):
        AreaLists.read(tmp_path / "l.parquet", ("species", "country"), {"A a"})


def test_an_area_that_is_listed_twice_is_of_introduced_species_unless_nothing_else_is_left(tmp_path):
    both = [("US", "native"), ("BR", "native"), ("BR", "introduced")]
    rows = [("A a", *row) for row in both] + [("B b", "CN", "native"), ("B b", "CN", "introduced")]
    write_lists(tmp_path / "l.parquet", rows)
    lists = AreaLists.read(tmp_path / "l.parquet", ("species", "iso2"), {"A a", "B b"})
    assert lists.areas == ("CN", "US") and lists.listed.tolist() == [[False, True], [True, False]]


def test_areas_are_taken_off_lists_by_hand(tmp_path):
    lists = AreaLists(("A a", "B b"), ("FR", "US"), np.array([[True, True], [False, True]]))
    file = tmp_path / "without.csv"
    file.write_text("species,area,why\nA a,US,brought there\nZ z,US,of another group\n")
    assert lists.without(file).listed.tolist() == [[True, False], [False, True]]
    file.write_text("species,area\nB b,FR\n")
    with pytest.raises(LayerError, match="takes 'FR' from 'B b', which is not on its list"):
        lists.without(file)
    file.write_text("species,country\nB b,FR\n")
    with pytest.raises(LayerError, match="no column 'area'"):
        lists.without(file)


def write_outlines(path: Path, boxes: dict[str, tuple[float, float, float, float]], crs: int = 4326) -> None:
    table = geopandas.GeoDataFrame({"basin": list(boxes)}, geometry=[box(*b) for b in boxes.values()], crs=4326)
    table.to_crs(crs).to_parquet(path)


@pytest.mark.parametrize("crs", [4326, 3857])
def test_areas_with_outlines_of_their_own(tmp_path, crs):
    write_outlines(tmp_path / "o.parquet", {"Rhine": (6, 47, 8, 51), "Elbe": (10, 50, 12, 53)}, crs)
    outlines = Outlines.read(tmp_path / "o.parquet", "basin")
    found = outlines.at(np.array([[7.0, 48.0], [11.0, 52.0], [8.05, 49.0], [9.0, 49.0]]))
    assert outlines.areas == ("Elbe", "Rhine") and found.tolist() == [1, 0, 1, -1]
    assert sorted(outlines.at(outlines.points()).tolist()) == [0, 1]
    with pytest.raises(LayerError, match="no column 'river'"):
        Outlines.read(tmp_path / "o.parquet", "river")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(LayerError, match="cannot be read as GeoParquet"):
        Outlines.read(tmp_path / "bad.parquet", "basin")


def test_countries_at_places_and_parts_of_countries():
    areas, found = countries_at(np.array([[2.3, 48.8], [-53.0, 4.0], [-40.0, 30.0], [36.8, -1.3]]))
    assert [areas[k] if k >= 0 else "" for k in found] == ["FR", "GF", "", "KE"]


def test_places_lie_on_land_in_their_cells_and_stand_for_its_area():
    grid = DegreeGrid(10.0)
    lonlat, cell, area = land_places(grid, 2, np.array([], int), -60.1)
    assert (np.diff(cell) >= 0).all() and np.bincount(cell).max() == 2
    assert (grid.cells(*lonlat.T) == cell).all()
    assert 1.2e8 < area.sum() < 1.55e8  # land without Antarctica: 135 million km2


def test_further_places_share_the_land_of_their_cell():
    grid = DegreeGrid(10.0)
    before = land_places(grid, 2, np.array([], int), -60.1)
    lonlat, cell, area = with_places(grid, before, np.array([[10.0, 50.0], [-30.0, 30.0], [0.0, -75.0]]), -60.1)
    assert len(lonlat) == len(before[0]) + 1 and (np.diff(cell) >= 0).all()  # at sea, and too far south
    assert (grid.cells(*lonlat.T) == cell).all() and area.sum() == pytest.approx(before[2].sum())


def two_halves() -> tuple[np.ndarray, Labels, Lineages]:
    """Places on a half circle: one species lives at one end, two of a genus at the other, one of them at one place."""
    angle = np.linspace(0, np.pi, 200)
    places = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    lives = np.zeros((200, 3), np.uint8)
    lives[:60, 0] = lives[140:, 1] = lives[150, 2] = 255
    names = ("Aus aus", "Bus bus", "Bus rus")
    return places, Labels(csr_matrix(lives), np.ones(200)), Lineages.of([lineage(n) for n in names])


def test_fitted_vectors_tell_where_species_live_and_relatives_share():
    places, labels, lineages = two_halves()
    table = fit_vectors(places, labels, lineages, (20.0, -4.0), FitSettings(steps=150, batch=64), lambda line: None)
    vectors = lineages.vectors(table)
    lives = labels.share.toarray() > 0
    assert auc(places @ vectors[0], lives[:, 0]) > 0.99 and auc(places @ vectors[1], lives[:, 1]) > 0.99
    assert vectors[2] @ vectors[1] > 0.8 > vectors[2] @ vectors[0]
    assert len(lineages.vocabulary) == 1 + 1 + 2 + 2 + 3 and lineages.vocabulary[0] == "class:Reptilia"


def test_rounding_to_bytes_loses_little():
    table = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    weight, scale = quantised(table)
    assert weight.dtype == np.int8 and np.abs(weight * scale[:, None] - table).max() <= 0.5 * scale.max() + 1e-6


def test_a_narrow_species_is_shown_in_its_range_and_a_wide_one_is_left_alone():
    lonlat = np.stack([np.linspace(0, 20, 401), np.zeros(401)], axis=1)
    lives = ((lonlat[:, 0] >= 5) & (lonlat[:, 0] <= 5.5)).astype(np.float32)
    logit = np.full(401, -6.0, np.float32)
    box = np.array([[5, -0.25, 5.5, 0.25]], np.float32)
    known, alone, after = fit_known_range(RangeParts(0.3, box, 100.0), logit, lives, lonlat, np.ones(401))
    assert alone.highest < 0.01 and after.highest >= 0.5 and 0.9 < after.above / after.area < 1.5
    assert known.shift(np.array([15.0]), np.array([0.0]))[0] < 0
    wide = fit_known_range(RangeParts(900.0, box[:0], 100.0), logit + 7, lives, lonlat, np.ones(401))
    assert wide.known.offset == 0.0 and not wide.known.adds


def test_where_inside_is_learned_from_species_with_the_same_list():
    rng = np.random.default_rng(0)
    area = np.repeat([0, 1, -1], [80, 80, 40])
    wet = rng.random(200) < 0.5
    embeddings = np.stack([np.where(wet, 1.0, -1.0), rng.normal(size=200), np.ones(200)], axis=1).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    areas = Areas(embeddings, np.ones(200), area, 2)
    listed = np.array([[True, False], [False, True]] * 20)
    lives = csr_matrix(((listed[:, area] & (area >= 0)) & wet).astype(np.uint8))
    inside = Inside(areas, Listed(listed, ["A"] * 40, ["Aidae"] * 40))
    inside.train(lives, np.arange(40), 60, lambda line: None)
    vectors, _ = inside.vectors(Listed(np.array([[True, True]]), ["Z"], ["Zidae"]))
    assert auc(embeddings @ vectors[0], wet) > 0.95


def test_held_out_areas_are_told_by_their_best_place():
    listed = np.array([[True, True, False, False], [True, False, False, False]])
    places, area = np.array([[1.0, 0], [0, 1.0], [0.9, 0], [0, 0.1]]), np.array([0, 3, 1, 2])
    found = held_out_areas(listed, np.array([False, True, True, True]), area, places, np.array([[1.0, 0], [1.0, 0]]))
    assert found == {"species": 1, "areas": 3, "auc": 1.0}


def toy(tmp_path: Path) -> SpeciesRecipe:
    grid = DegreeGrid(5.0)
    cells = np.arange(grid.shape[0] * grid.shape[1])
    lon, lat = grid.centres(cells).T
    ranges = {
        "Aus aus": cells[(lon < -60) & (lat > 20) & (lat < 60)],
        "Aus bus": cells[(lon > 0) & (lon < 40) & (lat > -30) & (lat < 30)],
        "Bus cus": cells[(lon > 60) & (lat > 10) & (lat < 60)],
    }
    write_ranges(tmp_path / "ranges.npz", ranges, 5.0)
    write_lists(tmp_path / "lists.parquet", [("Rus rus", c, "native") for c in ("BR", "CO", "PE", "VE", "AR", "BO")])
    rows = [
        f"{n},{','.join(lineage(n, c)[:6])},,,{g},,\n"
        for n, c, g in (*((n, "Reptilia", "reptile") for n in ranges), ("Rus rus", "Amphibia", "amphibian"))
    ]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "taxa.csv").write_text(HEADER + "".join(rows).replace("Amphibia,Squamata", "Amphibia,Anura"))
    (tmp_path / "toy.toml").write_text(RECIPE.format(folder=tmp_path))
    recipe = SpeciesRecipe.read(tmp_path / "toy.toml")
    assert recipe is not None
    return recipe


def test_species_with_the_names_of_another_model_only_teach(tmp_path):
    write_ranges(tmp_path / "ranges.npz", {"Vipera berus": np.array([3]), "Aus aus": np.array([4])}, 5.0)
    settings = GridSettings(str(tmp_path / "ranges.npz"), "reptiles", "reptile", names_of="life")
    (group,) = open_groups([settings], BundledModel.open("mammals-trees").taxa, {}, lambda line: None)
    assert group.species == ("Vipera berus",) and not group.shipped
    assert group.taxa[0].family == "Viperidae"


@pytest.mark.slow
def test_a_recipe_gives_a_model_folder_of_species_alone(tmp_path):
    recipe = toy(tmp_path)
    metrics = run_species_recipe(recipe, tmp_path / "model", tmp_path / "run", ("develop", "ship"))
    assert metrics["held_out"]["reptiles"]["blocks"]["location+satellite+environment"]["auc"] > 0.8
    assert {"areas", "as_lists"} <= set(metrics["held_out"]["amphibians"])
    assert set(metrics["rounding"]) == {"reptiles", "amphibians"}
    assert all(0.0 < found["mean"] < found["most"] < 0.5 for found in metrics["rounding"].values())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["encoders"]["model"] == "mammals-trees" and len(config["encoders"]["digest"]) == 16
    table, vocabulary = read_table(tmp_path / "model")
    assert len(table) == len(vocabulary) and "species:Rus rus" in vocabulary and "class:Amphibia" in vocabulary
    assert set(read_known_ranges(tmp_path / "model", vocabulary)) == {"Aus aus", "Aus bus", "Bus cus", "Rus rus"}
    fitted = sorted((tmp_path / "run").glob("fit-*.npz"))
    run_species_recipe(recipe, tmp_path / "model", tmp_path / "run", ("ranges",))
    assert sorted((tmp_path / "run").glob("fit-*.npz")) == fitted  # nothing was fitted again


def test_a_recipe_says_what_is_wrong_with_it(tmp_path):
    recipe = toy(tmp_path)
    with pytest.raises(RequestError, match="develop first"):
        run_species_recipe(recipe, tmp_path / "model", tmp_path / "run", ("ship",))
    with pytest.raises(RequestError, match="'vectors' is not known"):
        run_species_recipe(recipe, tmp_path / "model", tmp_path / "run", ("vectors",))
    text = (tmp_path / "toy.toml").read_text()
    for old, new, why in (
        ('kind = "areas"', 'kind = "basins"', "'basins'; known: grid, areas"),
        ('group = "amphibian"', 'group = "reptile"', "two sources have the same group"),
        ('kind = "areas"', 'kind = "areas"\nnames_of = "life"', "names_of"),
        ('"areas"]', '"species"]', "splits must name some of blocks, cells, areas"),
    ):
        (tmp_path / "bad.toml").write_text(text.replace(old, new))
        with pytest.raises(RequestError, match=why):
            SpeciesRecipe.read(tmp_path / "bad.toml")
    only = text[: text.index('[[source]]\nkind = "areas"')].replace('"grid"', '"grid"\nnames_of = "life"')
    (tmp_path / "bad.toml").write_text(only)
    with pytest.raises(RequestError, match="only teaches"):
        SpeciesRecipe.read(tmp_path / "bad.toml")
    (tmp_path / "other.toml").write_text('name = "x"\n')
    assert SpeciesRecipe.read(tmp_path / "other.toml") is None
