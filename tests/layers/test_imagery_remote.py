"""Imagery from servers: a local one, well and ill behaved, whose pictures are functions of the place."""

import io
import json
import math
import pickle
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from PIL import Image

from sdm.errors import LayerError
from sdm.layers import fetch, mosaic, redirects
from sdm.layers.fetch import DiskCache, Fetcher, Unusable, redacted
from sdm.layers.imagery import EOX, open_imagery
from sdm.layers.tiles import HALF_WORLD, WMS, XYZ

PLACE = np.array([14.0]), np.array([50.0])


# The server ----------------------------------------------------------------------------------------


class Server:
    """Answers by path: `routes[path]` is a function of the request that returns (status, headers, body).

    `faults[path]`: what to do instead at the first requests for it, in order; "drop" closes the
    connection half-way through the body, "hang up" before any answer.
    """

    def __init__(self):
        self.routes, self.faults, self.log = {}, defaultdict(list), []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = urlsplit(self.path).path
                with server.lock:
                    server.log.append((self.path, {**self.headers, "Method": self.command}, time.monotonic()))
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                    fault = server.faults[path].pop(0) if server.faults[path] else None
                try:
                    self.answer(path, fault)
                finally:
                    with server.lock:
                        server.busy -= 1

            def answer(self, path, fault):
                if fault == "hang up":
                    self.close_connection = True
                    return
                route = next((f for p, f in server.routes.items() if re.fullmatch(p, path)), None)
                status, headers, body = (404, {}, b"") if route is None else route(self)
                if isinstance(fault, tuple):
                    status, headers, body = fault
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "drop":
                    self.wfile.write(body[: len(body) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def paths(self):
        return [path for path, _, _ in self.log]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PER_SECOND", 500.0)
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Short first pauses: what is tested is that they grow, are obeyed and end."""
    monkeypatch.setattr(Fetcher.__init__, "__kwdefaults__", {**Fetcher.__init__.__kwdefaults__, "patience": 0.01})


def colour_of(lon, lat):
    """(rows, columns, 3) uint8: waves of 0.09 degrees, so that a tenth of a pixel shows and nothing repeats nearby."""
    a, b = np.radians(lon), np.radians(lat)
    waves = (np.sin(a * 4000), np.cos(b * 4000), np.sin(a * 3000 + b * 2000))
    return np.rint(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def mercator(x, y):
    """EPSG:3857 metres to degrees, by its formula."""
    radius = HALF_WORLD / math.pi
    return np.degrees(x / radius), np.degrees(2 * np.arctan(np.exp(y / radius)) - math.pi / 2)


def picture(lon, lat, form="PNG"):
    body = io.BytesIO()
    Image.fromarray(colour_of(lon, lat)).save(body, form)
    return 200, {"Content-Type": f"image/{form.lower()}"}, body.getvalue()


def xyz_tile(request, side=256):
    z, x, y = map(int, re.findall(r"\d+", request.path)[:3])
    size = 2 * HALF_WORLD / 2**z
    offset = (np.arange(side) + 0.5) / side * size
    return picture(*mercator(*np.meshgrid(-HALF_WORLD + x * size + offset, HALF_WORLD - y * size - offset)))


def expected_at(lon, lat, size=256, pitch=10.0):
    """The crop by PROJ and the function of the place."""
    offset = (np.arange(size) - (size - 1) / 2) * pitch
    east, north = np.meshgrid(offset, -offset)
    pipeline = (
        f"+proj=pipeline +step +inv +proj=topocentric +ellps=WGS84 +lon_0={lon} +lat_0={lat} +h_0=0 "
        "+step +inv +proj=cart +ellps=WGS84 +step +proj=unitconvert +xy_in=rad +xy_out=deg"
    )
    x, y, _ = pyproj.Transformer.from_pipeline(pipeline).transform(east, north, np.zeros_like(east))
    return colour_of(x, y)


def assert_shows(crop, lon, lat, worst=3):
    error = np.abs(crop.astype(int) - expected_at(lon, lat).astype(int))
    assert error.max() <= worst
    assert error.mean() < 0.7


# XYZ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "/{z}/{x}/{y}.png",
        "/a?z={z}&x={x}&y={y}&key=S3CRET",
        "/wmts/g/{TileMatrix}/{TileCol}/{TileRow}.png",
        "/tms/{z}/{x}/{-y}",
    ],
)
def test_tiles_show_the_place(server, tmp_path, pattern):
    def tile(request):
        if request.path.startswith("/tms"):
            z, x, y = map(int, re.findall(r"\d+", request.path))
            request.path = f"/{z}/{x}/{2**z - 1 - y}"
        return xyz_tile(request)

    server.routes[r"/.*"] = tile
    imagery = open_imagery(server.url + pattern, cache_dir=tmp_path)
    assert server.log == []
    lon, lat = np.array([14.0, -70.123, 179.9999, -180.0, 25.0]), np.array([50.0, -33.3, -17.0, 65.0, 84.0])
    crops, known = imagery.read(lon, lat)
    assert known.all()
    for k in range(lon.size):
        # East-west waves are shorter on the ground near the pole, and tiles there finer than a pixel.
        assert_shows(crops[k], lon[k], lat[k], worst=3 if lat[k] < 80 else 6)
    assert all(agent["User-Agent"].startswith("taxabind-map/") for _, agent, _ in server.log)
    assert len(server.paths()) == len(set(server.paths()))
    assert "S3CRET" not in imagery.describe()
    assert "EPSG" not in imagery.attribution


def test_nothing_is_asked_twice_and_offline_nothing_at_all(server, tmp_path):
    server.routes[r"/\d+/\d+/\d+\.png"] = xyz_tile
    spec = server.url + "/{z}/{x}/{y}.png"
    first = open_imagery(spec, cache_dir=tmp_path).crops(*PLACE)
    asked = len(server.log)
    assert 1 <= asked <= 9
    for offline in (False, True):
        assert np.array_equal(open_imagery(spec, cache_dir=tmp_path, offline=offline).crops(*PLACE), first)
    again = pickle.loads(pickle.dumps(open_imagery(spec, cache_dir=tmp_path)))
    assert np.array_equal(again.crops(*PLACE), first)
    assert len(server.log) == asked
    with pytest.raises(LayerError, match=r"not in the cache and --offline"):
        open_imagery(spec, cache_dir=tmp_path, offline=True).crops(PLACE[0] + 1, PLACE[1])
    assert len(server.log) == asked
    # Damaged on disk: fetched again, and mended.
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:200])
    assert np.array_equal(open_imagery(spec, cache_dir=tmp_path).crops(*PLACE), first)
    assert len(server.log) == 2 * asked


def test_where_a_server_has_no_tile_nothing_is_known(server, tmp_path):
    def tile(request):
        x = int(re.findall(r"\d+", request.path)[1])
        return (404, {}, b"none here") if x >= 8829 else xyz_tile(request)

    server.routes[r"/\d+/\d+/\d+\.png"] = tile
    spec = server.url + "/{z}/{x}/{y}.png"
    edge = 8829 / 2**14 * 360 - 180
    lon, lat = np.array([edge - 0.005, edge + 0.005, edge + 0.1]), np.full(3, 10.0)
    for _ in range(2):  # the second time from the cache
        imagery = open_imagery(spec, cache_dir=tmp_path)
        crops, known = imagery.read(lon, lat)
        assert known.tolist() == imagery.known(lon, lat).tolist() == [True, False, False]
        asked = len(server.log)
        assert not crops[1:].any()
        # East of the last tile, the mean of the rest.
        assert len(np.unique(crops[0][:, -20:].reshape(-1, 3), axis=0)) == 1
    assert len(server.log) == asked


def test_levels_follow_the_pitch(server, tmp_path):
    server.routes[r"/\d+/\d+/\d+\.png"] = xyz_tile
    spec = server.url + "/{z}/{x}/{y}.png"

    def levels(lat, suffix="", **options):
        server.log.clear()
        open_imagery(spec + suffix, cache_dir=tmp_path / f"{lat}{suffix}{options}", **options).crops(
            PLACE[0], np.array([lat])
        )
        return {int(p.split("/")[1]) for p in server.paths()}

    assert levels(0.0) == {14}  # 9.6 m
    assert levels(45.0) == {14}  # 6.8 m; 13 would be 13.5 m
    assert levels(60.5) == {13}  # 9.4 m
    assert levels(0.0, pitch=40.0) == {12}
    assert levels(0.0, "#maxzoom=11") == {11}


def test_tiles_of_512_pixels(server, tmp_path):
    server.routes[r"/\d+/\d+/\d+\.png"] = lambda r: xyz_tile(r, 512)
    spec = server.url + "/{z}/{x}/{y}.png"
    with pytest.raises(LayerError, match=r"512 x 512 pixels, not 256.*#tilesize"):
        open_imagery(spec, cache_dir=tmp_path / "a").crops(*PLACE)
    assert_shows(open_imagery(spec + "#tilesize=512", cache_dir=tmp_path / "b").crops(*PLACE)[0], 14.0, 50.0)
    assert {p.split("/")[1] for p in server.paths()} == {"14", "13"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("https://h/{z}/{x}/{y}?key={apikey}", r"placeholder \{apikey\}"),
        ("https://h/{z}/{x}.png", "must have"),
        ("ftp://h/{z}/{x}/{y}.png", "not http or https"),
        ("file:///etc/{z}/{x}/{y}", "not http or https"),
        ("http://[::1/{z}/{x}/{y}", "not http or https"),
        ("http://h:99999/a.tif", "not http or https"),
        ("s3://bucket/a.tif", "not http or https"),
        ("https://h/wms?layers=", "names no layer"),
        ("https://h/wms?layers=a&version=2.0", "version"),
        ("https://h/wms?layers=a&crs=EPSG:2056", "EPSG:3857 or EPSG:4326"),
        ("https://h/wms?layers=a&format=image/tiff", "image/jpeg or image/png"),
    ],
)
def test_addresses_that_are_refused(spec, words):
    with pytest.raises(LayerError, match=words):
        open_imagery(spec)


# WMS -----------------------------------------------------------------------------------------------


def wms(request):
    """GetMap as the standards have it: in 1.3.0 a box in EPSG:4326 is latitude first."""
    query = {k.lower(): v[0] for k, v in parse_qs(urlsplit(request.path).query, keep_blank_values=True).items()}
    assert query["request"] == "GetMap"
    assert query["service"] == "WMS"
    assert query["layers"] == "s2"
    assert "styles" in query
    crs = query["crs" if query["version"] == "1.3.0" else "srs"]
    a, b, c, d = map(float, query["bbox"].split(","))
    west, south, east, north = (b, a, d, c) if query["version"] == "1.3.0" and crs == "EPSG:4326" else (a, b, c, d)
    assert west < east
    assert south < north
    x = west + (np.arange(int(query["width"])) + 0.5) / int(query["width"]) * (east - west)
    y = north - (np.arange(int(query["height"])) + 0.5) / int(query["height"]) * (north - south)
    lon, lat = np.meshgrid(x, y)
    if crs == "EPSG:3857":
        lon, lat = mercator(lon, lat)
    return picture(lon, lat, query["format"].partition("/")[2].upper())


@pytest.mark.parametrize(
    "query",
    [
        "layers=s2&format=image/png",
        "LAYERS=s2&VERSION=1.3.0&FORMAT=image/png",
        "layers=s2&version=1.3.0&crs=EPSG:4326&format=image/png",
        "layers=s2&version=1.1.1&srs=EPSG:4326&format=image/png&token=S3CRET",
        "layers=s2&version=1.3.0&crs=CRS:84&format=image/png",
    ],
)
def test_wms_shows_the_place(server, tmp_path, query):
    server.routes["/wms"] = wms
    imagery = open_imagery(f"{server.url}/wms?{query}", cache_dir=tmp_path)
    lon, lat = np.array([14.0, -179.999, 100.5]), np.array([50.0, -17.0, 71.3])
    crops, known = imagery.read(lon, lat)
    assert known.all()
    for k in range(3):
        assert_shows(crops[k], lon[k], lat[k], worst=4)
    assert "S3CRET" not in imagery.describe()
    assert ("S3CRET" in server.paths()[0]) == ("S3CRET" in query)


def test_what_a_wms_complains_of_is_said(server, tmp_path):
    text = b"<R><ServiceException code='X'>Layer s3 \x1b[31mnot known</ServiceException></R>"
    server.routes["/wms"] = lambda r: (200, {"Content-Type": "application/vnd.ogc.se_xml"}, text)
    with pytest.raises(LayerError, match=r"instead of an image \(Layer s3 \[31mnot known\)") as caught:
        open_imagery(f"{server.url}/wms?layers=s3&token=S3CRET", cache_dir=tmp_path).crops(*PLACE)
    assert "S3CRET" not in str(caught.value)
    assert len(server.log) <= 4  # not asked again


# Manners -------------------------------------------------------------------------------------------


def fetched(server, tmp_path, **options):
    return Fetcher(tmp_path, **options).get(f"{server.url}/x", lambda body, kind: body, max_bytes=1000)


def test_a_busy_server_is_given_the_time_it_asks_for(server, tmp_path):
    server.routes["/x"] = lambda r: (200, {}, b"here")
    server.faults["/x"] = [(429, {"Retry-After": "1"}, b""), (503, {}, b""), (500, {}, b"")]
    assert fetched(server, tmp_path) == b"here"
    times = [t for _, _, t in server.log]
    assert len(times) == 4
    assert 1.0 <= times[1] - times[0] < 3.0


def test_all_of_a_hosts_requests_wait(server):
    server.routes["/[xy]"] = lambda r: (200, {}, b"here")
    server.faults["/x"] = [(429, {"Retry-After": "1"}, b"")]
    fetcher = Fetcher()
    slow = threading.Thread(target=lambda: fetcher.get(f"{server.url}/x", lambda b, k: b, max_bytes=10))
    slow.start()
    while not server.log:
        time.sleep(0.01)
    time.sleep(0.1)
    fetcher.get(f"{server.url}/y", lambda b, k: b, max_bytes=10)
    slow.join()
    assert server.log[1][2] - server.log[0][2] > 0.9


def test_a_date_to_wait_for(server, tmp_path):
    server.routes["/x"] = lambda r: (200, {}, b"here")
    server.faults["/x"] = [
        (503, {"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"}, b""),
        (503, {"Retry-After": "soon"}, b""),
    ]
    assert fetched(server, tmp_path) == b"here"


def test_too_long_a_wait_ends_the_map(server, tmp_path):
    server.faults["/x"] = [(429, {"Retry-After": "86400"}, b"")]
    start = time.monotonic()
    with pytest.raises(LayerError, match="asks to wait 86400 s "):
        fetched(server, tmp_path)
    assert time.monotonic() - start < 2
    assert len(server.log) == 1


@pytest.mark.parametrize("fault", ["drop", "hang up"])
def test_dropped_connections_are_tried_again(server, tmp_path, fault):
    server.routes["/x"] = lambda r: (200, {}, b"0123456789" * 10)
    server.faults["/x"] = [fault] * 3
    assert fetched(server, tmp_path) == b"0123456789" * 10
    server.faults["/x"] = [fault] * 50
    with pytest.raises(LayerError, match="in 5 attempts"):
        fetched(server, tmp_path / "other")


def test_a_connection_dropped_in_a_tile_without_its_length(server, tmp_path):
    """Nothing but the image itself tells that it is not whole."""
    server.routes[r"/\d+/\d+/\d+\.png"] = xyz_tile
    spec = server.url + "/{z}/{x}/{y}.png"
    whole = open_imagery(spec, cache_dir=tmp_path / "a").crops(*PLACE)
    path = server.paths()[0]
    body = xyz_tile(type("R", (), {"path": path}))[2]
    server.faults[path] = [(200, {"Content-Length": 300, "Content-Type": "image/png"}, body[:300])]
    assert np.array_equal(open_imagery(spec, cache_dir=tmp_path / "b").crops(*PLACE), whole)
    assert server.paths().count(path) == 3


@pytest.mark.parametrize(("status", "words"), [(403, "key or token"), (401, "key or token"), (400, "status 400")])
def test_refusals_are_not_argued_with(server, tmp_path, status, words):
    server.routes["/x"] = lambda r: (status, {}, b"no")
    with pytest.raises(LayerError, match=words):
        fetched(server, tmp_path)
    assert len(server.log) == 1


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "data:,x"])
def test_redirects_to_other_schemes_are_refused(server, tmp_path, where):
    server.routes["/x"] = lambda r: (302, {"Location": where}, b"")
    with pytest.raises(LayerError, match="not http or https"):
        fetched(server, tmp_path)


def test_redirects(server, tmp_path):
    server.routes["/x"] = lambda r: (302, {"Location": "/y"}, b"")
    server.routes["/y"] = lambda r: (200, {}, b"there")
    assert fetched(server, tmp_path) == b"there"
    server.routes["/y"] = lambda r: (302, {"Location": "/x"}, b"")
    with pytest.raises(LayerError, match="without end"):
        fetched(server, tmp_path / "other")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost/x", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://127.1/x", True),
        ("http://2130706433/x", True),
        ("http://0x7f.0.0.1/x", True),
        ("http://[::1]/x", True),
        ("http://[::ffff:127.0.0.1]/x", True),
        ("http://[fe80::1%25lo]/x", True),
        ("http://169.254.169.254/latest/meta-data", True),
        ("http://0.0.0.0/x", True),
        ("http://10.0.0.1/x", True),
        ("http://192.168.1.1/x", True),
        ("http://8.8.8.8/x", False),
        ("http://[2001:4860:4860::8888]/x", False),
        ("http:///x", False),
    ],
)
def test_what_counts_as_an_address_of_this_machine(url, local):
    assert redirects.is_local(url) == local


@pytest.fixture
def in_the_network(monkeypatch):
    """127.0.0.1 stands for a server in the network; localhost stays this machine."""
    real = redirects.is_local
    monkeypatch.setattr(redirects, "is_local", lambda url: "//127.0.0.1" not in url and real(url))


@pytest.mark.parametrize("where", ["http://localhost:{port}/y", "http://169.254.169.254/y", "//[::1]:{port}/y"])
def test_the_network_leads_nobody_into_this_machine(server, tmp_path, in_the_network, where):
    address = where.format(port=server.http.server_address[1])
    server.routes["/x"] = lambda r: (302, {"Location": "/turn"}, b"")
    server.routes["/turn"] = lambda r: (302, {"Location": address}, b"")
    server.routes["/y"] = lambda r: (200, {}, b"secret")
    with pytest.raises(LayerError, match="an address of this machine or its own network; refused"):
        fetched(server, tmp_path)
    assert server.paths() == ["/x", "/turn"]
    address = address if address.startswith("http") else f"http:{address}"
    server.routes["/one.json"] = lambda r: (200, {}, json.dumps(item(address)).encode())
    with pytest.raises(LayerError, match="an address of this machine or its own network; refused"):
        open_imagery(f"{server.url}/one.json")
    assert "/y" not in server.paths()


def test_threads_that_want_the_same_file_ask_once(server, tmp_path):
    def slow(request):
        time.sleep(0.2)
        return 200, {}, b"x"

    server.routes["/x"] = slow
    fetcher = Fetcher(tmp_path)
    threads = [
        threading.Thread(target=fetcher.get, args=(f"{server.url}/x", len_of), kwargs={"max_bytes": 9})
        for _ in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(server.log) == 1


def len_of(body, kind):
    return len(body)


def test_answers_that_are_too_long(server, tmp_path):
    server.routes["/x"] = lambda r: (200, {}, bytes(1001))
    with pytest.raises(LayerError, match="more than 1,000 bytes"):
        fetched(server, tmp_path)


def test_a_drip_of_bytes_ends(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 0.2)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)

    def drip(request):
        request.send_response(200)
        request.send_header("Content-Length", "900")
        request.end_headers()
        for _ in range(30):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.05)
        return 200, {}, b""

    server.routes["/x"] = drip
    monkeypatch.setattr(fetch, "READ_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(LayerError, match="in 2 attempts"):
        fetched(server, tmp_path)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_answers_of_another_kind(server, tmp_path, kind):
    server.routes[r"/\d+/\d+/\d+"] = lambda r: (200, {"Content-Type": kind}, b"<p>Log in</p>")
    with pytest.raises(LayerError, match=f"sent {kind} instead of an image"):
        open_imagery(server.url + "/{z}/{x}/{y}", cache_dir=tmp_path).crops(*PLACE)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def huge():
    """A PNG that says it has 60,000 x 60,000 pixels."""
    body = io.BytesIO()
    Image.new("RGB", (1, 1)).save(body, "PNG")
    raw = bytearray(body.getvalue())
    raw[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    return bytes(raw)


def gif():
    body = io.BytesIO()
    Image.new("RGB", (256, 256)).save(body, "GIF")
    return body.getvalue()


@pytest.mark.parametrize(
    ("body", "words"), [(huge(), "60000|Bomb"), (gif(), "not a complete"), (b"\x89PNG", "not a complete")]
)
def test_images_that_are_refused(server, tmp_path, body, words):
    server.routes[r"/\d+/\d+/\d+"] = lambda r: (200, {"Content-Type": "image/png"}, body)
    with pytest.raises(LayerError, match=words):
        open_imagery(server.url + "/{z}/{x}/{y}", cache_dir=tmp_path).crops(*PLACE)


def test_few_connections_and_a_pace(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PER_SECOND", 50.0)

    def slow(request):
        time.sleep(0.15)
        return xyz_tile(request)

    server.routes[r"/\d+/\d+/\d+\.png"] = slow
    lon = 14.0 + np.arange(12) * 0.1
    open_imagery(server.url + "/{z}/{x}/{y}.png", cache_dir=tmp_path).read(lon, np.full(12, 50.0))
    assert len(server.log) > 30
    assert 2 <= server.busiest <= 4
    times = sorted(t for _, _, t in server.log)
    assert len(times) / (times[-1] - times[0]) < 55


def test_many_threads_still_make_few_connections(server, tmp_path):
    def slow(request):
        time.sleep(0.05)
        return 200, {}, b"x"

    server.routes[r"/\d+"] = slow
    fetcher = Fetcher()
    threads = [
        threading.Thread(target=fetcher.get, args=(f"{server.url}/{k}", lambda b, t: b), kwargs={"max_bytes": 9})
        for k in range(24)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(server.log) == 24
    assert server.busiest <= 4


# The cache -----------------------------------------------------------------------------------------


def test_the_cache_stays_small_and_keeps_what_is_used(tmp_path):
    cache = DiskCache(tmp_path, limit=20_000)
    for k in range(60):
        cache.put(f"k{k}", bytes([k]) * 1000)
        time.sleep(0.002)
        assert cache.get("k0") == b"\0" * 1000
    sizes = [p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()]
    assert sum(sizes) <= 20_000
    assert len(sizes) >= 15
    assert cache.get("k59") == bytes([59]) * 1000
    assert cache.get("k1") is None
    # Another process finds what is there, and counts it.
    other = DiskCache(tmp_path, limit=5_000)
    assert other.get("k59") is not None
    other.put("new", b"y" * 1000)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 5_000


def test_that_there_is_nothing_is_believed_for_a_week(tmp_path):
    import os

    cache = DiskCache(tmp_path, limit=1000)
    cache.put("k", b"")
    assert cache.get("k") == b""
    old = time.time() - 8 * 86400
    os.utime(cache.path("k"), (old, old))
    assert cache.get("k") is None


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LayerError, match=r"cache folder .*--cache-dir"):
        DiskCache(tmp_path / "file", limit=1000).put("k", b"x")


def test_many_writers_of_one_entry(tmp_path):
    caches = [DiskCache(tmp_path, limit=10**6) for _ in range(8)]
    seen = []

    def work(k):
        for _ in range(50):
            caches[k].put("k", bytes([k]) * 5000)
            seen.append(caches[k].get("k"))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(len(v) == 5000 and len(set(v)) == 1 for v in seen)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1


def test_addresses_are_shown_without_their_secrets():
    text = redacted("https://me:pw@h.org:8443/a/b?layers=x&API_KEY=1&access_token=2&sig=3&time=2020#frag")
    assert text == "https://h.org:8443/a/b?layers=x&API_KEY=...&access_token=...&sig=...&time=2020"
    assert redacted("https://h/{z}/{x}/{y}.png?z={z}") == "https://h/{z}/{x}/{y}.png?z={z}"


# COGs ----------------------------------------------------------------------------------------------


@pytest.fixture
def cog(tmp_path):
    """A tiled GeoTIFF of 8 km around the place, large enough that it is not read whole."""
    to_utm = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True)
    x, y = to_utm.transform(14.0, 50.0)
    c, r = np.meshgrid(np.arange(1600) + 0.5, np.arange(1600) + 0.5)
    lon, lat = to_utm.transform(x - 8000 + 10 * c, y + 8000 - 10 * r, direction="INVERSE")
    values = np.moveaxis(colour_of(lon, lat), 2, 0)
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path,
        "w",
        driver="COG",
        count=3,
        height=1600,
        width=1600,
        dtype="uint8",
        crs="EPSG:32633",
        transform=Affine(10, 0, x - 8000, 0, -10, y + 8000),
        compress="deflate",
        blocksize=256,
    ) as dst:
        dst.write(values)
    return path


def serve(path):
    """A route that serves a file and answers to Range."""
    body = Path(path).read_bytes()

    def route(request):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not wanted:
            return 200, {"Accept-Ranges": "bytes"}, body
        first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
        return (
            206,
            {"Content-Range": f"bytes {first}-{last}/{len(body)}", "Accept-Ranges": "bytes"},
            body[first : last + 1],
        )

    return route


def test_a_cog_is_read_in_parts(server, cog, tmp_path):
    server.routes[r"/deep/scene\.tif"] = serve(cog)
    url = f"{server.url}/deep/scene.tif"
    imagery = open_imagery(url, cache_dir=tmp_path)
    assert len(server.log) <= 4
    crops, known = imagery.read(np.array([14.0, 14.01, 20.0]), np.array([50.0, 50.0, 50.0]))
    assert known.tolist() == [True, True, False]
    assert np.array_equal(crops, open_imagery(cog).crops(np.array([14.0, 14.01, 20.0]), np.array([50.0, 50.0, 50.0])))
    assert_shows(crops[0], 14.0, 50.0)
    sent = 0
    for _, headers, _ in server.log:
        if headers["Method"] == "HEAD":
            continue
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"]).groups()
        sent += int(last) - int(first) + 1
    assert sent < 0.6 * cog.stat().st_size
    assert {path for path, _, _ in server.log} == {"/deep/scene.tif"}  # no .ovr, .aux.xml, .msk
    assert all(h["User-Agent"].startswith("taxabind-map/") for _, h, _ in server.log)
    assert imagery.fingerprint() == open_imagery(url).fingerprint()
    with pytest.raises(LayerError, match="forbids"):
        open_imagery(url, offline=True)


def test_a_cog_over_a_bad_line(server, cog, monkeypatch):
    """Dropped and refused in the middle of reading, with an address GDAL has not seen yet."""
    monkeypatch.setitem(mosaic.HTTP, "GDAL_HTTP_RETRY_DELAY", "0.05")
    server.routes[r"/bad\.tif"] = serve(cog)
    imagery = open_imagery(f"{server.url}/bad.tif")
    server.faults["/bad.tif"] = [(503, {}, b""), "drop", (429, {}, b""), "hang up"]
    crop = imagery.crops(*PLACE)
    assert np.array_equal(crop, open_imagery(cog).crops(*PLACE))
    assert not server.faults["/bad.tif"]


def test_servers_without_what_is_needed(server, cog):
    body = cog.read_bytes()
    server.routes["/whole.tif"] = lambda r: (200, {}, body)
    with pytest.raises(LayerError, match="does not send parts"):
        open_imagery(f"{server.url}/whole.tif")
    server.routes["/page.tif"] = lambda r: (200, {"Content-Type": "text/html"}, b"<html>sign in</html>")
    with pytest.raises(LayerError, match=r"not a GeoTIFF.*text/html"):
        open_imagery(f"{server.url}/page.tif")
    with pytest.raises(LayerError, match="does not exist"):
        open_imagery(f"{server.url}/none.tif?sig=S3CRET")
    vrt = b"<VRTDataset rasterXSize='9' rasterYSize='9'><SRS>EPSG:4326</SRS></VRTDataset>"
    server.routes["/a.tif"] = lambda r: (206, {}, vrt)
    with pytest.raises(LayerError, match="not a GeoTIFF"):
        open_imagery(f"{server.url}/a.tif")


def test_a_cog_that_redirects_to_a_file_reads_no_file(server, cog, tmp_path):
    """First a raster, so that it passes; then the server sends GDAL to a file of this machine."""
    route = serve(cog)
    server.routes["/turn.tif"] = route
    imagery = open_imagery(f"{server.url}/turn.tif")
    server.routes["/turn.tif"] = lambda r: (302, {"Location": f"file://{cog}"}, b"")
    with pytest.raises(LayerError, match="cannot be read"):
        imagery.crops(np.array([14.09]), np.array([50.06]))


# STAC ----------------------------------------------------------------------------------------------


def item(href, name="scene-1", **more):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "bbox": [13.8, 49.9, 14.2, 50.1],
        "properties": {"license": "CC-BY-4.0", "providers": [{"name": "ESA"}]},
        "assets": {"thumbnail": {"href": "t.jpg"}, "visual": {"href": href}},
        **more,
    }


def test_stac_item_over_http(server, cog):
    server.routes[r"/items/scene\.tif"] = serve(cog)
    server.routes[r"/items/one(\.json)?"] = lambda r: (
        200,
        {"Content-Type": "application/geo+json"},
        json.dumps(item("scene.tif")).encode(),
    )
    for address in ("/items/one.json", "/items/one", "/items/one#visual", "/items/one#asset=visual"):
        imagery = open_imagery(server.url + address)
        assert_shows(imagery.crops(*PLACE)[0], 14.0, 50.0)
        assert imagery.attribution == "ESA; CC-BY-4.0"
        assert "scene-1" in imagery.describe()
    with pytest.raises(LayerError, match=r"no asset 'red'.*thumbnail, visual"):
        open_imagery(f"{server.url}/items/one#red")


def test_stac_item_in_a_file(cog, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(item("scene.tif")))
    assert_shows(open_imagery(tmp_path / "one.json").crops(*PLACE)[0], 14.0, 50.0)
    (tmp_path / "two.json").write_text(json.dumps(item(f"file://{cog}")))
    assert_shows(open_imagery(tmp_path / "two.json").crops(*PLACE)[0], 14.0, 50.0)


def test_search_results_are_a_mosaic_opened_where_needed(server, cog):
    server.routes[r"/s\.tif"] = serve(cog)
    far = item("missing.tif", "far", bbox=[100.0, 0.0, 101.0, 1.0])
    found = {"type": "FeatureCollection", "features": [item("s.tif"), far]}
    server.routes["/search"] = lambda r: (200, {}, json.dumps(found).encode())
    imagery = open_imagery(f"{server.url}/search")
    assert_shows(imagery.crops(*PLACE)[0], 14.0, 50.0)
    assert "/missing.tif" not in server.paths()
    with pytest.raises(LayerError, match="does not exist"):
        imagery.crops(np.array([100.5]), np.array([0.5]))


@pytest.mark.parametrize(
    "href", ["file:///etc/passwd", "s3://bucket/a.tif", "/vsizip/etc/x.zip/a.tif", "../../../etc/passwd"]
)
def test_an_item_from_the_network_names_no_file(server, href):
    server.routes["/one.json"] = lambda r: (200, {}, json.dumps(item(href)).encode())
    with pytest.raises(LayerError, match=r"not http or https|does not exist"):
        open_imagery(f"{server.url}/one.json")
    # What looks like a path is one on that server.
    assert all(p.startswith(("/one.json", "/vsizip", "/etc")) for p in server.paths())


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[]", "not a STAC item"),
        ("[1]", "not a STAC item"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"type": "Collection"}', "of a collection or catalogue give one item"),
        ('{"type": "FeatureCollection", "features": []}', "1 to 500"),
        ('{"type": "Feature", "assets": {"visual": {"href": 3}}}', "no asset 'visual'"),
        ('{"type": "Feature", "assets": {"visual": {"href": "s3://b/k.tif"}}}', "only http, https and files"),
    ],
)
def test_stac_documents_that_are_refused(tmp_path, document, words):
    path = tmp_path / "a.json"
    path.write_text(document)
    with pytest.raises(LayerError, match=words):
        open_imagery(path)


# Other ---------------------------------------------------------------------------------------------


def test_check_asks_once(server, tmp_path):
    server.routes[r"/\d+/\d+/\d+\.png"] = xyz_tile
    imagery = open_imagery(server.url + "/{z}/{x}/{y}.png", cache_dir=tmp_path)
    imagery.check(np.linspace(13, 15, 50), np.full(50, 50.0))
    assert len(server.log) <= 4
    server.routes.clear()
    server.routes[r"/.*"] = lambda r: (403, {}, b"")
    with pytest.raises(LayerError, match="key or token"):
        open_imagery(server.url + "/t/{z}/{x}/{y}.png", cache_dir=tmp_path).check(*PLACE)


def test_who_is_to_be_named():
    url = "https://tiles.maps.eox.at/wmts/1.0.0/s2cloudless-2020_3857/default/g/{z}/{y}/{x}.jpg"
    assert open_imagery(url).attribution == EOX
    assert open_imagery(url + "#attribution=us").attribution == "us"
    assert open_imagery("https://eox.at.evil.org/{z}/{y}/{x}.jpg").attribution == ""
    assert open_imagery(url).fingerprint() != open_imagery(url.replace("2020", "2021")).fingerprint()


def test_patterns():
    assert XYZ("https://{s}.h/{z}/{x}/{y}").url(3, 5, 2, 256) == "https://b.h/3/5/2"
    box = WMS("https://h/w?layers=a&map=/x.map").url(0, 0, 0, 512)
    assert "MAP=/x.map" in box
    assert "BBOX=-20037508.3427892,-20037508.3427892,20037508.3427892,20037508.3427892" in box


def test_unusable_answers_are_not_kept(server, tmp_path):
    server.routes["/x"] = lambda r: (200, {}, b"bad")

    def parse(body, kind):
        raise Unusable("this is bad.")

    with pytest.raises(LayerError, match="this is bad"):
        Fetcher(tmp_path).get(f"{server.url}/x", parse, max_bytes=10)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
