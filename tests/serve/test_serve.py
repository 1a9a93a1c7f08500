"""The species explorer: answers against the index, a wary server, and the page in a real browser."""

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.warp import Resampling, reproject

from sdm.engine.tile import score_tile
from sdm.errors import RequestError, SpeciesNameError
from sdm.grid import Tile, make_grid
from sdm.index import Index, build_index, plan_index
from sdm.index.encoding import encode
from sdm.models.registry import open_model
from sdm.outputs.overlay import RADIUS, levels, mercator
from sdm.outputs.statistics import summarise
from sdm.serve import state
from sdm.serve.app import MAX_DOWNLOADS, MAX_UPLOAD, MAX_URL, Server, is_loopback, listen, own_names
from sdm.serve.cache import Cache
from sdm.serve.frame import Frame, detail, locate, picture_frame, tile_frame
from sdm.serve.products import BATCH, Packed
from sdm.serve.state import Explorer

ROOT = Path(__file__).parents[2]
COAST = (-126.0, 47.0, -122.0, 50.0)  # Vancouver Island: land, sea and lakes, 60 x 80 pixels
GRIDS = {
    "geographic": ((5, 40, 12, 47), "EPSG:4326", 0.05),
    "antimeridian": ((172, 60, -170, 68), "EPSG:4326", 0.1),
    "projected": ((-160, 58, -140, 68), "EPSG:3338", 20_000.0),
    "mercator": ((5, 40, 12, 47), "EPSG:3857", 8_000.0),
}


def build(path, bbox, resolution, **options):
    """A small real index."""
    job = plan_index(bbox, resolution=resolution, mask="none", **options)
    return build_index(job, path, threads=1)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Path of an index of the coast."""
    path = tmp_path_factory.mktemp("index") / "coast.zarr"
    build(path, COAST, 0.05, tile_size=32)
    return path


@pytest.fixture(scope="session")
def index(saved):
    return Index.open(saved)


@pytest.fixture(scope="session")
def explorer(index):
    explorer = Explorer(index)
    yield explorer
    explorer.close()


# Where pixels are --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", GRIDS)
def test_every_pixel_is_found_at_its_centre(where):
    bbox, crs, resolution = GRIDS[where]
    grid = make_grid(bbox, None, crs, resolution)
    rows, cols = grid.shape
    lon, lat = grid.lonlat(np.arange(rows), np.arange(cols))
    for row, col in np.random.default_rng(0).integers(0, (rows, cols), (60, 2)):
        for turn in (-360.0, 0.0, 360.0):
            r, c, inside = locate(grid, lon[row, col] + np.array([turn]), lat[row, col, None])
            assert (r[0, 0], c[0, 0], inside[0, 0]) == (row, col, True)


@pytest.mark.parametrize("where", GRIDS)
def test_positions_beyond_the_grid_are_outside(where):
    bbox, crs, resolution = GRIDS[where]
    grid = make_grid(bbox, None, crs, resolution)
    west, south, east, north = grid.bbox
    lon, lat = np.array([west - 9, west - 60, east + 9, 0.0 if west > 20 else 120.0]), np.array([south - 6, north + 6])
    assert not locate(grid, lon, np.array([(south + north) / 2]))[2].any()
    assert not locate(grid, np.array([(west + east) / 2]), lat)[2].any()


def test_tiles_have_the_usual_numbers():
    whole = tile_frame(0, 0, 0)
    assert (whole.west, whole.east) == (-180, 180)
    assert (whole.south, whole.north) == pytest.approx((-85.0511287798, 85.0511287798))
    # Zürich, 47.37 N 8.54 E, lies in tile 10/536/358.
    tile = tile_frame(10, 536, 358)
    assert tile.west < 8.54 < tile.east
    assert tile.south < 47.37 < tile.north
    for numbers in ((23, 0, 0), (3, 8, 0), (3, 0, 8)):
        with pytest.raises(RequestError, match="not on the web map"):
            tile_frame(*numbers)


def zone_km2(south, north):
    """Area of WGS 84 between two parallels (Snyder 1987, equation 3-12)."""
    e2 = 0.00669437999014
    e, s = e2**0.5, np.sin(np.radians([south, north]))
    return np.pi * 6378.137**2 * (1 - e2) * np.diff(s / (1 - e2 * s * s) + np.arctanh(e * s) / e).item()


def test_areas_of_a_frame_are_those_of_the_globe():
    rows = Frame(-180.0, -80.0, 180.0, 80.0, (4000, 10)).areas()
    assert rows.sum() * 10 == pytest.approx(zone_km2(-80, 80), rel=1e-4)


def test_tiles_begin_where_a_large_index_needs_them():
    small, large = make_grid(COAST, None, resolution=0.05), make_grid((-130, 30, -90, 60), None, resolution=0.01)
    assert detail(small, picture_frame(small, 2_000_000)) is None
    for pixels in (200_000, 1_000_000, 6_000_000):
        frame = picture_frame(large, pixels)
        found = detail(large, frame)
        assert 360 / (256 * 2**found.last) <= 0.01 < 360 / (256 * 2 ** (found.last - 1))
        assert found.last - 1 <= found.first <= found.last
        assert found.first - 0.5 <= found.zoom <= found.first + 0.5
        assert 360 / (256 * 2**found.zoom) < (frame.east - frame.west) / frame.shape[1]


# Products ----------------------------------------------------------------------------------------


def unit(rng, count, dim):
    x = rng.normal(size=(count, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("encoding", "error"), [("int8", 6e-3), ("float16", 5e-4)])
def test_calls_that_wait_share_a_pass_and_get_their_own_result(encoding, error):
    rng = np.random.default_rng(1)
    places, species = unit(rng, 9001, 64), unit(rng, 3 * BATCH + 5, 64)
    packed = Packed(*encode(places, encoding))
    passes, product = [], packed._product
    packed._product = lambda vectors: passes.append(len(vectors)) or time.sleep(0.05) or product(vectors)
    with ThreadPoolExecutor(len(species)) as pool:
        results = list(pool.map(packed.cosines, species))
    packed.close()
    assert np.abs(np.stack(results) - species @ places.T).max() < error
    assert sum(passes) == len(species)
    assert max(passes) <= BATCH
    assert len(passes) < len(species) / 4


def test_an_error_in_a_pass_reaches_all_and_the_next_works():
    packed = Packed(np.zeros((4, 8), np.int8), np.zeros(4, np.float32))
    product, packed._product = packed._product, lambda vectors: 1 / 0
    with pytest.raises(ZeroDivisionError):
        packed.cosines(np.zeros(8, np.float32))
    packed._product = product
    assert packed.cosines(np.zeros(8, np.float32)).tolist() == [0] * 4
    packed.close()


def test_cache_makes_once_forgets_errors_and_stays_within_bounds():
    cache, made = Cache(100, len), []

    def make(key):
        made.append(key)
        time.sleep(0.05)
        return b"x" * 40

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: cache.get("a", lambda: make("a")), range(8))) == {b"x" * 40}
    assert made == ["a"]
    with pytest.raises(KeyError):
        cache.get("bad", lambda: {}["no"])
    assert cache.get("bad", lambda: b"good") == b"good"
    for key in ("b", "a", "c"):  # 40 + 4 + 40 + 40: the least recently used, which is not "a", must go
        cache.get(key, lambda key=key: make(key))
    assert cache._held <= 100
    made.clear()
    cache.get("a", lambda: make("a"))
    cache.get("b", lambda: make("b"))
    assert made == ["b"]


# Answers against the index -----------------------------------------------------------------------


def warped(array, grid, frame):
    """The levels of a map on a frame by GDAL, an independent way to the same picture."""
    columns, rows = frame.shape[1], frame.shape[0]
    left, right = (np.radians(edge) * RADIUS for edge in (frame.west, frame.east))
    top, bottom = mercator(frame.north), mercator(frame.south)
    out = np.full(frame.shape, np.nan, dtype=np.float32)
    reproject(
        np.asarray(array, dtype=np.float32),
        out,
        src_transform=grid.geobox.affine,
        src_crs=grid.crs,
        src_nodata=np.nan,
        dst_transform=Affine((right - left) / columns, 0, left, 0, (bottom - top) / rows, top),
        dst_crs="EPSG:3857",
        dst_nodata=np.nan,
        resampling=Resampling.nearest,
        tolerance=0.0,
    )
    return levels(out, (0.0, 1.0))


def agree(a, b):
    """Share of equal pixels, and whether modelled ones differ by rounding at most where both are modelled."""
    both = (a > 0) & (b > 0)
    near = np.abs(a.astype(int) - b.astype(int))[both] <= 1
    return ((a > 0) == (b > 0)).mean(), near.mean()


@pytest.mark.parametrize("species", ["Ursus arctos", "Orcinus orca", "Phoca vitulina", "Pseudotsuga menziesii"])
def test_picture_is_the_query_warped_by_gdal(index, explorer, species):
    picture = explorer.picture(species)
    expected = warped(index.query(explorer.job(species).resolutions[0]), index.grid, explorer.frame)
    assert picture.levels.shape == explorer.frame.shape
    assert (expected > 0).mean() > 0.05
    modelled, near = agree(picture.levels, expected)
    assert modelled > 0.999
    assert near > 0.99  # centres that fall on an edge between two pixels may go either way


def test_area_is_that_of_the_full_map(index, explorer):
    for species in ("Ursus arctos", "Orcinus orca"):
        said = explorer.describe(species)
        summary = summarise(index.query(explorer.job(species).resolutions[0]), index.grid.geobox)
        assert said["expected_km2"] == pytest.approx(summary.expected_area_km2, rel=0.01)
        assert said["modelled_km2"] == pytest.approx(summary.modelled_area_km2, rel=0.01)
        assert said["highest"] == pytest.approx(summary.max, abs=1e-3)


@pytest.mark.parametrize("where", ["antimeridian", "projected"])
def test_sampled_picture_and_tiles_of_other_grids(tmp_path, monkeypatch, where):
    bbox, crs, resolution = GRIDS[where]
    index = build(tmp_path / "other.zarr", bbox, resolution, crs=crs, tile_size=32)
    monkeypatch.setattr(state, "HELD_PIXELS", index.grid.pixels // 6)
    explorer = Explorer(index)
    assert len(explorer.pixels.embeddings) < index.grid.pixels / 3
    query = index.query(explorer.job("Ursus arctos").resolutions[0])
    if where == "projected":  # GDAL's warp does not know of longitudes past 180
        modelled, near = agree(explorer.picture("Ursus arctos").levels, warped(query, index.grid, explorer.frame))
        assert min(modelled, near) > 0.99
    first, last = explorer.detail.first, explorer.detail.last
    assert explorer.picture("Ursus arctos").levels.any()
    checked = 0
    west, south, east, north = explorer.info()["bounds"]
    for lon, lat in ((west * 0.7 + east * 0.3, (south + north) / 2), (west * 0.1 + east * 0.9, (south + north) / 2)):
        lon = (lon + 180) % 360 - 180
        for zoom in (first, last):
            x = int((lon + 180) / 360 * 2**zoom)
            y = int((1 - mercator(lat) / (np.pi * RADIUS)) / 2 * 2**zoom)
            tile, frame = explorer.tile("Ursus arctos", zoom, x, y), tile_frame(zoom, x, y)
            lons, lats = frame.lonlat()
            rows, cols, inside = locate(index.grid, lons, lats)
            expected = np.where(inside, levels(query.values, (0, 1))[rows, cols], 0)
            assert (np.abs(tile.astype(int) - expected) <= 1).mean() > 0.999
            assert ((tile > 0) == (expected > 0)).mean() > 0.999
            checked += int((tile > 0).any())
    assert checked >= 2
    with pytest.raises(RequestError, match="no tiles"):
        explorer.tile("Ursus arctos", last + 1, 0, 0)
    explorer.close()


def some_pixels(index, species, count=12):
    values = np.asarray(index.query(species))
    rows, cols = np.nonzero(np.isfinite(values))
    pick = np.random.default_rng(2).integers(0, rows.size, count)
    return values, list(zip(rows[pick], cols[pick], strict=True))


def lonlat_of(index, row, col):
    lon, lat = index.grid.lonlat(np.array([row]), np.array([col]))
    return float(lon[0, 0]), float(lat[0, 0])


def test_a_place_has_the_value_of_the_query(index, explorer):
    values, pixels = some_pixels(index, explorer.job("Ursus arctos").resolutions[0])
    for row, col in pixels:
        answer = explorer.place(*lonlat_of(index, row, col), "Ursus arctos")
        assert (answer["row"], answer["column"]) == (row, col)
        assert answer["species"]["value"] == float(values[row, col])
        parts = [part["cosine"] for part in answer["species"]["parts"]]
        assert [part["modality"] for part in answer["species"]["parts"]] == list(index.modalities)
        assert sum(parts) == pytest.approx(answer["species"]["cosine"], abs=0.02)


def test_parts_are_the_modalities_own_embeddings(index, explorer):
    from sdm.engine.points import embed_places

    lon, lat = lonlat_of(index, 20, 70)
    answer = explorer.place(lon, lat, "Ursus arctos")
    exact = embed_places(explorer.model, np.array([lon]), np.array([lat]))
    length = np.linalg.norm(sum(exact.values()))
    vector = explorer.job("Ursus arctos").plan.targets[0].vector
    for part in answer["species"]["parts"]:
        assert part["cosine"] == pytest.approx(float((exact[part["modality"]] @ vector).item() / length), abs=0.02)


def test_the_likeliest_species_are_the_likeliest(index, explorer):
    taxa = explorer.model.taxa
    lon, lat = lonlat_of(index, 20, 70)
    answer = explorer.place(lon, lat)
    top = {item["name"]: item["value"] for item in answer["top"]}
    assert len(top) == 20
    assert list(top.values()) == sorted(top.values(), reverse=True)
    others = [list(taxa)[k] for k in np.random.default_rng(3).integers(0, len(taxa), 40)]
    for taxon in [taxa.resolve(name).taxon for name in list(top)[:4]] + others:
        value = float(np.asarray(index.query(taxa.resolve(taxon.name)))[20, 70])
        if taxon.name in top:
            assert value == pytest.approx(top[taxon.name], abs=2e-4)
        else:
            assert not value > min(top.values())


def test_a_place_respects_habitat_and_extent(index, explorer):
    sea, land = lonlat_of(index, 45, 5), lonlat_of(index, 20, 70)
    at_sea, on_land = explorer.place(*sea, "Ursus arctos"), explorer.place(*land, "Orcinus orca")
    assert at_sea["modelled"]
    assert at_sea["species"]["value"] is None
    assert on_land["species"]["value"] is None
    assert any(item["name"] == "Orcinus orca" for item in at_sea["top"]) or at_sea["top"]
    assert not {"Ursus arctos", "Canis lupus"} & {item["name"] for item in at_sea["top"]}
    assert explorer.place(-100.0, 20.0, "Ursus arctos") == {
        "lon": -100.0,
        "lat": 20.0,
        "inside": False,
        "modelled": False,
    }


def test_names(explorer):
    assert explorer.suggest("grizz")[0]["name"] == "Ursus arctos"
    assert explorer.suggest("grizz")[0]["matched"] == "grizzly bear"
    assert explorer.suggest("Ursus arctos")[0] == {
        "name": "Ursus arctos",
        "rank": "species",
        "common": "brown bear",
        "matched": "",
    }
    assert explorer.suggest("\x00\x1b[31m") == explorer.suggest("../../etc") == []
    genus = explorer.describe("Ursus")
    assert (genus["name"], genus["rank"]) == ("Ursus", "genus")
    with pytest.raises(SpeciesNameError, match="'Ursus spelaeus' names no species of model mammals-trees"):
        explorer.describe("Ursus spelaeus")
    with pytest.raises(SpeciesNameError):
        explorer.describe("Ursus arctoss")


def test_an_index_of_land_says_what_it_leaves_out(tmp_path):
    job = plan_index(COAST, resolution=0.25, mask="land", each=True)
    explorer = Explorer(build_index(job, tmp_path / "land.zarr", threads=1))
    with pytest.raises(RequestError, match="Orcinus orca is mapped on sea, but this index contains only land"):
        explorer.picture("Orcinus orca")
    seal = explorer.describe("Phoca vitulina")
    assert seal["mask"] == "land"
    assert "contains only land" in seal["notes"][0]
    assert not any("contains only" in note for note in explorer.describe("Ursus arctos")["notes"])
    # Each modality is held here: taken from the index, not encoded again.
    explorer.places._layers = {}
    lon, lat = lonlat_of(explorer.index, 2, 13)
    answer = explorer.place(lon, lat, "Ursus arctos")
    assert [part["modality"] for part in answer["species"]["parts"]] == list(explorer.index.modalities)
    explorer.close()


# HTTP --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(explorer, **options):
    """A server on a free port, in a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start():
        return Server(explorer, listen("127.0.0.1", 0), **options)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture(scope="session")
def server(explorer):
    with running(explorer) as server:
        yield server


def request(server, target, method="GET", headers=None, body=None):
    """(status, headers, body) of one request, sent as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, target, body=body, headers=headers or {})
    response = connection.getresponse()
    result = response.status, response.headers, response.read()
    connection.close()
    return result


def get(server, path, **parameters):
    status, headers, body = request(server, f"/api/{path}?{urlencode(parameters)}")
    return status, (json.loads(body) if "json" in headers["Content-Type"] else body)


def test_map_over_http(server, explorer):
    status, info = get(server, "index")
    assert status == 200
    assert info["bounds"] == pytest.approx(COAST)
    status, species = get(server, "species", name="brown bear")
    assert (status, species["name"], species["how"]) == (200, "Ursus arctos", "common name")
    status, drawn = get(server, "picture", name="brown bear")
    expected = explorer.picture("Ursus arctos").levels
    assert np.array_equal(np.frombuffer(drawn, np.uint8).reshape(info["picture"]), expected)
    status, headers, packed = request(server, "/api/picture?name=brown+bear", headers={"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == drawn
    assert len(packed) < len(drawn) / 2
    status, base = get(server, "basemap")
    assert base["land"]["type"] == "MultiPolygon"
    assert sum(info["row_km2"]) * info["picture"][1] == pytest.approx(zone_km2(47, 50) * 4 / 360, rel=1e-3)


def tile_of(lon, lat, zoom):
    """The tile at a position, and the pixel in it."""
    x = (lon + 180) / 360 * 2**zoom
    y = (1 - mercator(lat) / (np.pi * RADIUS)) / 2 * 2**zoom
    return int(x), int(y), int(x % 1 * 256), int(y % 1 * 256)


@pytest.mark.parametrize("held", ["all", "a sample"])
def test_tiles_for_other_programs(index, monkeypatch, held):
    """Colours where the map has values, and nothing else; at every zoom, from the overview and from the index."""
    if held == "a sample":
        monkeypatch.setattr(state, "HELD_PIXELS", index.grid.pixels // 20)
    explorer = Explorer(index)  # its server closes it
    query = np.asarray(index.query(explorer.job("Ursus arctos").resolutions[0]))
    checked = 0
    with running(explorer) as server:
        for zoom in (0, 5, 8, 11, 16):
            for row, col in np.random.default_rng(zoom).integers(1, (59, 79), (8, 2)):
                x, y, px, py = tile_of(*lonlat_of(index, row, col), zoom)
                status, headers, body = request(server, f"/tiles/brown%20bear/{zoom}/{x}/{y}.png")
                assert (status, headers["Content-Type"]) == (200, "image/png")
                image = Image.open(io.BytesIO(body)).convert("RGBA")
                assert image.size == (256, 256)
                if zoom < 11:  # a pixel of the tile holds several of the index
                    continue
                rgba = image.getpixel((px, py))
                assert (rgba[3] == 0) == bool(np.isnan(query[row, col]))
                if rgba[3]:
                    assert abs(palette_level(rgba) - 1 - 250 * query[row, col]) <= 1.5
                    checked += 1
        far = request(server, "/tiles/brown%20bear/4/15/15.png")[2]
        assert np.asarray(Image.open(io.BytesIO(far)).convert("RGBA"))[..., 3].max() == 0
    assert checked > 5


def test_tiles_of_other_pages_are_for_users_who_allow_them(index, server):
    target, foreign = "/tiles/Ursus%20arctos/5/5/11.png", {"Sec-Fetch-Site": "cross-site"}
    assert request(server, target, headers=foreign)[0] == 403
    with running(Explorer(index), open_tiles=True) as opened:
        status, headers, _ = request(opened, target, headers=foreign | {"Origin": "https://maps.example"})
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert request(opened, "/api/index", headers=foreign)[0] == 403
        assert request(opened, target, headers={"Host": "evil.example"})[0] == 421


def test_download_is_a_cog_of_the_query(server, index, explorer, tmp_path):
    from rio_cogeo import cog_validate

    status, headers, body = request(server, "/api/download?name=brown+bear")
    assert status == 200
    assert headers["Content-Type"].startswith("image/tiff")
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''ursus-arctos.tif"
    path = tmp_path / "bear.tif"
    path.write_bytes(body)
    assert cog_validate(path, quiet=True)[0]
    with rasterio.open(path) as file:
        assert np.array_equal(
            file.read(1), np.asarray(index.query(explorer.job("Ursus arctos").resolutions[0])), equal_nan=True
        )
        assert file.transform == index.grid.geobox.affine
        assert str(file.crs) == index.grid.crs
        tags = file.tags()
        assert tags["species"] == "Ursus arctos"
        assert tags["model_hash"] == open_model("mammals-trees").digest  # the one of the bear
        assert index.digest in tags["notes"]
        assert file.descriptions == ("probability", "uncertainty")
    assert not list(server.folder.iterdir())


def test_downloads_are_bounded(server, monkeypatch):
    monkeypatch.setattr(server, "downloads", MAX_DOWNLOADS)
    status, answer = get(server, "download", name="brown bear")
    assert (status, "downloads are in progress" in answer["error"]) == (503, True)
    monkeypatch.undo()
    assert request(server, "/api/download?name=brown+bear", "HEAD")[0] == 200
    assert get(server, "download", name="nothing like it")[0] == 404


HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("/api/species?name=Ursus+arctoss", 404, "Ursus arctos"),
        ("/api/species?name=Ursus+minimus", 404, "the map of its genus Ursus instead may be wrong"),
        ("/api/species?name=Canis+familiaris", 404, "domestic"),
        ("/api/species", 400, "'name'"),
        ("/api/species?name=a&name=b", 400, "once"),
        ("/api/species?name=" + "x" * 300, 404, "the limit is 200"),
        ("/api/species?name=" + "x" * MAX_URL, 414, "characters"),
        ("/api/species?name=%ff%fe", 400, ""),
        ("/api/species?name=" + quote(HOSTILE), 404, HOSTILE),
        ("/api/place?lon=1", 400, "'lat'"),
        ("/api/place?lon=x&lat=1", 400, "lon must be a number"),
        ("/api/place?lon=nan&lat=1", 400, "lon must be a number"),
        ("/api/place?lon=1&lat=1e999", 400, "lat must be a number"),
        ("/api/tile/3/1/1?name=Ursus+arctos", 400, "no tiles"),
        ("/api/tile/3/1/-1?name=Ursus+arctos", 404, "nothing at this address"),
        ("/tiles/Ursus%20arctoss/3/1/2.png", 404, "Ursus arctos"),
        ("/tiles/Ursus%20arctos/3/8/2.png", 400, "not on the web map"),
        ("/tiles/Ursus%20arctos/23/0/0.png", 400, "zooms are 0..22"),
        ("/tiles/Ursus%20arctos/3/-1/2.png", 404, "nothing at this address"),
        ("/tiles/Ursus%20arctos/3/1/2.png?origin=feral", 400, "feral"),
        ("/tiles/Ursus%20arctos/3/1/2.svg", 404, "nothing at this address"),
        ("/tiles/..%2F..%2Fetc%2Fpasswd/3/1/2.png", 404, "etc/passwd"),
        ("/tiles/%2e%2e/3/1/2.png", 404, ""),
        ("/tiles/../../etc/passwd", 404, "nothing at this address"),
        ("/tiles/%ff%fe/3/1/2.png", 400, ""),
        ("/tiles/%00/3/1/2.png", 404, ""),
        ("/tiles/" + quote(HOSTILE, safe="") + "/3/1/2.png", 404, HOSTILE),
        ("/tiles/" + "x" * 300 + "/3/1/2.png", 404, "the limit is 200"),
        ("/nothing", 404, "nothing at this address"),
        ("/static/../app.py", 404, "nothing"),
        ("/static/..%2fapp.py", 404, "nothing"),
        ("/static/%2e%2e/%2e%2e/errors.py", 404, "nothing"),
        ("//etc/passwd", 404, "nothing"),
        ("/static/", 404, "nothing"),
        ("/../../../../etc/passwd", 404, "nothing"),
    ],
)
def test_bad_requests_get_one_sentence(server, target, status, says):
    got, headers, body = request(server, target)
    assert got == status
    assert headers["Content-Type"].startswith("application/json")
    message = json.loads(body)["error"]
    assert says in message
    assert "Traceback" not in message
    assert message.strip()


@pytest.mark.parametrize("target", ["/", "/static/explorer.js", "/api/index", "/api/species?name=x", "/nothing"])
def test_every_answer_is_sealed(server, target):
    _, headers, _ = request(server, target)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Server" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_reading(server, method):
    status, headers, body = request(server, "/api/index", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert "only reads" in json.loads(body)["error"]


def test_head_has_no_body(server):
    for target in ("/", "/api/index", "/api/picture?name=brown+bear"):
        status, headers, body = request(server, target, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 100


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_other_names_are_refused(server, host):
    for target in ("/", "/api/index", "/static/explorer.js"):
        assert request(server, target, headers={"Host": host})[0] == 421


def test_own_names_are_served(server):
    for host in ("127.0.0.1", f"127.0.0.1:{server.port}", "localhost:9999", "LOCALHOST", f"[::1]:{server.port}"):
        assert request(server, "/api/index", headers={"Host": host})[0] == 200
    anyone = own_names("0.0.0.0")
    assert anyone("192.168.1.7")
    assert anyone(socket.gethostname())
    assert not anyone("evil.example")
    assert not own_names("127.0.0.1")("192.168.1.7")
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_pages_of_other_sites_are_refused(server):
    for site in ("cross-site", "same-site"):
        assert request(server, "/api/place?lon=1&lat=1", headers={"Sec-Fetch-Site": site})[0] == 403
        link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        assert request(server, "/", headers=link)[0] == 200
        assert request(server, "/api/download?name=brown+bear", headers=link)[0] == 403
    assert request(server, "/api/index", headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_a_foreign_origin_is_refused_whatever_else_is_said(server):
    own = f"127.0.0.1:{server.port}"
    for origin in (
        "https://evil.example",
        "null",
        f"http://127.0.0.1:{server.port + 1}",
        "http://",
        f"http://{own}.evil",
    ):
        for more in ({}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}):
            assert request(server, "/api/index", headers={"Origin": origin, **more})[0] == 403
    assert request(server, "/api/index", headers={"Origin": f"http://{own}"})[0] == 200


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("GET /api/species?name=" + "x" * 3000, 414),
        ("GET /" + "x" * 100_000, 414),
        ("GET /api/index HTTP/1.1\r\nHost: localhost\r\nX-Long: " + "x" * 20_000, 431),
        ("GET /api/index HTTP/1.1\r\nHost: localhost\r\n" + "X-Many: yes\r\n" * 2000 + "X: x", 431),
        ("GET /api/index HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + "x" * 5_000_000, 431),
        ("GET /" + "x" * 5_000_000, 431),
        ("POST /api/index HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000", 400),
    ],
    ids=["URL", "long URL", "header", "headers", "endless header", "endless URL", "body"],
)
def test_oversized_requests_get_a_reason(server, start, status):
    text = start if "HTTP/1.1" in start else f"{start} HTTP/1.1\r\nHost: localhost"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"{text}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert request(server, "/api/index")[0] == 200


def test_a_flood_is_turned_away_and_survived(server, explorer, monkeypatch):
    make = explorer.place

    def slow(*arguments):
        time.sleep(0.05)
        return make(*arguments)

    monkeypatch.setattr(explorer, "place", slow)
    with ThreadPoolExecutor(150) as pool:
        status = list(pool.map(lambda k: request(server, f"/api/place?lon=-125&lat=49&k={k}")[0], range(400)))
    assert set(status) == {200, 503}
    assert status.count(200) >= 64
    monkeypatch.undo()
    assert server.waiting == 0
    assert get(server, "place", lon=-125, lat=49)[0] == 200


def test_an_unexpected_failure_is_one_sentence_without_secrets(server, explorer, monkeypatch):
    monkeypatch.setattr(explorer, "describe", lambda *asked: 1 / 0)
    status, answer = get(server, "species", name="brown bear")
    assert (status, list(answer)) == (500, ["error"])
    assert "ZeroDivisionError" in answer["error"]
    assert "/" not in answer["error"]


# The page in a browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(open_browser, tmp_path_factory):
    browser = open_browser("1280,900")
    browser.downloads = tmp_path_factory.mktemp("downloads")
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(browser.downloads)}
    )
    yield browser
    browser.quit()


def until(condition, message="nothing came"):
    deadline = time.time() + 20
    while time.time() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(message)


def text(browser, element):
    return browser.execute_script("return document.getElementById(arguments[0]).innerText", element)


def open_page(browser, server, hash_=""):
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(f"http://127.0.0.1:{server.port}/{hash_}")
    until(lambda: browser.execute_script("return document.documentElement.dataset.ready"), "the page is not ready")


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def show_species(browser, name, expected):
    """Type a name as a user does, wait for the suggestions, and take the first."""
    from selenium.webdriver.common.keys import Keys

    box = browser.find_element("id", "query")
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(name)
    until(lambda: browser.execute_script("return document.querySelectorAll('#suggestions [role=option]').length"))
    box.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    until(lambda: text(browser, "status").startswith(f"Map of {expected}"), "no map")


def pixel_at(browser, lon, lat):
    """RGBA of the picture where the page shows a place: on the canvas, found by where it lies on the screen."""
    return browser.execute_script(
        """
        const [lon, lat] = arguments, canvas = document.querySelector('.leaflet-species-pane canvas');
        const place = window.explorerMap.latLngToContainerPoint([lat, lon]);
        const frame = document.getElementById('map').getBoundingClientRect(), box = canvas.getBoundingClientRect();
        const x = (place.x + frame.left - box.left) / box.width, y = (place.y + frame.top - box.top) / box.height;
        if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) { return null; }
        return [...canvas.getContext('2d').getImageData(
            Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data];
        """,
        lon,
        lat,
    )


def click_map(browser, lon, lat):
    """Click where a place is shown, for real."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    x, y = browser.execute_script(
        """
        window.explorerMap.closePopup();
        const point = window.explorerMap.latLngToContainerPoint([arguments[1], arguments[0]]);
        const frame = document.getElementById('map').getBoundingClientRect();
        return [point.x + frame.left, point.y + frame.top];
        """,
        lon,
        lat,
    )
    actions = ActionBuilder(browser)
    actions.pointer_action.move_to_location(round(x), round(y)).click()
    actions.perform()
    return until(lambda: browser.execute_script("const p = document.querySelector('.popup'); return p && p.innerText"))


def requests(browser):
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "blob:", "chrome:", "about:"))]


def palette_level(rgba):
    from sdm.outputs.overlay import palette

    return int(np.abs(palette()[1:252].astype(int) - rgba[:3]).sum(axis=1).argmin()) + 1


@pytest.mark.browser
def test_type_a_name_and_the_map_lies_where_it_should(browser, server, index, explorer):
    open_page(browser, server)
    show_species(browser, "grizzly", "Ursus arctos")
    assert browser.get_log("browser") == []
    sent = requests(browser)
    assert sent
    assert all(url.startswith(f"http://127.0.0.1:{server.port}/") for url in sent)
    query = np.asarray(index.query(explorer.job("Ursus arctos").resolutions[0]))
    checked = {"modelled": 0, "not": 0}
    # Pixels whose neighbours agree: away from coasts, whose position is known to a screen pixel only.
    for row, col in np.random.default_rng(4).integers(1, (59, 79), (300, 2)):
        near = query[row - 1 : row + 2, col - 1 : col + 2]
        rgba = pixel_at(browser, *lonlat_of(index, row, col))
        if np.isnan(near).all():
            assert rgba[3] == 0
            checked["not"] += 1
        elif np.isfinite(near).all():
            assert rgba[3] == 255
            level = palette_level(rgba)
            low, high = (1 + 250 * extreme for extreme in (near.min(), near.max()))
            assert low - 1.5 <= level <= high + 1.5
            checked["modelled"] += 1
    assert min(checked.values()) > 30
    # The coast: along a row from the Pacific to Vancouver Island the picture begins where the query does.
    row = next(r for r in range(25, 60) if np.isnan(query[r, :3]).all() and np.isfinite(query[r]).any())
    first = int(np.flatnonzero(np.isfinite(query[row]))[0])
    lon, lat = lonlat_of(index, row, first)
    assert pixel_at(browser, lon - 0.04, lat)[3] == 0
    assert pixel_at(browser, lon, lat)[3] == 255


@pytest.mark.browser
def test_click_tells_what_the_query_tells(browser, server, index, explorer):
    open_page(browser, server, "#species=Ursus+arctos")
    query = np.asarray(index.query(explorer.job("Ursus arctos").resolutions[0]))
    middling = np.argwhere((query > 0.1) & (query < 0.9))
    for row, col in middling[:: max(1, len(middling) // 3)][:3]:
        lon, lat = lonlat_of(index, row, col)
        shown = click_map(browser, lon, lat)
        said = float(re.search(r"Probability of Ursus arctos: ([\d.]+)", shown)[1])
        near = query[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        assert abs(said - query[row, col]) < 0.006 or np.nanmin(near) - 0.006 <= said <= np.nanmax(near) + 0.006
        answer = explorer.place(lon, lat, "Ursus arctos")
        until(lambda answer=answer: text(browser, "top").splitlines()[0] in answer["top"][0]["name"])
    parts = browser.execute_script("return [...document.querySelectorAll('#parts li')].map(e => e.innerText)")
    assert [part.split()[0] for part in parts] == list(index.modalities)
    assert "Outside the index" in click_map(browser, -121.7, 48.5)
    assert "Not modelled for Ursus arctos, mapped on land only" in click_map(browser, *lonlat_of(index, 45, 5))


@pytest.mark.browser
def test_the_likeliest_species_can_be_mapped(browser, server, index, explorer):
    open_page(browser, server)
    lon, lat = lonlat_of(index, 20, 70)
    click_map(browser, lon, lat)
    names = "return [...document.querySelectorAll('#top .taxon')].map(e => e.textContent)"
    listed = until(lambda: browser.execute_script(names))
    assert listed == [item["name"] for item in explorer.place(lon, lat)["top"]]
    assert "Most likely here" in browser.find_element("css selector", ".popup").text
    browser.find_elements("css selector", "#top button")[2].click()
    until(lambda: text(browser, "species-name") == listed[2])
    assert browser.find_element("id", "query").get_attribute("value") == listed[2]


@pytest.mark.browser
def test_threshold_and_opacity(browser, server, index, explorer):
    open_page(browser, server, "#species=Ursus+arctos")
    drawn = explorer.picture("Ursus arctos").levels
    count = """
        const canvas = document.querySelector('.leaflet-species-pane canvas');
        const pixels = new Uint32Array(
            canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
        const found = new Map();
        for (const pixel of pixels) { found.set(pixel, (found.get(pixel) ?? 0) + 1); }
        return [...found.values()];
    """
    assert len(browser.execute_script(count)) > 50
    browser.find_element("id", "binary").click()
    slide = """
        const slider = document.getElementById(arguments[0]);
        slider.value = arguments[1]; slider.dispatchEvent(new Event('input', { bubbles: true }));
    """
    for threshold in (0.5, 0.9):
        browser.execute_script(slide, "threshold", threshold)
        least = 1 + round(threshold * 250)
        expected = [(drawn == 0).sum(), (drawn >= least).sum(), ((drawn > 0) & (drawn < least)).sum()]
        assert sorted(browser.execute_script(count)) == sorted(n for n in expected if n)
        area = (explorer.frame.areas()[:, None] * (drawn >= least)).sum()
        said = float(text(browser, "above").split()[0].replace(",", ""))
        assert said == pytest.approx(area, rel=0.006)
        assert f"threshold={threshold:.2f}" in browser.execute_script("return location.hash")
    browser.execute_script(slide, "opacity", 40)
    assert browser.execute_script("return document.querySelector('.leaflet-species-pane').style.opacity") == "0.4"
    browser.find_element("id", "binary").click()
    assert len(browser.execute_script(count)) > 50
    assert "threshold" not in browser.execute_script("return location.hash")


@pytest.mark.browser
def test_an_address_brings_it_all_back(browser, server):
    open_page(browser, server, "#species=brown+bear&view=48.6,-124.5,8.5&threshold=0.3&opacity=60&place=49.5,-124.9")
    state = browser.execute_script("""return {
        view: [window.explorerMap.getCenter().lat, window.explorerMap.getCenter().lng, window.explorerMap.getZoom()],
        binary: document.getElementById('binary').checked, threshold: document.getElementById('threshold').value,
        opacity: document.getElementById('opacity').value, name: document.getElementById('species-name').textContent,
        where: document.getElementById('place-where').textContent,
    }""")
    assert state["view"] == pytest.approx([48.6, -124.5, 8.5], abs=0.01)
    assert (state["binary"], state["threshold"], state["opacity"]) == (True, "0.3", "60")
    assert state["name"] == "Ursus arctos"
    assert state["where"] == "49.5000° N, 124.9000° W"
    show_species(browser, "Orcinus orca", "Orcinus orca")
    browser.back()
    until(lambda: text(browser, "species-name") == "Ursus arctos")


@pytest.mark.browser
def test_download_from_the_page(browser, server, index, explorer):
    open_page(browser, server, "#species=Orcinus+orca")
    browser.find_element("id", "download").click()
    path = browser.downloads / "orcinus-orca.tif"
    until(lambda: path.exists() and "MB" in text(browser, "status"))
    with rasterio.open(path) as file:
        query = index.query(explorer.job("Orcinus orca").resolutions[0])
        assert np.array_equal(file.read(1), np.asarray(query), equal_nan=True)


@pytest.mark.browser
def test_everything_works_without_a_mouse(browser, server):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, server)
    focused = "const e = document.activeElement; return e.id || e.className"
    assert browser.execute_script(focused) == "query"
    press(browser, "moose")
    until(lambda: browser.execute_script("return document.querySelectorAll('#suggestions [role=option]').length"))
    box = browser.find_element("id", "query")
    assert box.get_attribute("aria-expanded") == "true"
    press(browser, Keys.ARROW_DOWN)
    active = box.get_attribute("aria-activedescendant")
    assert "moose" in browser.find_element("id", active).text.lower()
    press(browser, Keys.ENTER)
    until(lambda: text(browser, "status").startswith("Map of Alces alces"))
    assert browser.execute_script("return document.getElementById('suggestions').hidden")
    until(lambda: browser.execute_script("return !document.getElementById('species').hidden"))
    for _ in range(3):  # the box for introduced ranges, where there is one, and the file of records
        press(browser, Keys.TAB)
        if browser.execute_script(focused) == "map":
            break
    assert browser.execute_script(focused) == "map"
    before = browser.execute_script("return window.explorerMap.getZoom()")
    press(browser, "+")
    until(lambda: browser.execute_script("return window.explorerMap.getZoom()") > before)
    press(browser, Keys.ENTER)
    until(lambda: browser.execute_script("return !document.getElementById('place-answer').hidden"))
    reached = set()
    for _ in range(40):
        press(browser, Keys.TAB)
        reached.add(browser.execute_script(focused))
    assert {"download", "binary", "opacity", "centre"} <= reached
    unnamed = browser.execute_script("""
        return [...document.querySelectorAll('input, button, [role=listbox]')].filter(e =>
            !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)""")
    assert unnamed == []


@pytest.mark.browser
def test_hostile_names_and_notes_are_only_seen(browser, server, explorer, monkeypatch):
    hostile = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    open_page(browser, server, f"#species={quote(hostile)}&threshold=<b>&view=<i>")
    assert "window.hacked" in text(browser, "status")
    said = explorer.describe("brown bear") | {"name": hostile, "common": hostile, "notes": [hostile], "file": hostile}
    item = {"name": hostile, "common": hostile, "matched": hostile, "rank": "species"}
    monkeypatch.setattr(explorer, "describe", lambda *name: said)
    monkeypatch.setattr(explorer, "suggest", lambda text: [item])
    monkeypatch.setattr(explorer.places, "likeliest", lambda *a: [item | {"value": 0.5}])
    picture = explorer.picture("brown bear")
    monkeypatch.setattr(explorer, "picture", lambda *name: picture)
    open_page(browser, server, "#species=brown+bear")
    click_map(browser, -123.0, 49.8)
    browser.find_element("id", "query").send_keys("x")
    until(lambda: hostile in text(browser, "suggestions"))
    assert text(browser, "species-name") == hostile
    assert hostile in text(browser, "species-notes")
    until(lambda: hostile in text(browser, "top"))
    assert browser.execute_script("return document.querySelectorAll('body img, body script').length") == 0
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    browser.get_log("browser")
    # And if something did get in, the policy of the page would stop it.
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked=2'; document.body.append(s);"
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.hacked=3\">';"
        "document.body.append(d)"
    )
    time.sleep(0.3)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    browser.get_log("browser")


@pytest.mark.browser
def test_on_a_phone_nothing_sticks_out(browser, server):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        open_page(browser, server, "#species=Ursus+arctos&place=49.5,-124.9")
        wide = browser.execute_script("""
            return [document.documentElement.scrollWidth, innerWidth,
                    document.getElementById('map').getBoundingClientRect().height]""")
        assert wide[0] <= wide[1]
        assert wide[2] >= 300
        small = browser.execute_script("""
            return [...document.querySelectorAll('#top button, #download, #query')].filter(
                e => e.getBoundingClientRect().height < 32).length""")
        assert small == 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_tiles_sharpen_a_sampled_picture(browser, index, explorer, monkeypatch):
    """Zoomed in on an index too large to be held, the page shows its own pixels."""
    monkeypatch.setattr(state, "HELD_PIXELS", index.grid.pixels // 20)
    sampled = Explorer(index)
    with running(sampled) as server:
        last = sampled.detail.last
        open_page(browser, server, f"#species=Ursus+arctos&view=49.0,-123.5,{last}")
        ready = """
            const tiles = [...document.querySelectorAll('.leaflet-species-pane canvas')].filter(c => c.width === 256);
            return tiles.length && tiles.every(c => c.levels);
        """
        until(lambda: browser.execute_script(ready))
        picture = "return document.querySelector('.leaflet-image-layer').style.visibility"
        until(lambda: browser.execute_script(picture) == "hidden")
        query = np.asarray(index.query(explorer.job("Ursus arctos").resolutions[0]))
        found = 0
        for row, col in np.random.default_rng(5).integers(1, (59, 79), (60, 2)):
            lon, lat = lonlat_of(index, row, col)
            rgba = browser.execute_script(
                """
                const map = window.explorerMap, point = map.latLngToContainerPoint([arguments[1], arguments[0]]);
                const frame = map.getContainer().getBoundingClientRect();
                for (const c of document.querySelectorAll('.leaflet-species-pane canvas')) {
                    const b = c.getBoundingClientRect();
                    const x = Math.floor((point.x + frame.left - b.left) / b.width * 256);
                    const y = Math.floor((point.y + frame.top - b.top) / b.height * 256);
                    if (c.width === 256 && x >= 0 && x < 256 && y >= 0 && y < 256) {
                        return [...c.getContext('2d').getImageData(x, y, 1, 1).data];
                    }
                }
                return null;
                """,
                lon,
                lat,
            )
            if rgba is None:
                continue
            found += 1
            if np.isnan(query[row, col]):
                assert rgba[3] == 0
            else:
                assert abs(palette_level(rgba) - 1 - 250 * query[row, col]) <= 1.5
        assert found > 20
    sampled.close()


@pytest.mark.browser
def test_leaflet_shows_the_tiles(browser, index, tmp_path):
    """A page of someone else, with Leaflet and the documented address."""
    assets = ROOT / "sdm" / "outputs" / "assets"
    with running(Explorer(index), open_tiles=True) as server:
        (tmp_path / "page.html").write_text(
            f"""<style>{(assets / "leaflet.css").read_text()} #map {{height: 500px}}</style><div id="map"></div>
            <script>{(assets / "leaflet.js").read_text()}</script><script>
            const map = L.map('map').setView([48.5, -122], 7);
            L.tileLayer('http://127.0.0.1:{server.port}/tiles/{{species}}/{{z}}/{{x}}/{{y}}.png',
                        {{species: 'Ursus arctos'}}).addTo(map);
            </script>"""
        )
        browser.get(f"file://{tmp_path / 'page.html'}")
        loaded = "return document.querySelectorAll('img.leaflet-tile-loaded').length"
        until(lambda: browser.execute_script(loaded) >= 4)
        widths = "return [...document.querySelectorAll('img.leaflet-tile-loaded')].map(i => i.naturalWidth)"
        assert set(browser.execute_script(widths)) == {256}


# The command -------------------------------------------------------------------------------------


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", "from sdm.cli import main_sdm; main_sdm()", "serve", *map(str, arguments), "--no-open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_serves_until_a_signal(saved, number, code):
    process = start(saved, "--port", "0")
    url = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    with urllib.request.urlopen(f"{url}api/species?name=brown+bear", timeout=60) as answer:
        assert json.load(answer)["name"] == "Ursus arctos"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines() == ["Ctrl-C stops.", "stopped."]


def test_command_warns_when_others_can_connect(saved):
    process = start(saved, "--port", "0", "--host", "0.0.0.0")
    url = process.stdout.readline().strip()
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"Species explorer" in answer.read()
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert "warning: with --host 0.0.0.0 anyone who reaches this machine" in err


def test_command_refuses_a_taken_port_in_one_sentence(saved):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(saved, "--port", port)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith(f"error: port {port} of 127.0.0.1 is in use")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("host", ["203.0.113.9", "no.such.host.invalid", "x" * 300, "a\0b"])
def test_hosts_that_are_not_ours_are_refused(host):
    with pytest.raises(RequestError, match="not an address of this machine"):
        listen(host, 0)


# Introduced ranges -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boars(tmp_path_factory, write_model):
    """Explorer of a model that knows the introduced range of one of its two species."""
    folder = tmp_path_factory.mktemp("boars")
    rows = [
        ("Sus scrofa", "Mammalia", "Cetartiodactyla", "Suidae", "mammal", "wild boar"),
        ("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal", "brown bear"),
    ]
    model = write_model(folder / "model", rows, introduced=["Sus scrofa"])
    job = plan_index((5, 45, 8, 47), resolution=0.1, tile_size=16, model=model)
    explorer = Explorer(build_index(job, folder / "alps.zarr", threads=1), model)
    yield explorer
    explorer.close()


def test_the_server_tells_native_from_whole_ranges(boars):
    with running(boars) as server:
        answers = {o: request(server, f"/api/species?name=Sus+scrofa&origin={o}") for o in ("native", "all", "feral")}
        assert [answer[0] for answer in answers.values()] == [200, 200, 400]
        native, whole = (json.loads(answers[origin][2]) for origin in ("native", "all"))
        assert native == json.loads(request(server, "/api/species?name=Sus+scrofa")[2])
        assert (native["origin"], whole["origin"]) == ("native", "all")
        pictures = [request(server, f"/api/picture?name=Sus+scrofa&origin={o}")[2] for o in ("native", "all")]
        assert pictures[0] != pictures[1]
        places = [
            json.loads(request(server, f"/api/place?lon=6.45&lat=46.15&name=Sus+scrofa&origin={o}")[2])
            for o in ("native", "all")
        ]
        assert places[0]["species"]["value"] != places[1]["species"]["value"]
        assert request(server, "/api/place?lon=6.45&lat=46.15&origin=feral")[0] == 400
        file = request(server, "/api/download?name=Sus+scrofa&origin=all")
        assert file[0] == 200 and "sus-scrofa-with-introduced.tif" in file[1]["Content-Disposition"]


@pytest.mark.browser
def test_a_box_shows_where_people_introduced_a_species(browser, boars):
    with running(boars) as server:
        open_page(browser, server, "#species=Sus+scrofa")
        until(lambda: text(browser, "status").startswith("Map of Sus scrofa"))
        assert "native range of Sus scrofa" in text(browser, "species-notes")
        area = text(browser, "expected")
        box = browser.find_element("id", "origin")
        assert box.is_displayed() and not box.is_selected()
        box.click()
        until(lambda: "whole range of Sus scrofa" in text(browser, "species-notes"))
        assert text(browser, "expected") != area and "origin=all" in browser.current_url
        browser.back()
        until(lambda: "native range of Sus scrofa" in text(browser, "species-notes"))
        assert not box.is_selected() and text(browser, "expected") == area
        assert browser.get_log("browser") == []


@pytest.mark.browser
def test_there_is_no_such_box_for_a_model_without_introduced_ranges(browser, server, explorer, monkeypatch):
    monkeypatch.setitem(explorer.model.__dict__, "introduced", frozenset())
    open_page(browser, server)
    assert not browser.find_element("id", "origin").is_displayed()


# Files dropped on the page --------------------------------------------------------------------------


def records(path, name="Testus novus", count=40):
    """A file of records on Vancouver Island, with a row that cannot be used."""
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(-125.6, -124.4, count), rng.uniform(49.0, 49.9, count)
    rows = [f"{name},{x:.4f},{y:.4f}" for x, y in zip(lon, lat, strict=True)] + [f"{name},0,0"]
    path.write_text("\n".join(["species,decimalLongitude,decimalLatitude", *rows]))
    return path


def dropped(server, content, name, **headers):
    given = {"Content-Type": "application/octet-stream", **headers}
    return request(server, f"/api/drop?{urlencode({'file': name})}", "POST", given, content)


def test_a_dropped_file_becomes_a_map(server, index, explorer, tmp_path):
    path = records(tmp_path / "adders.csv")
    status, _, body = dropped(server, path.read_bytes(), path.name)
    assert status == 200, body
    (one,) = json.loads(body)
    assert one["name"] == "Testus novus" and one["quantity"] == "relative suitability"
    assert any("Fitted to" in note for note in one["notes"])
    assert any("adders.csv" in note and "41 rows, 40 kept" in note for note in one["notes"])
    assert "NOT a probability" in one["meaning"]
    assert not list(server.folder.iterdir()), "nothing is left on the disk"
    job = explorer.job(one["query"])
    assert job.fits[0].case is None
    values = score_tile(job.plan, Tile((0, 0), slice(0, 60), slice(0, 80)))[0]
    seen = job.plan.grid.lonlat(np.arange(60), np.arange(80))
    island = (seen[0] > -125.5) & (seen[0] < -124.5) & (seen[1] > 49.0) & (seen[1] < 49.8) & np.isfinite(values)
    assert np.nanmean(values[island]) > np.nanmean(values) + 0.1
    shown = explorer.picture(one["query"])
    assert shown.highest == pytest.approx(np.nanmax(values), abs=0.01)
    lon, lat = float(seen[0][20, 30]), float(seen[1][20, 30])
    told = get(server, "place", lon=lon, lat=lat, name=one["query"])[1]["species"]
    assert told["value"] == pytest.approx(values[20, 30], abs=1e-5) if np.isfinite(values[20, 30]) else True
    assert [t["name"] for t in told["trust"]] == ["uncertainty", "novelty"]
    target = tmp_path / "map.tif"
    target.write_bytes(get(server, "download", name=one["query"])[1])
    with rasterio.open(target) as file:
        assert file.descriptions == ("relative_suitability", "uncertainty", "novelty")
        np.testing.assert_allclose(file.read(1), values, atol=1e-5)
    fit = job.fits[0].fitted.save(tmp_path / "adders.fit.safetensors")
    (again,) = json.loads(dropped(server, fit.read_bytes(), fit.name)[2])
    assert again["query"] != one["query"] and again["highest"] == pytest.approx(one["highest"], abs=1e-6)


def test_a_named_species_tells_its_uncertainty_at_a_place(index, explorer):
    answer = explorer.place(-125.3, 49.6, "Ursus americanus")
    (trust,) = answer["species"]["trust"]
    assert trust["name"] == "uncertainty" and 0 <= trust["value"] <= 1


@pytest.mark.parametrize(
    ("name", "content", "headers", "status", "says"),
    [
        ("a.exe", b"x", {}, 400, "neither records"),
        ("a.csv", b"no,columns\n1,2\n", {}, 400, ""),
        ("a.safetensors", b"\x00" * 64, {}, 400, ""),
        ("a.csv", b"x", {"Content-Type": "text/plain"}, 415, "octet-stream"),
        ("a.csv", b"x", {"Sec-Fetch-Site": "cross-site"}, 403, "other sites"),
        ("a.csv", b"x", {"Origin": "http://evil.example"}, 403, "other sites"),
        ("a.csv", b"x", {"Content-Length": str(MAX_UPLOAD + 1)}, 413, "MB"),
        ("../../etc/passwd", b"x", {}, 400, "neither records"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(server, name, content, headers, status, says):
    got, _, body = dropped(server, content, name, **headers)
    assert got == status, body
    message = json.loads(body)["error"]
    assert says in message and "\n" not in message and str(server.folder) not in message
    assert not list(server.folder.iterdir()) and server.drops == 0


def test_a_species_that_is_no_longer_held_says_so(server):
    status, body = get(server, "species", name="@999")
    assert status == 404 and "drop its file again" in body["error"]


def test_too_many_species_in_a_file(server, tmp_path):
    rows = "\n".join(f"Genus species{chr(97 + k)},-125.{k},49.5" for k in range(9))
    status, _, body = dropped(server, f"species,lon,lat\n{rows}".encode(), "many.csv")
    assert status == 400 and "at most 8" in json.loads(body)["error"]


@pytest.mark.browser
def test_drop_a_file_on_the_page(browser, server, tmp_path):
    open_page(browser, server)
    path = records(tmp_path / "novus.csv", "Novus visus")
    browser.find_element("id", "file").send_keys(str(path))
    until(lambda: text(browser, "species-name") == "Novus visus")
    assert "Relative suitability" in text(browser, "legend-title")
    assert "Fitted to" in text(browser, "species-notes") and "novus.csv" in text(browser, "dropped")
    click_map(browser, -124.9, 49.5)
    until(lambda: "Novelty" in text(browser, "place-trust"))
    show_species(browser, "Ursus americanus", "Ursus americanus")
    until(lambda: "Probability" in text(browser, "legend-title"))
    browser.find_element("css selector", "#dropped button").click()
    until(lambda: text(browser, "species-name") == "Novus visus")
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/dropped.png")
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    browser.find_element("id", "file").send_keys(str(bad))
    until(lambda: "failed" in browser.find_element("id", "status").get_attribute("class"))
    assert text(browser, "species-name") == "Novus visus"
