"""STAC items: valid by pystac, and saying of a file what rasterio says of it."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pystac import Item
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator

import sdm
from sdm.outputs import stac
from sdm.outputs.cog import write_cog

from .conftest import HOSTILE, band_fields, field


def valid(path):
    """The item at a path, after pystac has checked its core offline; the schemas of extensions are on the network."""
    found = Item.from_file(str(path))
    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= {uri: {"$schema": "http://json-schema.org/draft-07/schema#"} for uri in stac.EXTENSIONS}
    assert len(found.validate(validator=validator)) == 1 + len(stac.EXTENSIONS)
    return found


def write(path, content):
    path.write_text(json.dumps(content, allow_nan=False))
    return path


def test_an_item_says_of_a_map_what_rasterio_reads(tmp_path, grid, banded):
    summary = write_cog(tmp_path / "map.tif", field(grid), grid, banded, band_fields(grid))
    files = {"tif": "map.tif", "qml": "map.qml"}
    item = valid(write(tmp_path / "map.stac.json", stac.item("map", grid, banded, files, summary)))
    asset = item.assets["tif"]
    with rasterio.open(asset.get_absolute_href()) as file:
        projection = ProjectionExtension.ext(item)
        assert projection.code == f"EPSG:{file.crs.to_epsg()}" and tuple(projection.shape) == file.shape
        assert projection.transform == pytest.approx(list(file.transform)[:6])
        assert projection.bbox == pytest.approx(list(file.bounds))
        bands = RasterExtension.ext(asset).bands
        assert [band["name"] for band in asset.extra_fields["bands"]] == list(file.descriptions)
        for number, band in enumerate(bands, start=1):
            values = file.read(number, masked=True)
            assert band.data_type == file.dtypes[number - 1] and band.nodata == "nan"
            assert band.statistics.mean == pytest.approx(values.mean(), rel=1e-5)
            assert band.statistics.maximum == pytest.approx(values.max())
            assert band.statistics.valid_percent == pytest.approx(100 * values.count() / values.size)
    assert item.properties["processing:software"]["taxabind-map"] == sdm.__version__
    assert "raster:bands" not in item.assets["qml"].extra_fields


@pytest.mark.parametrize(
    ("box", "crs", "bbox", "parts"),
    [
        ((170, 50, 200, 60), "EPSG:4326", [170, 50, -160, 60], 2),
        ((-190, 50, -170, 60), "EPSG:4326", [170, 50, -170, 60], 2),
        ((-180, -60, 180, 90), "EPSG:4326", [-180, -60, 180, 90], 1),
        ((200, -5, 230, 5), "EPSG:4326", [-160, -5, -130, 5], 1),
        ((-1e6, -1e6, 1e6, 1e6), "EPSG:3995", [-180, 77.06, 180, 90], 1),
    ],
)
def test_the_footprint_is_cut_where_longitudes_begin_anew(tmp_path, metadata, box, crs, bbox, parts):
    west, south, east, north = box
    affine = Affine((east - west) / 40, 0, west, 0, (south - north) / 20, north)
    content = stac.item("map", GeoBox((20, 40), affine, crs), metadata, {})
    item = valid(write(tmp_path / "map.stac.json", content))
    assert item.bbox == pytest.approx(bbox, abs=0.05)
    rings = item.geometry["coordinates"]
    rings = [polygon[0] for polygon in rings] if item.geometry["type"] == "MultiPolygon" else rings
    assert len(rings) == parts
    longitudes = np.array([x for ring in rings for x, _ in ring])
    assert longitudes.min() >= -180 and longitudes.max() <= 180


def test_a_crs_without_a_code_and_hostile_texts(tmp_path, metadata):
    from dataclasses import replace

    grid = GeoBox((4, 5), Affine(1000, 0, 0, 0, -1000, 0), "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84")
    meta = replace(metadata, title=HOSTILE, tags={"species": HOSTILE, "licence": HOSTILE, "model": "m"})
    item = valid(write(tmp_path / "map.stac.json", stac.item("map", grid, meta, {"tif": "map.tif"})))
    assert ProjectionExtension.ext(item).code is None and "Lambert" in ProjectionExtension.ext(item).wkt2
    assert item.properties["license"] == "other" and "\n" not in item.properties["title"]


@pytest.mark.parametrize(
    ("licence", "spdx"),
    [("CC0-1.0", "CC0-1.0"), ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"), ("CC-BY-4.0", "CC-BY-4.0"), ("see card", "other")],
)
def test_licences_of_models_by_their_spdx_names(metadata, licence, spdx):
    from dataclasses import replace

    grid = GeoBox((4, 5), Affine(1, 0, 0, 0, -1, 0), "EPSG:4326")
    meta = replace(metadata, tags={"licence": licence})
    assert stac.item("map", grid, meta, {})["properties"]["license"] == spdx


def test_beside_a_map(tmp_path):
    plan = sdm.plan("Puma concolor", bbox=(-112, 38, -108, 41), resolution=0.2)
    result = sdm.write_maps(plan, tmp_path, formats="cog,zarr3,stac", range="0.5")[0]
    item = valid(result.files["stac.json"])
    assert item.id == "puma-concolor" and item.properties["taxabind-map:species"] == "Puma concolor"
    assert item.properties["taxabind-map:model_hash"] == result.report["model"]["hash"]
    assert set(item.assets) == {kind for kind in result.files if kind != "stac.json"}
    for asset in item.assets.values():
        assert (tmp_path / asset.href).exists()
    assert result.report["checksums"].keys() >= {"puma-concolor.stac.json", "puma-concolor.v3.zarr"}


def test_beside_each_map_of_a_batch(tmp_path):
    box = {"bbox": (-112, 38, -108, 41), "resolution": 0.2}
    sdm.map_batch(["Puma concolor", "Ursus arctos"], out=tmp_path, formats="stac,cog", **box)
    for stem in ("puma-concolor", "ursus-arctos"):
        item = valid(tmp_path / "species" / f"{stem}.stac.json")
        assert all((tmp_path / "species" / asset.href).exists() for asset in item.assets.values())
        with rasterio.open(tmp_path / "species" / f"{stem}.tif") as file:
            bands = RasterExtension.ext(item.assets["tif"]).bands
            assert len(bands) == file.count
            assert bands[0].statistics.mean == pytest.approx(float(file.tags(1)["STATISTICS_MEAN"]))
            assert bands[1].statistics.maximum == pytest.approx(float(file.tags(2)["STATISTICS_MAXIMUM"]))
