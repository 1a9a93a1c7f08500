"""Training: the loss, the measures, the data adapters, and a small model from recipe to map."""

import json

import numpy as np
import pyproj
import pytest
import shapely
import torch

from sdm.errors import LayerError, RequestError
from sdm.training import evaluate
from sdm.training.loss import RangeLoss
from sdm.training.ranges import RangePolygons, RangeRaster, draw_places
from sdm.training.recipe import Recipe

BEHRMANN = "+proj=cea +lat_ts=30 +datum=WGS84"


def test_range_loss_has_the_gradient_of_cross_entropy():
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(48, 32), dim=-1).requires_grad_()
    t = torch.nn.functional.normalize(torch.randn(90, 32), dim=-1).requires_grad_()
    scale, bias = torch.tensor([2.5], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    presence = (torch.rand(48, 90) < 0.1).to(torch.uint8)
    unknown = torch.rand(48) < 0.3

    logits = scale.exp() * (z @ t.T) + bias
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, presence.float(), reduction="none")
    known = torch.ones_like(each)
    known[unknown, 60:] = 0
    (each * known).sum(1).mean().div(100).backward()
    expected = [v.grad.clone() for v in (z, t, scale, bias)]

    for v in (z, t, scale, bias):
        v.grad = None
    RangeLoss.apply(z, t, scale, bias, presence, unknown, 60).backward()
    for v, e in zip((z, t, scale, bias), expected, strict=True):
        assert torch.allclose(v.grad, e, rtol=0.03, atol=3e-4 * float(e.abs().max()) + 1e-6) or (
            (v.grad - e).norm() / e.norm() < 0.01  # bfloat16 products
        )


def test_average_precision_and_auc_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    present = np.array([1, 0, 1, 0, 0])
    assert evaluate.average_precision(score, present) == pytest.approx((1 / 1 + 2 / 3) / 2)
    # Pairs (presence, absence): 6; lost: 0.7 against 0.8.
    assert evaluate.auc(score, present) == pytest.approx(5 / 6)
    assert evaluate.auc(np.zeros(5), present) == pytest.approx(0.5)


def test_calibration_error_by_hand():
    p = np.array([0.1, 0.1, 0.9, 0.9])
    y = np.array([0, 1, 1, 1])
    # |0.2 - 1| in one bin, |1.8 - 2| in another, over four pairs.
    ece, above, table = evaluate.calibration_error(p, y)
    assert ece == pytest.approx((0.8 + 0.2) / 4)
    assert above == pytest.approx((0.8 + 0.2) / 4)  # 0.1 lies in the second of 15 bins
    assert [row[2] for row in table] == [2, 2]


def test_fit_calibration_recovers_the_truth():
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.5, 0.9, 200_000)
    y = rng.random(x.size) < 1 / (1 + np.exp(-(17.0 * x - 6.0)))
    scale, bias = evaluate.fit_calibration(x, y, (5.0, 0.0))
    assert scale == pytest.approx(17.0, rel=0.03)
    assert bias == pytest.approx(-6.0, rel=0.03)
    # A start far too sure of itself, from which a full Newton step runs away.
    assert evaluate.fit_calibration(x, y, (90.0, -2.0)) == pytest.approx((scale, bias), rel=1e-4)


def test_held_out_blocks_are_whole_blocks():
    rng = np.random.default_rng(2)
    lonlat = np.stack([rng.uniform(-180, 180, 20_000), rng.uniform(-60, 85, 20_000)], axis=1)
    out = evaluate.held_out(lonlat, 10.0, 0.2, seed=7)
    assert 0.1 < out.mean() < 0.3
    tens = np.floor(lonlat / 10.0)
    for block in np.unique(tens, axis=0)[:200]:
        inside = (tens == block).all(axis=1)
        assert out[inside].all() or not out[inside].any()


@pytest.fixture
def world():
    """Two species on a coarse equal-area grid: one in the west, one in the north."""
    rows, cols = 10, 20
    x0, y1 = pyproj.Transformer.from_crs(4326, BEHRMANN, always_xy=True).transform(-180, 75)
    dx, dy = -2 * x0 / cols, -2 * y1 / rows
    west = np.tile(np.arange(cols) < cols // 2, (rows, 1))
    north = np.repeat(np.arange(rows) < rows // 2, cols).reshape(rows, cols)
    packed = np.packbits(np.stack([west.ravel(), north.ravel()], axis=1).astype(np.uint8), axis=1)
    wkt = pyproj.CRS.from_user_input(BEHRMANN).to_wkt()
    return RangeRaster(["Ursus arctos", "Vulpes vulpes"], packed, (rows, cols), (dx, 0, x0, 0, dy, y1), wkt)


def test_places_lie_in_their_cells(world):
    places = draw_places(world, lambda lon, lat: lat > 0, None, 5, 9, 2, seed=3)
    lon, lat = places.lonlat.T
    labels = world.labels(places.cell)
    assert ((lon < 0) == labels[:, 0].astype(bool)).all()
    assert ((lat > 0) == labels[:, 1].astype(bool)).all()
    assert (places.count[places.land] == 5).all() and (places.count[~places.land] == 2).all()
    assert (places.cell[places.start[7]] == 7) and places.count.sum() == len(lon)


def test_polygon_labels():
    polygons = RangePolygons(["a", "b"], np.array([shapely.box(0, 0, 10, 10), shapely.box(5, 5, 20, 20)]))
    labels = polygons.labels(np.array([1.0, 7.0, 15.0, 30.0]), np.array([1.0, 7.0, 15.0, 30.0]))
    assert labels.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]


def test_phylacine_from_rasters(tmp_path, write_raster):
    from affine import Affine

    present = np.zeros((6, 12), np.uint8)
    present[1, 3] = 1
    grid = Affine(2_000_000, 0, -12_000_000, 0, -2_000_000, 6_000_000)
    write_raster(present, name="r/Ursus_arctos.tif", transform=grid, crs=BEHRMANN)
    write_raster(present * 0, name="r/Vulpes_vulpes.tif", transform=grid, crs=BEHRMANN)
    raster = RangeRaster.phylacine(tmp_path / "r", {"Ursus arctos", "Vulpes vulpes"})
    assert raster.species == ["Ursus arctos"]  # an empty range is no range
    assert np.flatnonzero(raster.labels(np.arange(72))[:, 0]).tolist() == [15]
    with pytest.raises(LayerError, match="holds no range"):
        RangeRaster.phylacine(tmp_path, {"Ursus arctos"})


RECIPE = """
name = "tiny"
title = "Tiny"
version = "1"
licence = "CC0-1.0"
[data]
phylacine = "{data}"
points_per_cell = 3
points_per_cell_sea = 1
[architecture]
dim = 16
location = {{ sigmas = [1.0], features = 8, width = 32, depth = 1, pitch = 0.5 }}
satellite = {{ size = 16, pixel = 0.06666666666666667, width = 8, depth = 1, pitch = 0.5 }}
environment = {{ width = 16, depth = 1, pitch = 0.25 }}
[optimiser]
steps = {steps}
batch = 128
subset_shares = {{ location = 0.2, environment = 0.2 }}
[evaluation]
block_degrees = 30.0
min_cells = 2
"""

TAXA = """species,kingdom,phylum,class,order,family,genus,common,synonyms,group
Ursus arctos,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,brown bear,,mammal
Vulpes vulpes,Animalia,Chordata,Mammalia,Carnivora,Canidae,Vulpes,red fox,,mammal
"""


@pytest.mark.slow
def test_recipe_to_map(tmp_path, world, monkeypatch):
    """Ranges, recipe, training, export; then the exported folder maps, and has learned the two halves."""
    from sdm.api import map_species
    from sdm.training.run import run

    bits = np.unpackbits(world.presence, axis=1)[:, :2].T
    np.savez(
        tmp_path / "phylacine_current_ranges.npz", species=np.array(["Ursus_arctos", "Vulpes_vulpes"]),
        packed=np.packbits(bits, axis=1), n_cells=bits.sum(1), shape=np.array(world.shape),
        transform=np.array(world.transform), crs_wkt=world.crs,
    )  # fmt: skip
    out = tmp_path / "tiny"
    out.mkdir()
    (out / "taxa.csv").write_text(TAXA)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(data=tmp_path.as_posix(), steps=300))
    recipe = Recipe.read(path)
    with pytest.raises(RequestError, match="run the stage develop"):
        run(recipe, out, tmp_path / "run", ("ship",))
    metrics = run(recipe, out, tmp_path / "run", ("develop", "ship"))
    held = metrics["held_out_blocks"]
    assert held["location"]["ece"] < 0.1
    shipped = json.loads((out / "config.json").read_text())["calibration"]["location"]
    assert [shipped["scale"], shipped["bias"]] == list(metrics["calibration"]["location"])
    assert set(held) >= {"location", "location+satellite+environment"}
    assert held["location"]["auc"] > 0.9
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["held_out_blocks"].keys() == held.keys()
    west = map_species("Ursus arctos", bbox=(-110, 40, -105, 45), model=out, mask="none", resolution=1.0).values
    east = map_species("Ursus arctos", bbox=(80, 40, 85, 45), model=out, mask="none", resolution=1.0).values
    assert np.nanmean(west) > 0.6 > 0.4 > np.nanmean(east)


def test_recipe_errors_name_the_key(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(data="x", steps=1) + "wrong = 1\n")
    with pytest.raises(RequestError, match=r"\[evaluation\] has the unknown key 'wrong'"):
        Recipe.read(path)
    path.write_text("name = [")
    with pytest.raises(RequestError, match="not valid TOML"):
        Recipe.read(path)
    with pytest.raises(RequestError, match="cannot be read"):
        Recipe.read(tmp_path / "none.toml")


def test_bundled_recipe_describes_the_bundled_model():
    """What the recipe says is what was shipped."""
    from sdm.model import Model
    from sdm.resources import folder

    recipe = Recipe.read(folder("recipes") / "mammals-trees.toml")
    config = Model.open("mammals-trees").config
    assert config["dim"] == recipe.architecture.dim
    for part in ("location", "satellite"):
        assert config[part] == dict(getattr(recipe.architecture, part))
    environment = {k: v for k, v in config["environment"].items() if k != "inputs"}
    assert environment == dict(recipe.architecture.environment)
