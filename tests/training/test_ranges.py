"""Range rasters and polygons, and places drawn in cells."""

import numpy as np
import pytest
import shapely

from sdm.errors import LayerError
from sdm.training.data.drawing import CellDensity, DenserBox, draw_places
from sdm.training.data.ranges import RangePolygons, RangeRaster
from tests.training.tiny import BEHRMANN


def test_places_lie_in_their_cells(world):
    density = CellDensity(5, 2, 0.7, [DenserBox((0, 0, 20, 90), 9, 3.0)])
    places = draw_places(world, lambda lon, lat: lat > 0, density, seed=3)
    lon, lat = places.lonlat.T
    labels = world.labels(places.origin)
    assert ((lon < 0) == labels[:, 0].astype(bool)).all()
    assert ((lat > 0) == labels[:, 1].astype(bool)).all()
    assert (world.cells(lon, lat) == places.origin).all()
    assert (world.cells(np.array([0.0]), np.array([89.99])) == -1).all()
    land = labels[places.start, 1].astype(bool)
    assert set(places.count[land]) == {5, 9} and set(places.count[~land]) == {2}
    assert places.weight[land].sum() == pytest.approx(0.7) and places.weight.sum() == pytest.approx(1.0)
    assert places.weight[places.count == 9].mean() == pytest.approx(3 * places.weight[places.count == 5].mean())
    assert (places.origin[places.start[7]] == 7) and places.count.sum() == len(lon)


def test_presence_at_positions(world):
    lon, lat = np.array([-30.0, 30.0, -30.0, 30.0, -60.0]), np.array([20.0, 20.0, -20.0, -20.0, 20.0])
    assert [world.at(k, lon, lat).tolist() for k in (0, 1)] == [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    cells = np.arange(200)
    half = np.full(200, 0.5)
    for k in (0, 1):
        assert (world.at(k, *world.positions(cells, half, half)) == world.labels(cells)[:, k]).all()


def test_polygon_labels():
    polygons = RangePolygons(["a", "b"], np.array([shapely.box(0, 0, 10, 10), shapely.box(5, 5, 20, 20)]))
    labels = polygons.labels(np.array([1.0, 7.0, 15.0, 30.0]), np.array([1.0, 7.0, 15.0, 30.0]))
    assert labels.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]


def test_phylacine_from_rasters(tmp_path, write_raster):
    from affine import Affine

    present = np.zeros((6, 12), np.uint8)
    present[1, 3] = 1
    grid = Affine(2_000_000, 0, -12_000_000, 0, -2_000_000, 6_000_000)
    write_raster(present, name="r/Ursus_arctos.tif", transform=grid, crs=BEHRMANN)
    write_raster(present * 0, name="r/Vulpes_vulpes.tif", transform=grid, crs=BEHRMANN)
    raster = RangeRaster.phylacine(tmp_path / "r", {"Ursus arctos", "Vulpes vulpes"})
    assert raster.species == ["Ursus arctos"]  # an empty range is no range
    assert np.flatnonzero(raster.labels(np.arange(72))[:, 0]).tolist() == [15]
    with pytest.raises(LayerError, match="holds no range"):
        RangeRaster.phylacine(tmp_path, {"Ursus arctos"})
    with pytest.raises(LayerError, match="holds no range"):
        RangeRaster.phylacine(tmp_path / "r", {"Vulpes vulpes"})  # its range is empty
    # Two names of one species are one range.
    write_raster(np.roll(present, 1), name="r/Ursus_horribilis.tif", transform=grid, crs=BEHRMANN)
    assert RangeRaster.names(tmp_path / "r") == ["Ursus arctos", "Ursus horribilis", "Vulpes vulpes"]
    raster = RangeRaster.phylacine(tmp_path / "r", {"Ursus arctos": "Ursus arctos", "Ursus horribilis": "Ursus arctos"})
    assert raster.species == ["Ursus arctos"]
    assert np.flatnonzero(raster.labels(np.arange(72))[:, 0]).tolist() == [15, 16]


def test_ranges_that_are_refused(tmp_path, write_raster):
    from affine import Affine

    grid = Affine(2_000_000, 0, -12_000_000, 0, -2_000_000, 6_000_000)
    ones = np.ones((6, 12), np.uint8)
    for k, (values, options, said) in enumerate(
        [
            (ones * 255, {"transform": grid, "crs": BEHRMANN}, "holds the value 255; present is 1"),
            (ones * np.float32(0.3), {"transform": grid, "crs": BEHRMANN}, "holds the value 0.3"),
            (ones, {"transform": grid, "crs": None}, "has no CRS"),
            (ones, {"transform": grid @ Affine.rotation(30), "crs": BEHRMANN}, "is rotated"),
        ]
    ):
        write_raster(values, name=f"{k}/Ursus_arctos.tif", **options)
        with pytest.raises(LayerError, match=said):
            RangeRaster.phylacine(tmp_path / str(k), {"Ursus arctos"})
    (tmp_path / "0" / "Ursus_arctos.tif").write_bytes(b"II*\0")
    with pytest.raises(LayerError, match="cannot be read"):
        RangeRaster.phylacine(tmp_path / "0", {"Ursus arctos"})
    packed = tmp_path / "0" / "phylacine_current_ranges.npz"
    packed.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(LayerError, match="cannot be read"):
        RangeRaster.phylacine(tmp_path / "0", {"Ursus arctos"})
    np.savez(
        packed,
        species=["Ursus_arctos"],
        packed=np.zeros((1, 3), np.uint8),
        n_cells=[1],
        shape=[6, 12],
        transform=np.array(grid)[:6],
        crs_wkt=BEHRMANN,
    )
    with pytest.raises(LayerError, match="do not fit together"):
        RangeRaster.names(tmp_path / "0")
