"""Corrections of range rasters: read, refused, drawn in cells, added to native and whole ranges."""

import numpy as np
import pyproj
import pytest

from sdm.errors import LayerError
from sdm.names import TaxonTable
from sdm.training.data.corrections import (
    all_ranges,
    corrected_cells,
    countries_of_cells,
    country_numbers,
    native_ranges,
    read_corrections,
)
from sdm.training.data.ranges import RangeRaster
from sdm.training.data.sources import Ranges
from sdm.training.recipe.sources import RangesSettings
from tests.training.tiny import BEHRMANN

HEAD = "species,origin,countries,boxes,source\n"


@pytest.fixture
def write(tmp_path):
    def write_(text, head=HEAD):
        path = tmp_path / "corrections.csv"
        path.write_text(head + text, encoding="utf-8")
        return path

    return write_


@pytest.fixture
def globe():
    """A species without a range on cells of 5 degrees of longitude, of the whole globe."""
    x, y = pyproj.Transformer.from_crs(4326, BEHRMANN, always_xy=True).transform(180, 90)
    wkt = pyproj.CRS.from_user_input(BEHRMANN).to_wkt()
    return RangeRaster(
        ["Ursus arctos"], np.zeros((72 * 36, 1), np.uint8), (36, 72), (x / 36, 0, -x, 0, -y / 18, y), wkt
    )


def places_of(raster, cells):
    """(lon, lat) of the middles of cells."""
    half = np.full(len(cells), 0.5)
    return np.stack(raster.positions(np.asarray(cells), half, half), axis=1)


@pytest.mark.parametrize(
    ("text", "head", "said"),
    [
        ("Ursus arctos,native,DEU,,A\n", "species,origin,countries,boxes\n", "lack the column 'source'"),
        ("Ursus arctos,feral,DEU,,A\n", HEAD, "line 2: origin 'feral' is not known; give native, introduced"),
        ("Ursus arctos,native,DEU,,A\nUrsus arctos,native,GER,,A\n", HEAD, "line 3: country 'GER' is not"),
        ("Ursus arctos,native,,,A\n", HEAD, "countries is empty"),
        ("Ursus arctos,native,DEU,10 50 5,A\n", HEAD, "line 2: bbox has 3 numbers"),
        ("Ursus arctos,native,DEU,10 a 5 60,A\n", HEAD, "line 2: could not convert"),
        ("Ursus arctos,native,DEU,10 60 15 50,A\n", HEAD, "line 2: bbox south 60 is greater than north 50"),
        ("Ursus arctos,native,DEU,,\n", HEAD, "a species and a source"),
        ("Ursus arctos,native,DEU,,A,more\n", HEAD, "as many fields as the header"),
        ("Ursus arctos,native\n", HEAD, "line 2: "),
        ('Ursus arctos,native,"DEU,,A\n', HEAD, "cannot be read"),
    ],
)
def test_corrections_that_are_refused(write, text, head, said):
    with pytest.raises(LayerError, match=said):
        read_corrections(write(text, head))


def test_files_that_are_no_corrections(tmp_path):
    with pytest.raises(LayerError, match="cannot be read"):
        read_corrections(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"Ursus \xe9,native,DEU,,A\n")
    with pytest.raises(LayerError, match="cannot be read"):
        read_corrections(tmp_path / "latin.csv")


def test_cells_of_countries_and_boxes(globe, write):
    path = write(
        "Ursus arctos,native,EGY,,A\n"
        "Ursus arctos,native,EGY DZA,20 26 30 31,A\n"
        "Ursus arctos,native,MLT,,A\n"
        "Ursus arctos,native,EGY,33.9 26.8 34.1 27|29 26 29.1 26.1,A\n"
    )
    whole, north, small, tiny = corrected_cells(globe, read_corrections(path))
    lon, lat = places_of(globe, whole).T
    assert len(whole) > 4 and ((lon > 22) & (lon < 38) & (lat > 20) & (lat < 34)).all()
    assert set(north) < set(whole) and (places_of(globe, north)[:, 1] > 24).all()
    # A country or a box too small for half a cell has the cell with most of it.
    assert len(small) == 1 and places_of(globe, small)[0] == pytest.approx([14.4, 35.9], abs=4)
    assert len(tiny) == 2
    country = countries_of_cells(globe)[0]
    assert (country[whole] == country_numbers()["EGY"]).any(axis=1).all()


def test_boxes_across_the_antimeridian(globe, write):
    path = write("Ursus arctos,native,RUS,170 60 -170 72,A\nUrsus arctos,native,RUS,,A\n")
    east, whole = corrected_cells(globe, read_corrections(path))
    lon, lat = places_of(globe, east).T
    assert {True, False} == set(lon > 0) and ((np.abs(lon) > 165) & (lat > 55)).all()
    assert set(east) < set(whole) and len(whole) > 20 * len(east) / 3


def test_native_and_whole_ranges(world, write):
    """The bear lives in the west, the fox in the north; Egypt lies in the north-east, Namibia in the south."""
    path = write(
        "Ursus arctos,native,EGY,,A\n"
        "Vulpes vulpes,introduced,EGY NAM,,A\n"
        "Vulpes vulpes,not-native,SAU,,A\n"
        "Vulpes vulpes,native,EGY,25 28 35 32,A\n"
        "Meles meles,introduced,EGY,,A\n"
    )
    corrections = read_corrections(path)
    egypt, introduced, arabia, delta, _ = (set(c) for c in corrected_cells(world, corrections))
    fox = set(np.flatnonzero(world.labels_of(1)))
    native, whole = native_ranges(world, corrections), all_ranges(world, corrections)
    assert native.species == world.species and whole.species == ["Vulpes vulpes"]
    assert set(np.flatnonzero(native.labels_of(0))) == set(np.flatnonzero(world.labels_of(0))) | egypt
    # What is introduced leaves the native range, unless another row says that it is native there.
    assert delta and delta < egypt and arabia & fox
    assert set(np.flatnonzero(native.labels_of(1))) == (fox - introduced - arabia) | delta
    assert set(np.flatnonzero(whole.labels_of(0))) == fox | introduced
    assert (world.labels_of(1) == RangeRaster.at(world, 1, *places_of(world, np.arange(200)).T)).all()


def test_source_of_native_and_of_whole_ranges(tmp_path, tiny, write):
    _, folder = tiny()
    taxa = TaxonTable.load(folder)
    path = write("Vulpes vulpes,introduced,NAM,,A\nUrsus arctos,native,EGY,,A\nMeles meles,native,EGY,,A\n")
    own = Ranges(RangesSettings(str(tmp_path), corrections=str(path)), taxa)
    whole = Ranges(RangesSettings(str(tmp_path), corrections=str(path), origin="all", share=0), taxa)
    assert own.species == ("Ursus arctos", "Vulpes vulpes") and whole.species == ("Vulpes vulpes [all]",)
    assert path in own.files and "1 species" in own.notes[-1] and "Meles meles" in own.notes[-1]
    places = own.places(0)
    native, everything = own.block(places, 0), whole.block(places, 1)
    lon, lat = places.lonlat.T
    egypt, namibia = own.raster.cells(np.array([29.0, 17.0]), np.array([26.0, -22.0]))
    there = lambda cell: np.flatnonzero(own.raster.cells(lon, lat) == cell)  # noqa: E731
    assert native.labels(there(egypt))[:, 0].all() and not native.labels(there(namibia))[:, 1].any()
    assert everything.labels(there(namibia)).all()
    with pytest.raises(LayerError, match="have no introduced range"):
        Ranges(
            RangesSettings(str(tmp_path), corrections=str(write("Ursus arctos,native,EGY,,A\n")), origin="all"), taxa
        )


def test_bundled_corrections_name_species_of_the_model_and_cited_works():
    from pathlib import Path

    import sdm
    from sdm.models.folder import bundled_folders

    recipes = Path(sdm.__file__).parents[1] / "recipes"
    corrections = read_corrections(recipes / "range-corrections.csv")
    taxa = TaxonTable.load(bundled_folders()["mammals-trees"])
    works = (recipes / "range-corrections.md").read_text(encoding="utf-8")
    assert len(corrections) >= 100
    for one in corrections:
        assert taxa.by_name[one.species.lower()].group == "mammal"
        assert all(f"| {work.removeprefix('Musser & Carleton in ')} |" in works for work in one.source.split("; ")), one
