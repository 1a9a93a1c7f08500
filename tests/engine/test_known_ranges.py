"""What is known of a range moves the cosines of a map, an index and a list alike, whatever the tiles."""

import dataclasses

import numpy as np
import pytest

from sdm.engine.compare import score_embeddings
from sdm.engine.targets import make_target, probability
from sdm.engine.tile import embed_tile, score_tile
from sdm.grid import Tile
from sdm.models.known_ranges import KnownRange
from sdm.models.registry import list_models
from sdm.names import Resolution
from sdm.request.choices import MODALITIES
from tests.engine.test_tiling import assert_same_bytes, plan_of, whole_map

BOXES = np.array([[-122, 49, -121, 50], [178.5, 63, 181, 64]], dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    return list_models()[0]


def with_known(plan, offset=3.0, drop=8.0):
    known = KnownRange(BOXES, offset, drop, 150.0, 0.9, 0.1).times(1.0 / plan.targets[0].score.scale)
    first = dataclasses.replace(plan.targets[0], known=known)
    return dataclasses.replace(plan, targets=(first, *plan.targets[1:]))


@pytest.mark.parametrize("grid", ["degrees", "antimeridian"])
def test_any_tiling_gives_the_same_bytes(model, grid):
    plain = plan_of(model, grid)
    moved = with_known(plain)
    values, before = assert_same_bytes(moved), whole_map(plain, 4096)
    assert np.array_equal(values[1:], before[1:], equal_nan=True)  # the other species are as before
    logit, was = (np.log(v[0] / (1 - v[0])) for v in (values.astype(np.float64), before.astype(np.float64)))
    change = (logit - was)[np.isfinite(logit - was)]
    assert change.max() == pytest.approx(3.0, abs=0.15) and change.min() == pytest.approx(-5.0, abs=0.15)


def test_a_list_has_the_values_of_a_map(model):
    plan = with_known(plan_of(model, "degrees", step=1, mask="none"))
    grid = plan.grid
    tile = Tile((0, 0), slice(30, 62), slice(40, 72))
    embeddings, pixels, _ = embed_tile(plan, tile)
    lonlat = tuple(a.ravel()[pixels] for a in plan.lonlat(*plan.pixels(tile)))
    expected = score_tile(plan, tile).reshape(3, -1)[:, pixels]
    listed = [row for _, row in score_embeddings(embeddings, plan.targets, lonlat=lonlat)]
    for k in (0, 1):
        assert listed[k] == pytest.approx(expected[k], abs=2e-3)
    with pytest.raises(ValueError, match="positions are needed"):
        list(score_embeddings(embeddings, plan.targets))
    # Far from the range everything is negligible, and nothing is computed.
    far = dataclasses.replace(with_known(plan, offset=-60.0, drop=0.0).targets[0])
    assert [row for _, row in score_embeddings(embeddings, [far], negligible=1e-4, lonlat=lonlat)] == [None]
    assert grid.shape[0] > 62


def test_only_native_probabilities_of_species_have_a_known_range(model):
    """By name, with the atlas as a prior; the unit is that of the cosine."""
    score = probability(model, MODALITIES)
    taxon = next(iter(model.taxa))
    known = KnownRange(BOXES, 3.0, 8.0, 150.0, 0.9, 0.1)

    class WithTable:
        def known_range(self, asked):
            return known if asked.rank == "species" else None

        def extent(self, group):
            return None

    vector = np.ones(model.dim, np.float32)
    resolution = Resolution(taxon.name, taxon, True, "scientific name")
    target = make_target(WithTable(), resolution, vector, score)
    assert target.atlas == "prior" and target.known.offset == pytest.approx(3.0 / score.scale)
    assert make_target(WithTable(), resolution, vector, score, atlas="none").atlas == "none"
    whole = dataclasses.replace(resolution, origin="all")
    assert make_target(WithTable(), whole, vector, score).known is None
