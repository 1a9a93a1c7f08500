"""The page of a batch in a real browser: found, sorted, lazily loaded, and hostile names only seen."""

import re
import time

import numpy as np
import pytest

from sdm.outputs.gallery import Card, stride, write_index
from sdm.outputs.overlay import png

from .conftest import HOSTILE
from .test_browser import browser, requests  # noqa: F401

pytestmark = pytest.mark.browser


def cards(count):
    rng = np.random.default_rng(0)
    area = rng.permutation(count)
    return [
        Card(
            name=f"Genus species{k:04d}",
            picture="gallery/a.png",
            common=f"beast {k}",
            also="Familia asked",
            badge="not in the model: its genus" if k == 5 else "",
            numbers={"area": float(area[k]), "expected": float(count - area[k]), "max": 0.5 if k else None},
            links={"GeoTIFF": f"species/{k}.tif"},
        )
        for k in range(count)
    ]


def write(tmp_path, listed, failures=(), title="Title", links=None):
    (tmp_path / "gallery").mkdir(exist_ok=True)
    (tmp_path / "gallery" / "a.png").write_bytes(png(np.full((30, 40), 200, np.uint8)))
    path = tmp_path / "index.html"
    write_index(path, title, ["About."], listed, failures, links or {"Summary": "summary.csv"}, (30, 40), 0.5)
    return path


def show(browser, path):  # noqa: F811
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())


def names(browser):  # noqa: F811
    return browser.execute_script("return [...document.querySelectorAll('.card h2')].map(h => h.textContent)")


def search(browser, text):  # noqa: F811
    browser.execute_script(
        "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", text
    )


def sort(browser, key):  # noqa: F811
    browser.execute_script(
        "const s = document.getElementById('sort'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))", key
    )


def test_page(browser, tmp_path):  # noqa: F811
    listed = cards(3)
    path = write(tmp_path, listed, [("elk", "fits several species"), ("zzz", "unknown")])
    show(browser, path)
    deadline = time.time() + 10
    loaded = (
        "return [...document.images].length == 3 && [...document.images].every(i => i.complete && i.naturalWidth == 40)"
    )
    while not browser.execute_script(loaded) and time.time() < deadline:
        time.sleep(0.05)
    assert browser.execute_script(loaded)  # the policy of the page lets its own pictures through
    assert browser.get_log("browser") == []
    assert all(url.startswith(tmp_path.as_uri()) for url in requests(browser))
    assert names(browser) == [card.name for card in listed]
    state = browser.execute_script("""return {
        text: document.querySelector('.card:nth-child(2)').innerText,
        none: document.querySelector('.card').innerText,
        href: document.querySelector('.card a').getAttribute('href'),
        count: document.getElementById('count').textContent,
        failures: document.getElementById('failures').textContent,
        nav: document.querySelector('nav a').getAttribute('href'),
    }""")
    assert "beast 1" in state["text"] and "highest 0.50" in state["text"] and "km² above 0.5" in state["text"]
    assert "not modelled here" in state["none"] and state["href"] == "./species/0.tif"
    assert state["count"] == "3 of 3" and "elk" in state["failures"] and "Not mapped: 2" in state["failures"]
    assert state["nav"] == "./summary.csv"


def test_search_and_sort_among_a_thousand(browser, tmp_path):  # noqa: F811
    listed = cards(1500)
    path = write(tmp_path, listed)
    assert path.stat().st_size < 400_000
    show(browser, path)
    first = names(browser)
    assert 40 <= len(first) < 300 and first == [c.name for c in listed][: len(first)]  # the others as one scrolls
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    deadline = time.time() + 5
    while len(names(browser)) == len(first) and time.time() < deadline:
        time.sleep(0.05)
    assert len(names(browser)) > len(first)
    browser.execute_script("scrollTo(0, 0)")
    started = time.time()
    search(browser, "BEÁST 1234")
    assert names(browser) == ["Genus species1234"] and time.time() - started < 1
    search(browser, "familia 77")
    assert set(names(browser)) == {c.name for c in listed if "77" in c.name or "77" in c.common}
    search(browser, "its genus")
    assert names(browser) == ["Genus species0005"]
    search(browser, "nothing of the kind")
    assert names(browser) == []
    search(browser, "")
    by = {key: lambda c, key=key: -c.numbers[key] for key in ("area", "expected")} | {"name": lambda c: c.name}
    for key, value in by.items():
        sort(browser, key)
        shown = names(browser)
        assert shown == [c.name for c in sorted(listed, key=value)][: len(shown)] and len(shown) >= 40
    assert browser.get_log("browser") == []


def test_hostile_texts_are_only_seen(browser, tmp_path):  # noqa: F811
    card = Card(
        name=HOSTILE,
        picture="javascript:window.hacked=1",
        common=HOSTILE,
        also=HOSTILE,
        badge=HOSTILE,
        numbers={"area": 1.0, "expected": 1.0, "max": 1.0},
        links={HOSTILE: "javascript:window.hacked=1"},
    )
    path = write(tmp_path, [card], [(HOSTILE, HOSTILE)], HOSTILE, {HOSTILE: HOSTILE})
    show(browser, path)
    time.sleep(0.3)
    expected = " ".join(re.sub(r"[\x00]", " ", HOSTILE).split())
    found = browser.execute_script("""return {
        hacked: typeof window.hacked, images: document.images.length, scripts: document.scripts.length,
        heading: document.querySelector('h1').textContent, name: document.querySelector('.card h2').textContent,
        failure: document.querySelector('#failures td').textContent,
        hrefs: [...document.querySelectorAll('a')].map(a => a.protocol),
    }""")
    assert found["hacked"] == "undefined" and found["images"] == 1 and found["scripts"] == 2
    assert found["heading"] == found["name"] == found["failure"] == expected
    assert set(found["hrefs"]) == {"file:"}
    search(browser, "onerror")
    assert len(names(browser)) == 1
    browser.execute_script(
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.hacked=1\">';"
        "document.body.appendChild(d); const s = document.createElement('script');"
        "s.textContent = 'window.hacked=2'; document.body.appendChild(s)"
    )
    time.sleep(0.3)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    browser.get_log("browser")


@pytest.mark.parametrize(("shape", "step"), [((1, 1), 1), ((240, 10), 1), ((241, 10), 2), ((100, 2400), 10)])
def test_pictures_are_never_larger_than_240(shape, step):
    assert stride(shape) == step and -(-max(shape) // step) <= 240
