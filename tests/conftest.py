"""Shared by all tests: synthetic rasters, and a guard against tests that quietly do not run."""

import os
import shutil

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
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--window-size={window}",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
        )  # fmt: skip
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
        values, name="layer.tif", west=-180.0, north=90.0, cell=1.0, transform=None, crs="EPSG:4326",
        descriptions=(), scale=None, offset=None, **profile,
    ):  # fmt: skip
        values = np.asarray(values)
        values = values[None] if values.ndim == 2 else values
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        transform = transform or Affine(cell, 0, west, 0, -cell, north)
        with rasterio.open(
            path, "w", driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2],
            dtype=values.dtype, crs=crs, transform=transform, **profile,
        ) as dst:  # fmt: skip
            dst.write(values)
            for band, text in enumerate(descriptions, 1):
                dst.set_band_description(band, text)
            if scale is not None:
                dst.scales = (scale,) * len(values)
                dst.offsets = (offset or 0.0,) * len(values)
        return path

    return write
