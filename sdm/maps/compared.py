"""The files of a map of another climate beside one of today: the baseline, and the change from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.places import Plan
from sdm.maps.plan import Job
from sdm.maps.report import describe

if TYPE_CHECKING:
    from sdm.outputs.blocks import Source

COMPARED = ("-current.tif", "-current.qml", "-change.tif", "-change.qml")
"""Of the baseline, and of the map minus the baseline."""


class Compared:
    """The baseline of a job, computed into stores of its own."""

    def __init__(self, job: Job, plan: Plan, folder: Path, command: str) -> None:
        self.job, self.plan, self.command = job, plan, command
        self.stores = [folder / f"{stem}-current.zarr" for stem in job.slugs]
        given = ", ".join(job.asked.query.compare_with)
        self.name = "the bundled layers" if given == "current" else given

    def create(self) -> None:
        """Make the empty stores."""
        from sdm.outputs import zarr_store

        side = self.job.grid.tile_size
        for k, store in enumerate(self.stores):
            zarr_store.create(store, self.job.grid.geobox, (side, side), describe(self.job, k, self.command))

    def write(self, k: int, scenario: Source, path: Callable[[str], Path]) -> dict[str, Any]:
        """Write the files of the k-th map; returns the statistics of the change, as JSON values.

        `scenario`: the map itself; `path`: where a file of a name goes.
        """
        from sdm.outputs import cube
        from sdm.outputs.cog import write_cog
        from sdm.outputs.style import DIVERGING, write_qml

        geobox, stem = self.job.grid.geobox, self.job.slugs[k]
        meta = describe(self.job, k, self.command)
        current = cube.Layer(self.stores[k], meta.variable)
        then = replace(
            meta,
            title=f"{meta.title}, baseline",
            description=f"The baseline of a change: the environment is that of {self.name}. {meta.description}",
            tags={**meta.tags, "environment": self.name},
        )
        before = write_cog(path(f"{stem}-current.tif"), current, geobox, then)
        write_qml(path(f"{stem}-current.qml"), then)
        low, high = meta.valid_range
        change = replace(
            meta,
            title=f"{meta.title}, change",
            quantity=f"Change from the baseline: {meta.quantity}",
            description=(
                f"The map with the rasters given, minus the map with the environment of {self.name}: above 0 the value "
                f"rises. {meta.description}"
            ),
            variable="change",
            valid_range=(low - high, high - low),
            tags={**meta.tags, "baseline": self.name},
        )
        difference = write_cog(path(f"{stem}-change.tif"), _Difference(scenario, current), geobox, change)
        largest = max(abs(difference.min or 0.0), abs(difference.max or 0.0))
        reach = max(math.ceil(10 * largest), 1) / 10
        write_qml(path(f"{stem}-change.qml"), replace(change, valid_range=(-reach, reach)), ramp=DIVERGING)
        return {
            "baseline": self.name,
            "mean": difference.mean,
            "least": difference.min,
            "greatest": difference.max,
            "expected_area_before_km2": before.expected_area_km2,
        }


class _Difference:
    """One layer minus another as a source for the writers; NaN where either is."""

    chunks = None

    def __init__(self, one: Source, other: Any) -> None:
        self._one, self._other = one, other
        self.shape, self.encoding = other.shape, other.encoding

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Values (rows, columns), float32."""
        part: Any = self._one[place]
        values = np.asarray(part.values if hasattr(part, "values") else part, dtype=np.float32)
        return np.asarray(values - self._other[place])
