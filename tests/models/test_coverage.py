"""Where a model had anything to learn from."""

import base64
import zlib

import numpy as np
import pytest

import sdm
from sdm.errors import ModelError
from sdm.maps.plan import plan
from sdm.models.coverage import Coverage

BOX = {"bbox": (5, 45, 15, 50), "resolution": 0.25}


def test_round_trip_and_positions():
    cells = np.random.default_rng(0).random((180, 360)) < 0.5
    coverage = Coverage.decode(Coverage(1.0, cells).encode())
    assert coverage.degrees == 1.0 and (coverage.cells == cells).all()
    row, col = np.indices(cells.shape)
    assert (coverage.keep(-179.5 + col, 89.5 - row) == cells).all()
    # The antimeridian is one line, whichever way it is written, and the poles are in the last rows.
    lon, lat = np.array([180.0, -180.0, 540.0, 0.5, 0.5]), np.array([0.5, 0.5, 0.5, 90.0, -90.0])
    assert coverage.keep(lon, lat).tolist() == [cells[89, 0]] * 3 + [cells[0, 180], cells[179, 180]]
    assert not coverage.keep(np.array([np.nan, 0.0]), np.array([0.0, np.inf])).any()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (None, "needs degrees"),
        ({"degrees": 0.3, "cells": ""}, "needs degrees"),
        ({"degrees": True, "cells": ""}, "needs degrees"),
        ({"degrees": 1.0, "cells": 5}, "needs degrees"),
        ({"degrees": 1.0, "cells": "no base64"}, "cannot be read"),
        ({"degrees": 1.0, "cells": "AAAA"}, "cannot be read"),
        ({"degrees": 1.0, "cells": base64.b64encode(zlib.compress(b"\0" * 8099)).decode()}, "8099 bytes"),
        ({"degrees": 1.0, "cells": base64.b64encode(zlib.compress(b"\0" * 10**8)).decode()}, "8101 bytes"),  # a bomb
    ],
)
def test_what_is_no_coverage(entry, problem):
    with pytest.raises(ValueError, match=problem):
        Coverage.decode(entry)


def test_maps_are_nodata_outside(write_model, tmp_path):
    bear = [("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal")]

    def mapped(name, **more):
        folder = tmp_path / name
        options = {"uncovered": more.pop("uncovered", None)}
        write_model(folder, bear, **more)
        return sdm.map_species("Ursus arctos", model=folder, **BOX, **options)

    west = np.zeros((180, 360), bool)
    west[:, :190] = True  # to 10 E
    everywhere, part = mapped("all"), mapped("part", coverage=Coverage(1.0, west).encode(), uncovered="hide")
    expected, inside = everywhere.values, (part.x.values < 10) & np.ones((part.sizes["y"], 1), bool)
    assert np.isfinite(expected[inside]).mean() > 0.9 and np.isfinite(expected[~inside]).mean() > 0.5
    np.testing.assert_array_equal(part.values, np.where(inside, expected, np.nan))
    told = [plan("Ursus arctos", model=tmp_path / name, **BOX).notes[0] for name in ("all", "part")]
    assert ["no reliable training data" in " ".join(notes) for notes in told] == [False, True]
    shown = sdm.map_species("Ursus arctos", model=tmp_path / "part", **BOX)
    np.testing.assert_array_equal(np.isfinite(shown.values), np.isfinite(expected))
    assert everywhere.attrs["model_hash"] != part.attrs["model_hash"]
    with pytest.raises(ModelError, match="coverage"):
        mapped("bad", coverage={"degrees": 1.0, "cells": "?"})
