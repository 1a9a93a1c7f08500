import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import geopandas
import numpy as np
import pytest
import shapely
import xarray as xr

from sdm.outputs.basemap import land_and_borders
from sdm.outputs.escape import html_text, relative_link, script_value
from sdm.outputs.webmap import write_html

from .conftest import BANDS, GRIDS, HOSTILE, band_fields, field


@pytest.fixture(scope="module")
def countries():
    """Two neighbours with a wavy border, one country cut at 180, and the usual oddities."""
    wave = [(8 + 0.3 * np.sin(y * 3), y) for y in np.linspace(45, 62, 400)]
    west = shapely.Polygon([(0, 45), *wave, (0, 62)])
    east = shapely.Polygon([(20, 45), *wave, (20, 62)])
    cut = shapely.MultiPolygon([shapely.box(170, 55, 180, 66), shapely.box(-180, 55, -175, 66)])
    return geopandas.GeoDataFrame(
        {"name": ["A", "B", "C", "none", "empty"]},
        geometry=[west, east, cut, None, shapely.Polygon()],
        crs=4326,
    )


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def page(tmp_path, grid, metadata, countries=None, links=None):
    path = tmp_path / "map.html"
    write_html(path, xr.DataArray(field(grid), dims=("y", "x")), metadata, countries, links, geobox=grid)
    return path.read_text(encoding="utf-8")


def test_page_names_no_other_host_than_openstreetmap(tmp_path, grid, metadata, countries):
    text = page(tmp_path, grid, metadata, countries)
    parsed = Page(text)
    assert not [tag for tag, attributes in parsed.tags if tag in ("link", "iframe", "object", "img", "base")]
    assert not [attributes for tag, attributes in parsed.tags if tag == "script" and "src" in attributes]
    loaded = re.findall(r"""(?:url\(|src=|@import|fetch\()\s*["']?(https?:)?//[^"')]*""", text)
    assert loaded == []
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    # Links a reader may follow, a namespace, comments in Leaflet's CSS, and the one optional tile server.
    assert hosts <= {
        "leafletjs.com",
        "www.openstreetmap.org",
        "tile.openstreetmap.org",
        "www.w3.org",
        "bugs.chromium.org",
        "bugzilla.mozilla.org",
    }
    assert len(text) < 2_000_000


def test_same_map_same_bytes(tmp_path, metadata, countries):
    grid = GRIDS["geographic"]
    assert page(tmp_path, grid, metadata, countries) == page(tmp_path, grid, metadata, countries)


def test_bounds_in_the_page(tmp_path, metadata):
    text = page(tmp_path, GRIDS["antimeridian"], metadata)
    assert '"bounds":[[53.0,168.0],[68.0,194.0]]' in text
    assert re.search(r"\[\[53\.0, 168\.0\], \[68\.0, 194\.0\]\]", text)


def test_hostile_texts_stay_texts(tmp_path, metadata):
    hostile = replace(
        metadata,
        title=HOSTILE,
        quantity=HOSTILE,
        unit=HOSTILE,
        attribution=(HOSTILE,),
        tags={HOSTILE: HOSTILE},
    )
    text = page(tmp_path, GRIDS["geographic"], hostile, links={HOSTILE: HOSTILE, "x": "javascript:alert(1)"})
    plain = page(tmp_path, GRIDS["geographic"], metadata, links={"a": "a", "x": "b"})
    assert [tag for tag, _ in Page(text).tags] == [tag for tag, _ in Page(plain).tags]
    assert not any(name.startswith("on") for _, attributes in Page(text).tags for name in attributes)
    for live in ("<img", 'window.hacked=1"', "${window", "{{7", "{% raw", "javascript:"):
        assert live not in text.replace("<img onload", ""), live
    assert "49" not in re.search(r"<title>(.*?)</title>", text)[1]  # Jinja did not compute 7*7


def test_escaping():
    assert html_text("<a href='x' b=\"y\">&`${}\n") == (
        "&#60;a href&#61;&#39;x&#39; b&#61;&#34;y&#34;&#62;&#38;&#96;&#36;&#123;&#125;"
    )
    literal = script_value({"</script>": "`${x}`'\u2028&"})
    assert not set(literal) & set("<>`$'&\u2028%#") and json.loads(literal) == {"</script>": "`${x}`'\u2028&"}
    assert relative_link("a b/é:?#.tif") == "./a%20b/%C3%A9%3A%3F%23.tif"
    assert relative_link("javascript:alert(1)").startswith("./javascript%3A")


def test_map_without_anything_to_show(tmp_path, metadata):
    grid = GRIDS["geographic"]
    path = tmp_path / "map.html"
    write_html(path, xr.DataArray(np.full(grid.shape, np.nan, np.float32), dims=("y", "x")), metadata, geobox=grid)
    assert path.stat().st_size < 300_000


def test_from_a_zarr_store(tmp_path, store, metadata):
    path, _ = store(GRIDS["alaska"])
    write_html(tmp_path / "map.html", path, metadata)
    assert "data:image/png" in (tmp_path / "map.html").read_text()


def shapes_of(text):
    return shapely.from_geojson(text)


def test_borders_are_shared_and_the_window_is_no_border(countries):
    land, borders = map(shapes_of, land_and_borders(countries, (2, 50, 15, 60), 8))
    assert land.is_valid and land.area == pytest.approx(13 * 10, rel=1e-3)
    middle = shapely.intersection(borders, shapely.box(7, 51, 9, 59))
    assert middle.length == pytest.approx(borders.length - 2, rel=0.1)  # one line, nothing on the frame
    assert 10 < borders.length < 14  # the wavy border once, not twice


def test_countries_continue_past_180(countries):
    land, borders = map(shapes_of, land_and_borders(countries, (165, 50, 200, 70), 20))
    assert land.bounds == (170, 55, 185, 66) and land.geom_type in ("Polygon", "MultiPolygon")
    assert len(shapely.get_parts([land])) == 1  # healed, no seam
    assert not borders.intersects(shapely.box(179.9, 56, 180.1, 65))
    land, _ = map(shapes_of, land_and_borders(countries, (-195, 50, -160, 70), 20))
    assert land.bounds == (-190, 55, -175, 66)


def test_open_sea(countries):
    land, borders = map(shapes_of, land_and_borders(countries, (-50, -50, -40, -40), 10))
    assert land.is_empty and borders.is_empty


def test_countries_in_another_crs(countries):
    land, _ = map(shapes_of, land_and_borders(countries.iloc[:2].to_crs(3857), (2, 50, 15, 60), 8))
    assert land.area == pytest.approx(13 * 10, rel=1e-2)


def test_hatching_only_where_a_band_has_a_limit(tmp_path, metadata, banded):
    grid = GRIDS["alaska"]
    source = xr.DataArray(field(grid), dims=("y", "x"))
    pages = []
    for meta, bands in ((metadata, ()), (replace(metadata, bands=BANDS[2:]), band_fields(grid)[2:])):
        write_html(tmp_path / "map.html", source, meta, geobox=grid, bands=bands)
        pages.append((tmp_path / "map.html").read_text())
    assert pages[0] == pages[1] and "sdmHatch" not in pages[0] and "sdm-hatch" not in pages[0]
    write_html(tmp_path / "map.html", source, banded, geobox=grid, bands=band_fields(grid))
    page = (tmp_path / "map.html").read_text()
    texts = (script_value("novelty above 95 %: nothing like it was seen"), script_value("uncertainty above 1.5"))
    assert texts[0] in page and texts[1].strip('"') in page and "depth" not in page
    assert page.count("data:image/png;base64,") == pages[0].count("data:image/png;base64,") + 1
