"""The web map in a real browser without a network: nothing requested, nothing logged, nothing injected."""

import io
import json
import re
import time
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from sdm.outputs.webmap import write_html

from .conftest import GRIDS, HOSTILE, band_fields, field

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(open_browser):
    browser = open_browser("1200,800")
    browser.get("about:blank")
    yield browser
    browser.quit()


def show(browser, path):
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())
    deadline = time.time() + 15
    ready = "const i = document.querySelector('.leaflet-image-layer'); return !!i && i.naturalWidth > 0"
    while not browser.execute_script(ready) and time.time() < deadline:
        time.sleep(0.05)
    assert browser.execute_script(ready)


def requests(browser):
    """URLs a page asked for since the last call, other than data inside it."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # chrome: is the new tab that Chromium itself opens first.
    return [url for url in sent if not url.startswith(("data:", "chrome:"))]


def page(tmp_path, grid, metadata, values=None, links=None):
    values = field(grid) if values is None else values
    land = [shapely.box(-10, 40, 12, 70), shapely.box(160, 50, 180, 70), shapely.box(-180, 50, -120, 75)]
    countries = geopandas.GeoDataFrame(geometry=land, crs=4326)
    path = tmp_path / "map.html"
    write_html(path, xr.DataArray(values, dims=("y", "x")), metadata, countries, links, geobox=grid)
    return path


def click(browser, longitude, latitude):
    """Click on the map where a place is shown, for real, and return the text of the popup."""
    browser.execute_script(
        "map_sdm.closePopup();map_sdm.setView([arguments[0], arguments[1]], map_sdm.getZoom(), {animate: false})",
        latitude,
        longitude,
    )
    x, y = browser.execute_script(
        "const p = map_sdm.latLngToContainerPoint([arguments[0], arguments[1]]);"
        "const r = map_sdm.getContainer().getBoundingClientRect(); return [p.x + r.left, p.y + r.top]",
        latitude,
        longitude,
    )
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    actions = ActionBuilder(browser)
    actions.pointer_action.move_to_location(round(x), round(y)).click()
    actions.perform()
    deadline = time.time() + 5
    while time.time() < deadline:
        text = browser.execute_script("const p = document.querySelector('.sdm-popup'); return p && p.innerText")
        if text:
            return text
        time.sleep(0.05)
    raise AssertionError("no popup")


def test_opens_without_network_or_complaint(browser, tmp_path, grid, metadata):
    path = page(tmp_path, grid, metadata, links={"GeoTIFF": "a b.tif"})
    show(browser, path)
    time.sleep(0.3)
    assert requests(browser) == [path.as_uri()]
    assert browser.get_log("browser") == []
    state = browser.execute_script("""
        const image = document.querySelector('.leaflet-image-layer').getBoundingClientRect();
        return {
            inside: image.right > 0 && image.left < innerWidth && image.width > 300 && image.height > 200,
            borders: document.querySelectorAll('.leaflet-sdm-borders-pane path').length,
            land: document.querySelectorAll('.leaflet-sdm-land-pane path').length,
            tiles: document.querySelectorAll('.leaflet-tile').length,
            scale: document.querySelectorAll('.leaflet-control-scale').length,
            panel: document.querySelector('.sdm-panel').innerText,
            ticks: [...document.querySelectorAll('.sdm-ticks span')].map(t => t.textContent),
            href: document.querySelector('.sdm-panel a').getAttribute('href'),
            bases: document.querySelectorAll('.leaflet-control-layers-base input').length,
        }""")
    assert state["inside"] and state["borders"] and state["land"] and state["scale"] and state["tiles"] == 0
    assert "Ursus arctos" in state["panel"] and metadata.quantity in state["panel"]
    assert state["ticks"] == ["0", "0.25", "0.5", "0.75", "1"]
    assert state["href"] == "./a%20b.tif" and state["bases"] == 2


@pytest.mark.parametrize("where", GRIDS)
def test_click_tells_the_value_at_the_place(browser, tmp_path, metadata, where):
    from pyproj import Transformer

    grid = GRIDS[where]
    values = field(grid)
    show(browser, page(tmp_path, grid, metadata, values))
    to_wgs84 = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)
    hole = (int(grid.height * 0.7), int(grid.width * 0.3))
    for row, column in (hole, (100, 300), (200, 450), (250, 200)):
        longitude, latitude = to_wgs84.transform(*grid.pix2wld(column + 0.5, row + 0.5))
        shown = longitude + 360 if where == "antimeridian" and longitude < 0 else longitude
        shown = longitude - 360 if where == "alaska" and longitude > 0 else shown
        text = click(browser, shown, latitude)
        assert float(re.search(r"Longitude (-?[\d.]+)", text)[1]) == pytest.approx(
            (longitude + 180) % 360 - 180, abs=0.1
        )
        assert float(re.search(r"Latitude (-?[\d.]+)", text)[1]) == pytest.approx(latitude, abs=0.1)
        near = values[row - 3 : row + 4, column - 3 : column + 4]
        if np.isnan(values[row, column]):
            assert "Not modelled" in text
        else:
            value = float(re.search(r"Probability: ([\d.]+)", text)[1])
            assert near.min() - 0.01 <= value <= near.max() + 0.01


def test_zero_and_outside_and_constant(browser, tmp_path, metadata):
    grid = GRIDS["geographic"]
    values = np.zeros(grid.shape, np.float32)
    values[:310] = 0.73
    show(browser, page(tmp_path, grid, metadata, values))
    assert "Probability: 0.00" in click(browser, 10, 49)
    assert "Probability: 0.73" in click(browser, 10, 58)
    assert "Outside the map" in click(browser, 2, 54)


def test_picture_lies_on_its_parallel(browser, tmp_path, metadata):
    """The 60 N line of the picture is drawn where Leaflet itself draws 60 N."""
    resolution = 0.1
    grid = GeoBox((600, 300), Affine(resolution, 0, 0, 0, -resolution, 80), "EPSG:4326")
    values = np.zeros(grid.shape, np.float32)
    values[:200] = 1  # everything north of 60 N
    show(browser, page(tmp_path, grid, metadata, values))
    found = browser.execute_script("""
        const image = document.querySelector('.leaflet-image-layer'), box = image.getBoundingClientRect();
        const canvas = document.createElement('canvas');
        canvas.width = 1; canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, 1, canvas.height).data;
        let row = 0;
        while (data[4 * row] === data[0]) row++;
        const drawn = box.top + box.height * row / canvas.height;
        const frame = map_sdm.getContainer().getBoundingClientRect();
        return [drawn, map_sdm.latLngToContainerPoint([60, 15]).y + frame.top, box.height / canvas.height];
    """)
    assert found[0] == pytest.approx(found[1], abs=1 + found[2])


def test_opacity_slider_and_layer_switch(browser, tmp_path, metadata):
    show(browser, page(tmp_path, GRIDS["geographic"], metadata))
    state = browser.execute_script("""
        const slider = document.querySelector('.sdm-opacity input');
        slider.value = 30; slider.dispatchEvent(new Event('input'));
        const opacity = document.querySelector('.leaflet-image-layer').style.opacity;
        const boxes = [...document.querySelectorAll('.leaflet-control-layers-overlays input')];
        boxes.forEach(box => box.click());
        return [opacity, boxes.length, document.querySelectorAll('.leaflet-image-layer').length];
    """)
    assert state == ["0.3", 2, 0]
    assert "Map is switched off" in click(browser, 10, 55)


def test_openstreetmap_is_asked_only_when_switched_on(browser, tmp_path, metadata):
    path = page(tmp_path, GRIDS["geographic"], metadata)
    show(browser, path)
    assert requests(browser) == [path.as_uri()]
    browser.execute_script("document.querySelectorAll('.leaflet-control-layers-base input')[1].click()")
    deadline, asked = time.time() + 5, []
    while not asked and time.time() < deadline:
        asked = requests(browser)
        time.sleep(0.05)
    assert asked and all(url.startswith("https://tile.openstreetmap.org/") for url in asked)


def test_hostile_texts_are_only_seen(browser, tmp_path, metadata):
    hostile = replace(metadata, title=HOSTILE, quantity=HOSTILE, unit=HOSTILE, attribution=(HOSTILE,))
    links = {HOSTILE: HOSTILE, "script": "javascript:window.hacked=1"}
    path = page(tmp_path, GRIDS["geographic"], hostile, links=links)
    show(browser, path)
    click(browser, 10, 58)
    browser.execute_script("document.querySelectorAll('.leaflet-control-layers-overlays input')[0].click()")
    time.sleep(0.3)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert requests(browser) == [path.as_uri()] and browser.get_log("browser") == []
    expected = " ".join(HOSTILE.replace("\x00", " ").split())
    assert browser.title.split() == expected.split()
    found = browser.execute_script("""return {
        summary: document.querySelector('.sdm-panel summary').textContent,
        alt: document.querySelector('img.leaflet-image-layer')?.alt,
        switch: document.querySelector('.leaflet-control-layers-overlays').textContent,
        credit: document.querySelector('.leaflet-control-attribution').textContent,
        inner: document.querySelectorAll('.sdm-panel img, .leaflet-control img, .leaflet-popup img').length,
        hrefs: [...document.querySelectorAll('.sdm-panel a')].map(a => a.protocol),
    }""")
    assert found["summary"] == expected and expected in " ".join(found["switch"].split())
    assert found["inner"] == 0 and set(found["hrefs"]) == {"file:"}
    # And if something did get in, the policy of the page would stop it.
    browser.execute_script(
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.hacked=1\">';"
        "document.body.appendChild(d); const s = document.createElement('script');"
        "s.textContent = 'window.hacked=2'; document.body.appendChild(s)"
    )
    time.sleep(0.3)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    browser.get_log("browser")


def banded_page(tmp_path, grid, banded, bands):
    land = geopandas.GeoDataFrame(geometry=[shapely.box(-10, 40, 30, 70)], crs=4326)
    path = tmp_path / "map.html"
    write_html(path, xr.DataArray(field(grid), dims=("y", "x")), banded, land, geobox=grid, bands=bands)
    return path


def drawn(browser, longitude, latitude):
    """Colours (height, width, 3) on the screen around a place."""
    browser.execute_script("document.querySelectorAll('.leaflet-popup').forEach(p => p.remove())")
    x, y = browser.execute_script(
        "const p = map_sdm.latLngToContainerPoint([arguments[1], arguments[0]]); return [p.x, p.y]", longitude, latitude
    )
    time.sleep(0.3)
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    return np.asarray(image).astype(int)[int(y) - 12 : int(y) + 12, int(x) - 12 : int(x) + 12]


def roughness(colours):
    """Mean difference of neighbours along a row."""
    return np.abs(np.diff(colours, axis=1)).mean()


def test_low_trust_is_hatched_and_can_be_switched_off(browser, tmp_path, banded):
    grid = GRIDS["geographic"]  # 5 to 19 E, 47.6 to 60 N: novel in the north, uncertain in the west
    path = banded_page(tmp_path, grid, banded, band_fields(grid))
    show(browser, path)
    time.sleep(0.5)
    assert requests(browser) == [path.as_uri()] and browser.get_log("browser") == []
    legend = browser.execute_script("return document.querySelector('.sdm-hatched').innerText")
    assert "low trust" in legend and "novelty above 95 %" in legend and "uncertainty above 1.5" in legend
    assert roughness(drawn(browser, 15, 59)) > 10 > 3 > roughness(drawn(browser, 15, 55))
    names = browser.execute_script(
        "return [...document.querySelectorAll('.leaflet-control-layers-overlays label')].map(l => l.textContent.trim())"
    )
    assert names == ["Ursus arctos", "Low trust (hatched)", "Coasts and borders"]
    text = click(browser, 15, 59)
    assert "Low trust: novelty above 95 %: nothing like it was seen" in text and "uncertainty" not in text
    both = click(browser, 7, 59)
    assert "novelty" in both and "uncertainty above 1.5: refits differ" in both
    assert "Low trust" not in click(browser, 15, 55)
    browser.execute_script("document.querySelectorAll('.leaflet-control-layers-overlays input')[1].click()")
    assert roughness(drawn(browser, 15, 59)) < 3
    assert "Low trust" not in click(browser, 15, 59)


def test_hatching_keeps_its_width_when_zoomed(browser, tmp_path, banded):
    grid = GRIDS["geographic"]
    show(browser, banded_page(tmp_path, grid, banded, band_fields(grid)))
    shares = []
    for zoom in (6, 9):
        browser.execute_script("map_sdm.setView([59, 15], arguments[0], {animate: false})", zoom)
        part = drawn(browser, 15, 59)
        shares.append(np.mean(np.abs(part - np.median(part, axis=(0, 1))).max(axis=2) > 25))
    assert 0.1 < shares[0] < 0.6 and shares[1] == pytest.approx(shares[0], abs=0.12)


def test_hostile_texts_of_bands_are_only_seen(browser, tmp_path, banded):
    grid = GRIDS["geographic"]
    bands = tuple(replace(band, quantity=HOSTILE, unit=HOSTILE, caution=HOSTILE) for band in banded.bands)
    path = banded_page(tmp_path, grid, replace(banded, bands=bands), band_fields(grid))
    show(browser, path)
    assert "onerror" in click(browser, 7, 59)
    time.sleep(0.3)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert requests(browser) == [path.as_uri()] and browser.get_log("browser") == []
