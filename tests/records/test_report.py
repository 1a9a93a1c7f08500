"""The report in a real browser without a network, its numbers, and the ODMAP protocol."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.records.baselines import distance_to_records, fixed_scores
from sdm.records.evaluate import EvaluateOptions, Places, cross_validate, evaluate
from sdm.records.explain import importance, responses
from sdm.records.figures import Line, View, fit_view, omission, roc
from sdm.records.folds import random_folds, spatial_folds
from sdm.records.odmap import AUTHOR, COLUMNS, OPTIONAL, PROGRAM, Protocol, elements, write_odmap
from sdm.records.report import MapPicture, Report, limits, report_dict, write_json, write_report
from sdm.records.table import Records
from sdm.records.thresholds import RangeArea, threshold

HOSTILE = (
    "Ursus</title></style><script>window.hacked=1</script><img src=x onerror='window.hacked=2'> $\\frac{1}{0}$ {{7*7}}"
)
COUNTS = {
    "rows": 90,
    "kept": 60,
    "presences": 60,
    "absences": 0,
    "dropped": {"duplicate": 30},
    "repaired": {"sign of latitude changed": 2},
    "unknown_uncertainty": 5,
    "other_species": 0,
}


def made(west=5.0, seed=0, method="Ridge", noise=0.3):
    """A report of a planted species: its suitability rises to the north, from 5 degrees east."""
    random = np.random.default_rng(seed)
    n, m = 60, 400
    lat = np.concatenate([random.uniform(53, 58, n), random.uniform(44, 58, m)])
    lon = (west + random.uniform(0, 12, n + m) + 180) % 360 - 180
    kind = np.repeat(["presence", "land", "group"], [n, m - 100, 100])
    places = Places(lon, lat, kind)
    score = (lat - 44) / 14 + random.normal(0, noise, n + m)
    table = np.column_stack([lat, random.normal(size=n + m)])
    folds = {
        "blocks": spatial_folds(lon, lat, places.present, side_km=300.0),
        "random": random_folds(places.present),
    }
    methods = {
        method: fixed_scores(np.clip(score, 0, 1)),
        "Distance to records": distance_to_records(lon, lat, places.present),
    }
    grid = GeoBox((60, 70), Affine(0.2, 0, west - 1, 0, -0.2, 57), "EPSG:4326")
    values = np.linspace(1, 0, 60, dtype=np.float32)[:, None] * np.ones((1, 70), np.float32)
    values[:10, :10] = np.nan
    return Report(
        "Ursus arctos",
        lead="Made for a test.",
        picture=MapPicture(values, grid, "Relative suitability"),
        records=Records.from_points(lon[:n], lat[:n]),
        counts=COUNTS,
        sentences=["bears.csv: 90 rows, 60 kept."],
        validation=cross_validate(places, methods, folds),
        responses=responses(
            lambda x: x[:, 0],
            table,
            places.present,
            {"Minimum temperature of the coldest month (°C)": 0, "noise": 1},
            points=9,
        ),
        importance=importance(lambda x: x[:, 0], table, places.present, {"latitude": [0], "noise": [1]}),
        thresholds=[threshold(rule, score[:n], score[n:]) for rule in ("mtp", "p10", "equal", "max-tss")],
        area=RangeArea(123456.7, 110000.0, 140000.0, "p10", "by <guess>"),
        limits=["Few records in the south."],
        provenance={"Background": "random land"},
        citations=["GBIF.org (2026) https://doi.org/10.1/2"],
        links={"GeoTIFF": "a b.tif"},
    )


def hostile():
    """The same with every text from outside made hostile."""
    report = made(method=HOSTILE)
    return replace(
        report,
        title=HOSTILE,
        lead=HOSTILE,
        picture=replace(report.picture, quantity=HOSTILE),
        counts=COUNTS | {"dropped": {HOSTILE: 30}},
        sentences=[HOSTILE],
        responses=[replace(one, name=HOSTILE) for one in report.responses],
        importance=[replace(one, name=HOSTILE + "\x00\ud800") for one in report.importance],
        limits=[HOSTILE],
        provenance={HOSTILE: HOSTILE},
        citations=[HOSTILE],
        links={HOSTILE: "javascript:alert(1)"},
    )


@pytest.fixture(scope="module")
def browser(open_browser):
    browser = open_browser("1200,900")
    browser.get("about:blank")
    yield browser
    browser.quit()


def test_the_page_has_no_scripts_no_links_out_and_the_same_bytes_every_time(tmp_path):
    path, again = tmp_path / "a-report.html", tmp_path / "b-report.html"
    write_report(path, made())
    write_report(again, made())
    page = path.read_text(encoding="utf-8")
    assert path.read_bytes() == again.read_bytes()
    assert "<script" not in page and "@import" not in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:|\./)", page)
    assert not re.search(r"url\((?!#)", page)
    assert len(page) < 2_000_000
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for reference in re.findall(r'(?:url\(#|href="#)([^")]+)', page):
        assert reference in identifiers


def test_numbers_of_the_page_are_those_of_the_json(tmp_path):
    report = made()
    write_report(tmp_path / "a.html", report)
    write_json(tmp_path / "a.json", report)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert told["records"]["kept"] == 60 and told["range"]["low_km2"] == 110000.0
    for result in told["cross_validation"]["results"]:
        expected = report.validation.result(result["method"], result["scheme"], result["contrast"])
        assert result["mean"]["auc"] == pytest.approx(expected.mean("auc"))
        assert f"{result['mean']['auc']:.3f}" in page and f"{result['mean']['boyce']:.3f}" in page
    for one in told["thresholds"]:
        assert f"{one['value']:.4g}" in page
    assert "123,000" in page and "110,000 to 140,000" in page
    assert [limit in page for limit in told["limits"]].count(False) <= 1  # one has typographic quotes


def test_json_without_numbers_that_json_lacks(tmp_path):
    report = replace(made(), importance=[replace(made().importance[0], drop=float("nan"))])
    write_json(tmp_path / "a.json", report)
    assert json.loads((tmp_path / "a.json").read_text())["importance"][0]["drop_of_auc"] is None


@pytest.mark.browser
def test_the_page_opens_without_network_or_complaint(browser, tmp_path):
    path = tmp_path / "a-report.html"
    write_report(path, made())
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith(("data:", "chrome:"))] == [path.as_uri()]
    assert browser.get_log("browser") == []
    state = browser.execute_script("""
        const figures = [...document.querySelectorAll('figure svg')];
        const inside = t => { const a = t.getBoundingClientRect(), s = t.ownerSVGElement.getBoundingClientRect();
            return a.left >= s.left - 3 && a.right <= s.right + 3 && a.top >= s.top - 3 && a.bottom <= s.bottom + 3; };
        return {
            figures: figures.length,
            sizes: figures.map(s => s.getBoundingClientRect()).every(b => b.width > 150 && b.height > 60),
            labelled: figures.every(s => s.getAttribute('aria-label')),
            cut: [...document.querySelectorAll('figure svg text')].filter(t => !inside(t)).map(t => t.textContent),
            wide: document.documentElement.scrollWidth > innerWidth,
            text: document.body.innerText,
            rows: document.querySelectorAll('#measures tbody tr').length,
            picture: document.querySelector('#map image').getBoundingClientRect().width,
        }""")
    assert state["figures"] == 9 and state["sizes"] and state["labelled"] and not state["wide"]
    assert state["cut"] == []
    assert state["rows"] == 12 and state["picture"] > 200
    for word in ("Ursus arctos", "Few records in the south.", "Relative suitability", "duplicate", "random land"):
        assert word in state["text"]


@pytest.mark.browser
def test_the_page_fits_a_phone(browser, tmp_path):
    path = tmp_path / "a-report.html"
    write_report(path, made())
    browser.get(path.as_uri())
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_hostile_texts_stay_texts(browser, tmp_path):
    path = tmp_path / "a-report.html"
    write_report(path, hostile())
    write_json(tmp_path / "a.json", hostile())
    assert HOSTILE in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["title"]
    browser.get_log("browser")
    browser.get(path.as_uri())
    state = browser.execute_script(
        "return {hacked: window.hacked || 0, scripts: document.scripts.length, images: document.images.length,"
        "title: document.querySelector('h1').textContent,"
        "links: [...document.querySelectorAll('a')].map(a => a.protocol)}"
    )
    assert (state["hacked"], state["scripts"], state["images"]) == (0, 0, 0)
    assert state["title"] == HOSTILE and set(state["links"]) == {"file:"}
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("west", [174.0, -178.0, 5.0])
def test_maps_across_180_degrees_are_drawn_in_one_piece(tmp_path, west):
    report = made(west)
    write_report(tmp_path / "a.html", report)
    view = fit_view(report.records.lon, report.records.lat)
    assert view.east - view.west < 20
    x, _ = view.xy(report.records.lon, report.records.lat)
    left, right, _, _ = view.extent
    assert left < x.min() and x.max() < right


def test_mercator_of_a_view():
    view = View(170.0, -10.0, 190.0, 60.0)
    x, y = view.xy([170.0, -175.0], [0.0, 60.0])
    assert x[1] == pytest.approx(np.radians(15) * 6378137) and x[0] == 0
    assert y == pytest.approx([0, 8399737.89], abs=1)  # EPSG:3857 of 60 N


def test_parts_that_are_missing_are_left_out(tmp_path):
    write_report(tmp_path / "a.html", Report("A map"))
    page = (tmp_path / "a.html").read_text()
    assert "<figure" not in page and 'id="limits"' in page
    with pytest.raises(OutputError):
        write_report(tmp_path / "missing" / "a.html", Report("A map"))


def test_report_of_an_evaluation_with_absences(tmp_path, write_raster):
    values = np.linspace(0, 1, 100, dtype=np.float32)[None, :] * np.ones((60, 1), np.float32)
    path = write_raster(values, west=0.0, north=30.0, cell=0.5, descriptions=["Probability that it is there"])
    random = np.random.default_rng(0)
    lon, lat = random.uniform(0, 50, 400), random.uniform(0, 30, 400)
    present = random.uniform(0, 1, 400) < lon / 50
    options = EvaluateOptions(places=500, surface="none")
    evaluation = evaluate(path, Records.from_points(lon, lat, present), options)
    assert evaluation.probability and evaluation.scores["absences"].calibration_error < 0.1
    report = Report("Some map", evaluation=evaluation, probability=True)
    write_report(tmp_path / "a.html", report)
    page = (tmp_path / "a.html").read_text()
    assert "Calibration error" in page and f"{evaluation.scores['absences'].log_loss:.3f}" in page
    assert not any("relative suitability" in text for text in limits(report))
    assert report_dict(report)["evaluation"]["measures"]["absences"]["brier"] < 0.25


def test_limits_follow_from_the_numbers():
    weak = made(noise=3.0)
    texts = " ".join(limits(weak))
    assert "relative suitability" in texts and "Few records in the south." in texts
    assert re.search(r"“Distance to records” \(AUC 0\.\d{3}\) is better than this map", texts)
    assert "than this map" not in " ".join(limits(made(noise=0.02)))
    few = replace(made(), counts=COUNTS | {"presences": 4})
    assert any("4 presences" in text for text in limits(few))
    assert not any("presences all measures" in text for text in limits(made()))


def test_all_baselines_that_beat_the_map_are_named_beside_the_headline(tmp_path):
    random = np.random.default_rng(1)
    n, m = 40, 300
    present = np.arange(n + m) < n
    places = Places(
        random.uniform(5, 17, n + m), random.uniform(44, 58, n + m), np.repeat(["presence", "land"], [n, m])
    )
    scores = {name: present * gain + random.normal(size=n + m) for name, gain in (("Own", 0.3), ("A", 3), ("B", 2))}
    scores |= {"Twin": scores["Own"], "Worse": -scores["A"]}
    methods = {name: fixed_scores(score) for name, score in scores.items()}
    report = Report("A map", validation=cross_validate(places, methods, {"random": random_folds(present)}))
    (text,) = [one for one in limits(report) if "than this map" in one]
    pattern = r"Against .*, “A” \(AUC .*\) and “B” \(AUC .*\) are better than this map; “Twin” \(AUC .*\) is as good"
    assert re.match(pattern, text) and "Worse" not in text
    write_report(tmp_path / "a.html", report)
    page = (tmp_path / "a.html").read_text()
    assert page.index("better than this map") < page.index("<nav>")
    assert "AUC against 300 random places within reach" in page


def test_the_presences_used_are_told_from_those_kept(tmp_path):
    report = replace(made(), used=29)
    write_report(tmp_path / "a.html", report)
    assert "presences used (after thinning), 60 kept, of 90 rows" in (tmp_path / "a.html").read_text()
    assert any(text.startswith("With 29 presences") for text in limits(report))
    assert report_dict(report)["records"]["presences_used"] == 29


def test_curves_with_many_points_stay_small():
    random = np.random.default_rng(0)
    line = Line("a", random.normal(1, 1, 5000), random.normal(0, 1, 50_000), "#000000")
    assert len(roc([line]).svg) < 60_000
    assert len(omission(line).svg) < 60_000


def test_the_protocol_has_the_elements_of_odmap_and_says_who_fills_them(tmp_path):
    report = made()
    protocol = Protocol(
        species="=cmd|' /C calc'!A0",
        target="relative suitability, 0 to 1",
        bounds=(-5.0, 44.0, 17.0, 58.0),
        records=COUNTS,
        citations={"doi": ["10.1/2"], "citations": ["GBIF.org (2026)"]},
        techniques=["Maxent", "down-sampled forest"],
        averaging="mean of ranks",
        settings={"Maxent": {"penalty": "maxnet"}},
        validation=report.validation,
        threshold=report.thresholds[1],
        refits=10,
    )
    write_odmap(tmp_path / "a-odmap.csv", protocol)
    with (tmp_path / "a-odmap.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 1 + 84
    assert list(dict.fromkeys(row[0] for row in rows[1:])) == ["Overview", "Data", "Model", "Assessment", "Prediction"]
    named = {(row[0], row[1], row[2]): row for row in rows[1:]}
    assert len(named) == 84 and len({one["id"] for one in elements()}) == 84
    value = {key: row[3] for key, row in named.items()}
    assert value["Overview", "Scale of Analysis", "Spatial extent"] == "-5, 17, 44, 58 (xmin, xmax, ymin, ymax)"
    assert value["Overview", "Focal Taxon", "Focal Taxon"].startswith("'=cmd")
    assert not any(text.startswith(tuple("=+@")) for text in value.values())
    assert value["Overview", "Algorithms", "Modelling techniques"] == "Maxent; down-sampled forest"
    assert value["Model", "Model settings", "Model settings (fitting)"] == "Maxent: penalty (maxnet)"
    auc = report.validation.result("Ridge", "blocks", "land").mean("auc")
    assert f"AUC {auc:.3f}" in value["Assessment", "Performance statistics", "Performance on validation data"]
    for row in rows[1:]:
        assert (row[4] == PROGRAM) == bool(row[3])
        assert row[4] in (PROGRAM, AUTHOR, OPTIONAL)
    assert named["Overview", "Authorship", "Author names"][3:] == ["", AUTHOR]
    assert named["Overview", "Hypotheses", "Hypotheses"][3:] == ["", AUTHOR]


def test_an_empty_protocol_states_nothing_about_data(tmp_path):
    write_odmap(tmp_path / "a.csv", Protocol())
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    stated = {row["element"] for row in rows if row["Value"]}
    assert stated == {"Model objective", "Software", "Code availability"}
