"""Maps of another climate: baseline, change, novelty, values outside the trained range."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import rasterio

import sdm
from sdm.engine.inputs import open_inputs, trained_range
from sdm.errors import RequestError
from sdm.files.release import data_file
from sdm.maps.fitted import fit
from sdm.models.registry import list_models
from sdm.records.table import Records
from sdm.records.target import MESS, ClampedFit
from sdm.request.records import FitOptions

MODEL = list_models()[0]
MAP = {"bbox": (-116.0, 40.0, -106.0, 49.0), "resolution": 0.5}
PIKA = "Ochotona princeps"


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    """Function: a copy of the bundled temperature and rain over western America, warmer and wetter."""

    def write(warmer=0.0, wetter=1.0):
        path = tmp_path_factory.mktemp("climate") / "scenario.tif"
        with rasterio.open(data_file("bioclim.tif")) as source:
            names = [text.partition(":")[0] for text in source.descriptions]
            window = rasterio.windows.Window(600, 360, 480, 360)  # 130..90 W, 60..30 N
            bands = {n: source.read(names.index(n) + 1, window=window) * source.scales[names.index(n)] for n in names}
            profile = {"driver": "GTiff", "dtype": "float32", "count": 2, "height": 360, "width": 480, "crs": 4326}
            with rasterio.open(path, "w", **profile, transform=source.window_transform(window)) as file:
                file.write(np.stack([bands["bio1"] + warmer, bands["bio12"] * wetter]).astype(np.float32))
                file.descriptions = ("bio1", "bio12")
        return str(path)

    return write


def pixels(path, band=1):
    with rasterio.open(path) as file:
        return file.read(band)


def test_the_same_climate_changes_nothing(scenario, tmp_path):
    job = sdm.plan(PIKA, environment=[scenario()], compare_with="current", modalities="location,environment", **MAP)
    (result,) = sdm.write_maps(job, tmp_path, threads=1, formats="cog")
    change = pixels(result.files["change.tif"])
    assert np.nanmax(np.abs(change)) < 2e-4 and np.isfinite(change).sum() > 200
    assert result.report["change"]["baseline"] == "the bundled layers"
    assert result.report["outside_trained_range"]["share"] < 0.02


def test_a_scenario_its_baseline_and_the_change(scenario, tmp_path):
    job = sdm.plan(PIKA, environment=[scenario(6.0, 0.5)], compare_with=[scenario()], **MAP)
    (result,) = sdm.write_maps(job, tmp_path, threads=1)
    then, now = pixels(result.files["tif"]), pixels(result.files["current.tif"])
    change = pixels(result.files["change.tif"])
    np.testing.assert_allclose(change, then - now, atol=1e-6)
    assert np.nanmax(np.abs(change)) > 0.02
    with rasterio.open(result.files["tif"]) as file:
        assert file.descriptions == ("probability", "uncertainty", "novelty")
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in result.files.values()}
    style = result.files["change.qml"].read_text()
    low, high = (float(re.search(rf'classification{side}="([^"]+)"', style)[1]) for side in ("Min", "Max"))
    assert low == -high and high >= np.nanmax(np.abs(change)) > high - 0.1
    reported = json.loads(result.files["json"].read_text())["change"]
    assert reported["mean"] == pytest.approx(np.nanmean(change), abs=1e-4)
    plain = sdm.map_species(PIKA, environment=[scenario(6.0, 0.5)], **MAP)
    np.testing.assert_allclose(plain.values, then, atol=1e-6)


def test_values_outside_the_trained_range_are_told_and_clamped_only_if_asked(scenario):
    hot, desert = scenario(15.0), {"bbox": (-116.0, 32.0, -112.0, 36.0), "resolution": 0.25}
    free, clamped = (sdm.plan(PIKA, environment=[hot], clamp=clamp, **desert) for clamp in (False, True))
    told = free.outside[0]
    assert told.share > 0.5 and "temperature" in told.variable.lower() and not told.clamped
    assert told.sentence in free.notes[0] and "--clamp" in told.sentence
    assert clamped.outside[0].share == told.share and "clamped to it" in clamped.notes[0][-1]
    low, high = trained_range(MODEL.layers["environment"])
    lon, lat = (a.ravel() for a in free.grid.lonlat(*(np.arange(n) for n in free.grid.shape)))
    values, limited = (
        open_inputs(MODEL, ("environment",), (hot,), clamp=c).read["environment"](lon, lat)[0] for c in (False, True)
    )
    np.testing.assert_array_equal(limited, np.clip(values, low, high))
    assert (values > high).any(axis=1).mean() > 0.5
    assert not np.array_equal(*(job.plan.environment(lon, lat)[0] for job in (free, clamped)))


def test_a_saved_fit_in_another_climate(scenario, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "records.csv"
    rows = [f"{x:.4f},{y:.4f}" for x, y in zip(rng.uniform(-114, -110, 40), rng.uniform(42, 46, 40), strict=True)]
    path.write_text("\n".join(["longitude,latitude", *rows]))
    options = FitOptions(background_places=300, refits=2, gate=False)
    fitted = fit(Records.read(path), model=MODEL, options=options)
    given = {"fitted": fitted, "environment": [scenario(12.0)], **MAP}
    job = sdm.plan(clamp=True, mess=True, compare_with="current", **given)
    target = job.plan.targets[0]
    assert isinstance(target.fit, ClampedFit) and target.bands[-1] is MESS
    assert job.outside[0].share > 0.5 and "temperature" in job.outside[0].variable.lower()
    (result,) = sdm.write_maps(job, tmp_path / "maps", threads=1, formats="cog")
    assert np.nanmin(pixels(result.files["tif"], len(target.bands) + 1)) < 0
    far = np.full((3, fitted.reference.quantiles.shape[1]), 50.0, dtype=np.float32)
    near = np.repeat(fitted.reference.quantiles[-1:], 3, axis=0)
    embeddings = np.zeros((3, MODEL.dim), dtype=np.float32)
    np.testing.assert_array_equal(target.fit.logit(embeddings, far), fitted.logit(embeddings, near))
    assert np.nanmax(np.abs(pixels(result.files["change.tif"]))) > 0.01


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compare_with": "current"}, "--environment"),
        ({"clamp": True}, "--clamp limits rasters given with --environment"),
        ({"environment": ["ONE"], "compare_with": ["current", "other.tif"]}, "cannot be combined"),
    ],
)
def test_options_without_meaning_are_refused(scenario, options, says):
    options = {k: [scenario()] if v == ["ONE"] else v for k, v in options.items()}
    with pytest.raises(RequestError, match=says):
        sdm.plan(PIKA, **options, **MAP)
    with pytest.raises(RequestError, match="single maps"):
        sdm.map_batch([PIKA], compare_with="current", out="nowhere", **MAP)
