"""Shared by all tests: synthetic rasters, small models, and a guard against tests that quietly do not run."""

import csv
import json
import os
import shutil
import signal
import sys

# Before torch loads: threads that spin for each other make small tests crawl on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import rasterio
from affine import Affine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """On the machine of continuous integration, which has everything, a skipped test is a failed one.

    Allowed are those that need a GPU, and those that say they cannot run as root.
    """
    report = yield
    excused = item.get_closest_marker("gpu") or "root" in str(report.longrepr)
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("TAXABIND_MAP_NO_SKIPS") and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped where no test may be: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Ctrl-C arrives, here and in the processes that tests start, also where the tests run in the background.

    A shell that is not interactive starts `make test &` with SIGINT ignored, which Python and all its children keep.
    Children do not inherit a handler, but the default action in its place.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def open_browser(tmp_path_factory):
    """Function: a headless Chromium with a window of "WIDTH,HEIGHT", without a network of its own."""

    def open_(window):
        webdriver = pytest.importorskip("selenium.webdriver")
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not chromium or not driver:
            pytest.skip("chromium and chromedriver are not installed")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            f"--window-size={window}",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
        )
        for flag in flags:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))

    return open_


@pytest.fixture
def write_raster(tmp_path):
    """Function: write (bands, rows, cols) or (rows, cols) as a GeoTIFF and return its path.

    `west`, `north`, `cell` place it north-up; `transform` overrides them.
    """

    def write(
        values,
        name="layer.tif",
        west=-180.0,
        north=90.0,
        cell=1.0,
        transform=None,
        crs="EPSG:4326",
        descriptions=(),
        scale=None,
        offset=None,
        **profile,
    ):
        values = np.asarray(values)
        values = values[None] if values.ndim == 2 else values
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        transform = transform or Affine(cell, 0, west, 0, -cell, north)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=len(values),
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            crs=crs,
            transform=transform,
            **profile,
        ) as dst:
            dst.write(values)
            for band, text in enumerate(descriptions, 1):
                dst.set_band_description(band, text)
            if scale is not None:
                dst.scales = (scale,) * len(values)
                dst.offsets = (offset or 0.0,) * len(values)
        return path

    return write


def _taxa_of(species, introduced=()):
    """Rows of `taxa.csv` and tokens of the species of a small model."""
    rows, vocabulary = [], {}
    for name, class_, order, family, group, *more in species:
        genus = name.split()[0]
        kingdom, phylum = ("Plantae", "Tracheophyta") if group == "tree" else ("Animalia", "Chordata")
        lineage = (kingdom, phylum, class_, order, family, genus, name)
        ranks = ("class", "order", "family", "genus", "species")
        vocabulary |= dict.fromkeys(f"{r}:{n}" for r, n in zip(ranks, lineage[2:], strict=True))
        common, synonyms = (*more, "", "")[:2]
        if name in introduced:
            vocabulary[f"species:{name} [all]"] = None
        rows.append([name, *lineage[:6], common, synonyms, group, 10, 0.0])
    return rows, vocabulary


def _write_names(folder, vocabulary, rows, genera=()):
    """The tables of names of a small model."""
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")
    ranks = ["kingdom", "phylum", "class", "order", "family", "genus"]
    tables = {"taxa": (["species", *ranks, "common", "synonyms", "group", "cells", "marine"], rows)}
    if genera:
        tables["genera"] = (ranks, genera)
    for table, (header, lines) in tables.items():
        with (folder / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *lines])


@pytest.fixture(scope="session")
def write_model():
    """Function: write a small model of random weights, real inputs and some species, and return its folder.

    `species`: (name, class, order, family, group[, common names[, synonyms]]), several names joined by "|"; `genera`:
    lineages from the kingdom down; `introduced`: names of species with a vector of their whole range. With `season` the
    month counts for much.
    """
    import torch
    from safetensors.torch import save_file

    from sdm.models.config import all_subsets
    from sdm.models.encoders.bundled import build

    def write(
        folder, species, *, season=False, licence="CC0-1.0", ranges="", coverage=None, genera=(), seed=0, introduced=()
    ):
        config = {
            "format": "taxabind-map/1",
            "name": folder.name,
            "title": f"Test model {folder.name}",
            "version": "1",
            "licence": licence,
            "domain": [-60.0, 90.0],
            "groups": {},
            "dim": 16,
            **({"ranges": ranges} if ranges else {}),
            **({"coverage": coverage} if coverage else {}),
            "calibration": {"+".join(s): {"scale": 6.0, "bias": -1.0} for s in all_subsets()},
            "location": {
                "sigmas": [1.0, 3.0],
                "features": 8,
                "width": 16,
                "depth": 1,
                "pitch": 0.25,
                **({"season": True} if season else {}),
            },
            "satellite": {"size": 8, "pixel": 0.1, "width": 8, "depth": 1, "pitch": 0.25},
            "environment": {
                "width": 8,
                "depth": 1,
                "pitch": 0.2,
                "inputs": [{"layer": "bio1", "transform": "identity", "value": 0, "mean": 10.0, "std": 8.0}],
            },
        }
        rows, vocabulary = _taxa_of(species, introduced)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(seed)
        weights = build(config, list(vocabulary)).state_dict()
        if season:
            weights["location.net.0.weight"][:, -3:] *= 5.0
        save_file(weights, folder / "model.safetensors")
        _write_names(folder, vocabulary, rows, genera)
        return folder

    return write


@pytest.fixture(scope="session")
def share_model():
    """Function: write a small model that shares the encoders of one in a folder beside it, and return its folder.

    Its species, as of `write_model`, have vectors of int8, and a calibration of their own.
    """
    from safetensors.numpy import save_file

    from sdm.models.config import all_subsets
    from sdm.models.shared import encoders_digest

    def write(folder, base, species, *, scale=5.0, bias=-0.5, licence="CC-BY-4.0", dim=16, introduced=()):
        described = json.loads((base / "config.json").read_text())
        config = {
            "format": "taxabind-map/1",
            "name": folder.name,
            "title": f"Test model {folder.name}",
            "version": "1",
            "licence": licence,
            "encoders": {"model": base.name, "digest": encoders_digest(base, described)},
            "calibration": {"+".join(s): {"scale": scale, "bias": bias} for s in all_subsets()},
        }
        rows, vocabulary = _taxa_of(species, introduced)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        random = np.random.default_rng(1)
        weights = random.integers(-127, 128, (len(vocabulary), dim), dtype=np.int8)
        scales = random.uniform(0.01, 0.02, len(vocabulary)).astype(np.float32)
        save_file({"text.embedding.weight": weights, "text.embedding.scale": scales}, folder / "model.safetensors")
        _write_names(folder, vocabulary, rows)
        return folder

    return write


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Function: run a command in an empty folder; returns (exit code, stdout, stderr)."""
    from sdm import cli

    monkeypatch.chdir(tmp_path)

    def call(*args, entry=cli.main):
        monkeypatch.setattr(sys, "argv", ["taxabind-map", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            entry()
        code = stop.value.code
        captured = capsys.readouterr()
        return 0 if code is None else code, captured.out, captured.err

    return call
