"""Rasters and vector files that name addresses or other files: none is asked for, none is read."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import geopandas
import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely

from sdm.errors import LayerError, RecordsError
from sdm.grid import Region
from sdm.layers.raster import RasterLayer
from sdm.records.read import read_raw
from sdm.records.sample import open_sampler

SQUARE = [[-120, 40], [-110, 40], [-110, 50], [-120, 50], [-120, 40]]
FEATURE = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [SQUARE]}}
LON, LAT = np.array([-119.5]), np.array([49.5])


def vrt(source):
    return (
        '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:4326</SRS>'
        "<GeoTransform>-120, 0.1, 0, 50, 0, -0.1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        '</VRTRasterBand><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata></VRTDataset>'
    )


def raster_texts(url):
    remote = f"/vsicurl/{url}/x.tif"
    gti = f"<GDALTileIndexDataset><IndexDataset>/vsicurl/{url}/x.gpkg</IndexDataset></GDALTileIndexDataset>"
    stac = {
        "type": "FeatureCollection",
        "stac_version": "1.0.0",
        "features": [
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": "x",
                "bbox": [-120, 40, -110, 50],
                "geometry": None,
                "properties": {"proj:epsg": 4326, "proj:transform": [0.1, 0, -120, 0, -0.1, 50], "proj:shape": [9, 9]},
                "assets": {"visual": {"href": f"{url}/s.tif", "type": "image/tiff; application=geotiff"}},
            }
        ],
        "links": [{"rel": "next", "href": f"{url}/next.json"}],
    }
    return {
        "wmts": f"<GDAL_WMTS><GetCapabilitiesUrl>{url}/w?SERVICE=WMTS</GetCapabilitiesUrl><Layer>x</Layer></GDAL_WMTS>",
        "wms": f'<GDAL_WMS><Service name="WMS"><ServerUrl>{url}/w</ServerUrl><Layers>x</Layers></Service></GDAL_WMS>',
        "wcs": f"<WCS_GDAL><ServiceURL>{url}/w</ServiceURL><CoverageName>x</CoverageName></WCS_GDAL>",
        "gti": gti,
        "vrt": vrt(remote),
        "late-vrt": " " * 5000 + vrt(remote),
        "stacit": json.dumps(stac),
    }


@pytest.mark.parametrize("kind", ["wmts", "wms", "wcs", "gti", "vrt", "late-vrt", "stacit"])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".nc", ".xml"])
def test_a_raster_that_is_an_address(tmp_path, listener, kind, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text(raster_texts(listener.url)[kind])
    for read in (RasterLayer, open_sampler):
        with pytest.raises(LayerError, match=r"VRT|cannot be read as a raster"):
            read(path)
    assert not listener.heard()


def sidecars(url):
    remote, texts = f"/vsicurl/{url}/x.tif", raster_texts(url)
    overviews = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{remote}</MDI></Metadata>'
    return {
        ".msk": vrt(remote),
        ".ovr": texts["wmts"],
        ".aux.xml": f"<PAMDataset>{overviews}</PAMDataset>",
        ".aux": texts["wmts"],
    }


@pytest.mark.parametrize("suffix", [".msk", ".ovr", ".aux.xml", ".aux"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_a_file_beside_a_geotiff(write_raster, listener, suffix, crs):
    cell, north = (0.1, 50) if crs == "EPSG:4326" else (10_000, 7_000_000)
    west = -120 if crs == "EPSG:4326" else -13_400_000
    path = write_raster(np.ones((64, 64), np.uint8), west=west, north=north, cell=cell, crs=crs)
    path.with_name(path.name + suffix).write_text(sidecars(listener.url)[suffix])
    assert RasterLayer(path).nearest(LON, LAT)[0] == 1
    sampler = open_sampler(path)
    assert sampler.values(sampler.pixels(LON, LAT))[0] == 1
    assert not listener.heard()


def test_an_overview_that_a_geotiff_names_itself(write_raster, listener):
    path = write_raster(np.ones((64, 64), np.uint8), west=-13_400_000, north=7_000_000, cell=10_000, crs="EPSG:3857")
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{listener.url}/x.tif")
    assert RasterLayer(path, pitch=0.5).nearest(LON, LAT + 2)[0] == 1
    assert not listener.heard()


def test_honest_files_beside_a_geotiff_do_no_harm(write_raster):
    path = write_raster(np.arange(4096, dtype=np.float32).reshape(64, 64), west=-120, north=50, cell=0.1)
    before = RasterLayer(path).nearest(LON, LAT)
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    path.with_name(path.name + ".aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">1</MDI></Metadata></PAMRasterBand>'
        "</PAMDataset>"
    )
    assert RasterLayer(path).nearest(LON, LAT) == before


@pytest.mark.parametrize("driver", ["ENVI", "EHdr", "PNG", "JPEG", "AAIGrid", "HFA", "JP2OpenJPEG", "netCDF"])
def test_formats_with_their_georeference_beside_them(tmp_path, write_raster, listener, driver):
    """They are read with it, and refused as soon as a file beside them could name another."""
    ending = {"ENVI": ".bin", "EHdr": ".bil", "PNG": ".png", "JPEG": ".jpg", "AAIGrid": ".asc", "HFA": ".img"}
    path = tmp_path / f"a{ending.get(driver, '.jp2' if driver == 'JP2OpenJPEG' else '.nc')}"
    source = write_raster(np.full((64, 64), 7, np.uint8), west=-120, north=50, cell=0.1)
    rasterio.shutil.copy(source, path, driver=driver)
    assert RasterLayer(path).nearest(LON, LAT)[0] == pytest.approx(7, abs=1)
    path.with_name(path.name + ".msk").write_text(vrt(f"/vsicurl/{listener.url}/x.tif"))
    try:
        assert RasterLayer(path).nearest(LON, LAT)[0] == pytest.approx(7, abs=1)
    except LayerError as error:
        assert "could name other files" in str(error)
    assert not listener.heard()


def test_an_imagine_file_of_pixels_elsewhere_is_refused(tmp_path, write_raster):
    source = write_raster(np.full((64, 64), 7, np.uint8), west=-120, north=50, cell=0.1)
    rasterio.shutil.copy(source, tmp_path / "a.img", driver="HFA", USE_SPILL="YES")
    assert (tmp_path / "a.ige").is_file()
    with pytest.raises(LayerError, match="refers to other files; convert it to GeoTIFF"):
        RasterLayer(tmp_path / "a.img")


def netcdf4(path, values, reference="", target=None):
    """A netCDF-4 file of one variable on a grid of 0.1 degree, as h5py writes it, with a reference to another file."""
    lon, lat = -120 + 0.1 * (np.arange(64) + 0.5), 50 - 0.1 * (np.arange(64) + 0.5)
    with h5py.File(path, "w") as file:
        scales = [file.create_dataset(name, data=axis) for name, axis in (("lat", lat), ("lon", lon))]
        for scale, unit in zip(scales, ("degrees_north", "degrees_east"), strict=True):
            scale.make_scale(scale.name[1:])
            scale.attrs["units"] = np.bytes_(unit)
        if reference == "external storage":
            data = file.create_dataset("bio1", values.shape, "f4", external=[(str(target), 0, values.nbytes)])
        elif reference == "a virtual dataset":
            layout = h5py.VirtualLayout(values.shape, "f4")
            layout[:] = h5py.VirtualSource(str(target), "data", values.shape)
            data = file.create_virtual_dataset("bio1", layout)
        else:
            data = file.create_dataset("bio1", data=values.astype("f4"))
        crs = {"grid_mapping_name": np.bytes_("latitude_longitude")}
        crs |= {"semi_major_axis": 6378137.0, "inverse_flattening": 298.257223563}
        file.create_dataset("crs", data=0).attrs.update(crs)
        data.attrs["grid_mapping"] = np.bytes_("crs")
        for axis, scale in enumerate(scales):
            data.dims[axis].attach_scale(scale)
        if reference == "an external link":
            file.create_group("deep")["inside"] = h5py.ExternalLink(str(target), "/data")
        if reference == "a group in two places":
            file.create_group("deep")["root"] = file["/"]
    return path


def test_an_honest_netcdf4_file_is_read(tmp_path):
    path = netcdf4(tmp_path / "a.nc", np.arange(4096.0).reshape(64, 64))
    assert RasterLayer(path).nearest(np.array([-119.95]), np.array([49.85]))[0] == 64


@pytest.mark.parametrize(
    "reference", ["an external link", "external storage", "a virtual dataset", "a group in two places"]
)
def test_an_hdf5_file_that_refers_to_another_is_refused(tmp_path, reference):
    """GDAL would follow it: to the other file, or in circles until the memory is full."""
    target = tmp_path / "secret"
    with h5py.File(target, "w") as file:
        file["data"] = np.full((64, 64), 42, "f4")
    path = netcdf4(tmp_path / "a.nc", np.ones((64, 64), "f4"), reference, target)
    for read in (RasterLayer, open_sampler):
        with pytest.raises(LayerError, match=f"with {reference}, which .* convert it to GeoTIFF"):
            read(path)


@pytest.mark.parametrize("offset", [0, 512, 2048])
def test_a_damaged_hdf5_file_is_refused(tmp_path, offset):
    path = tmp_path / "a.nc"
    path.write_bytes(bytes(offset) + b"\x89HDF\r\n\x1a\n" + bytes(5000))
    for read in (RasterLayer, open_sampler):
        with pytest.raises(LayerError, match="cannot be read as HDF5"):
            read(path)


# Vector files --------------------------------------------------------------------------------------


def vector_texts(url):
    remote = f"/vsicurl/{url}/x.csv"
    link = {"type": "link", "properties": {"href": f"{url}/crs", "type": "proj4"}}

    def collection(crs, **more):
        return json.dumps({"type": "FeatureCollection", "crs": crs, "features": [FEATURE], **more})

    return {
        "ogrvrt": f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{remote}</SrcDataSource></OGRVRTLayer>'
        "</OGRVRTDataSource>",
        "wfs": f"<OGRWFSDataSource><URL>{url}/wfs</URL></OGRWFSDataSource>",
        "gdalg": json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {remote}"}),
        "link": collection(link),
        "link-url-type": collection({"type": "url", "properties": {"url": f"{url}/crs"}}),
        "link-escaped": collection(link).replace('"crs"', '"\\u0063\\u0072S"', 1),
        "link-last": json.dumps({"features": [FEATURE], "type": "FeatureCollection", "crs": link}),
        "link-in-a-feature": json.dumps({**FEATURE, "crs": link}),
        "link-in-a-geometry": json.dumps({**FEATURE["geometry"], "crs": link}),
        "link-after-a-comment": collection(link).replace('"crs":', '"crs"/* */: // x\n', 1),
        "esrijson": json.dumps({"features": [], "exceededTransferLimit": True, "spatialReference": {"wkt": url}}),
        "jsonfg": json.dumps(
            {
                "type": "FeatureCollection",
                "conformsTo": ["http://www.opengis.net/spec/json-fg-1/0.1/conf/core"],
                "coordRefSys": f"{url}/crs",
                "features": [FEATURE],
            }
        ),
        "named-address": collection({"type": "name", "properties": {"name": f"{url}/crs"}}),
        "kml-link": '<kml xmlns="http://www.opengis.net/kml/2.2"><NetworkLink><Link><href>'
        f"{url}/a.kml</href></Link></NetworkLink></kml>",
        "kml-entity": f'<!DOCTYPE kml [<!ENTITY x SYSTEM "{url}/x">]><kml>&x;</kml>',
        "gml": f'<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/'
        f'XMLSchema-instance" xsi:schemaLocation="x {url}/x.xsd"/>',
    }


REFUSED = [name for name in vector_texts("") if name not in ("jsonfg", "named-address")]


@pytest.mark.parametrize("kind", list(vector_texts("")))
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".kml", ".zip"])
def test_a_vector_file_that_names_an_address(tmp_path, listener, kind, suffix):
    path = tmp_path / f"a{suffix}"
    text = vector_texts(listener.url)[kind]
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.geojson", text)
    else:
        path.write_text(text)
    if kind in REFUSED:
        with pytest.raises(LayerError):
            Region.from_file(path)
    else:  # the address may be ignored as well
        with contextlib.suppress(LayerError):
            Region.from_file(path)
    with pytest.raises(RecordsError):
        read_raw(path)
    assert not listener.heard()


def test_a_text_that_reads_another_file(tmp_path):
    (tmp_path / "secret.csv").write_text('w\n"POLYGON((-120 40,-110 40,-110 50,-120 50,-120 40))"\n')
    (tmp_path / "a.geojson").write_text(
        '<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource relativeToVRT="1">secret.csv</SrcDataSource>'
        '<GeometryType>wkbPolygon</GeometryType><LayerSRS>EPSG:4326</LayerSRS><GeometryField encoding="WKT" field="w"/>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    with pytest.raises(LayerError, match="XML but not KML"):
        Region.from_file(tmp_path / "a.geojson")


@pytest.mark.parametrize("crs", ["EPSG:4326", "urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::4326"])
def test_a_crs_by_its_name_is_read(tmp_path, crs):
    text = {"type": "FeatureCollection", "features": [FEATURE], "crs": {"type": "name", "properties": {"name": crs}}}
    (tmp_path / "a.geojson").write_text(json.dumps(text, indent=1))
    assert Region.from_file(tmp_path / "a.geojson").bounds == (-120, 40, -110, 50)


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.fgb", "a.kml", "a.parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_honest_region_files(tmp_path, name, zipped):
    frame = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[shapely.Polygon(SQUARE)], crs=4326)
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / name
    frame.to_parquet(path) if name == "a.parquet" else frame.to_file(path, driver="KML" if "kml" in name else None)
    if zipped:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as file:
            for member in folder.iterdir():
                file.write(member, f"inside/{member.name}")
    assert Region.from_file(path).bounds == pytest.approx((-120, 40, -110, 50))


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c", "view"),
        ("CREATE TABLE t (fid INTEGER PRIMARY KEY, geom BLOB AS (zeroblob(1000000000)))", "computed columns"),
        ("CREATE VIRTUAL TABLE t USING fts4(a)", "virtual table"),
    ],
)
def test_a_geopackage_that_runs_code(tmp_path, sql, says):
    path = tmp_path / "a.gpkg"
    frame = geopandas.GeoDataFrame(geometry=[shapely.Polygon(SQUARE)], crs=4326)
    frame.to_file(path)
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()
    with pytest.raises(LayerError, match=says):
        Region.from_file(path)
    with pytest.raises(RecordsError, match=says):
        read_raw(path)


def test_command_line(tmp_path, listener):
    """Exit 4 and one sentence, for each kind of file the user can give."""
    region, raster = tmp_path / "a.geojson", tmp_path / "a.tif"
    region.write_text(vector_texts(listener.url)["link"])
    raster.write_text(raster_texts(listener.url)["wmts"])
    box = ["--bbox", "-120", "40", "-110", "50"]
    for given in (["--region", region], [*box, "--satellite", raster], [*box, "--environment", raster]):
        command = [sys.executable, "-m", "sdm", "Ursus arctos", "--resolution", "1", *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 4, done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    assert not listener.heard()
    assert {p.name for p in Path(tmp_path).iterdir()} == {"a.geojson", "a.tif"}
