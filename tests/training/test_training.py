"""Training: the loss, the measures, the splits, and small models from recipe to map."""

import csv
import json
import re
from dataclasses import fields, replace

import numpy as np
import pyproj
import pytest
import shapely
import torch

from sdm.errors import LayerError, ModelError, OutputError, RequestError, SdmError
from sdm.training import distributed, evaluate, run, splits
from sdm.training.loss import NOT_KNOWN, BlockLabels, RangeLoss
from sdm.training.prepare import prepare
from sdm.training.ranges import RangePolygons, RangeRaster, draw_places
from sdm.training.recipe import Recipe

BEHRMANN = "+proj=cea +lat_ts=30 +datum=WGS84"


def unit(n, dim, seed):
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1).requires_grad_()


def example_blocks():
    """Four blocks over 48 places and 90 species: hard with pooled places, some places, soft, partly known."""
    rng = np.random.default_rng(0)
    hard = torch.from_numpy((rng.random((48, 40)) < 0.2).astype(np.uint8))
    hard[:24] = hard[:24:4].repeat_interleave(4, dim=0)
    rows = torch.arange(48)[rng.random(48) < 0.6]
    some = torch.from_numpy((rng.random((len(rows), 50)) < 0.1).astype(np.uint8))
    soft = torch.from_numpy(rng.integers(0, 256, (48, 7)).astype(np.uint8))
    partial = torch.from_numpy(rng.choice([0, 1, NOT_KNOWN], (len(rows), 5)).astype(np.uint8))
    return [
        BlockLabels(hard, None, slice(0, 40), pooled=24, group=4),
        BlockLabels(some, rows, slice(40, 90)),
        BlockLabels(soft, None, torch.tensor([3, 89, 41, 0, 7, 8, 50]), soft=True, weight=0.5),
        BlockLabels(partial, rows, torch.tensor([1, 2, 88, 5, 4]), partial=True, weight=3.0),
    ]


def plain_loss(z, t, scale, bias, blocks, pool):
    """The definition, by the generic graph."""
    total = 0.0
    for block in blocks:
        rows = torch.arange(len(z)) if block.rows is None else block.rows
        logits = scale.exp() * (z[rows] @ t[block.columns].T) + bias
        label = block.labels.double() / 255 if block.soft else block.labels.double()
        known = torch.ones_like(label) if block.soft else (block.labels != NOT_KNOWN).double()
        label = torch.where(known > 0, label, 0.0)
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none") * known
        share = torch.ones(len(rows), 1, dtype=torch.float64)
        if pool and block.pooled:
            share[: block.pooled] = 1 - pool
            cells = logits[: block.pooled].view(-1, block.group, logits.shape[1])
            joint = cells.logsumexp(1) - np.log(block.group)
            pooled = torch.nn.functional.binary_cross_entropy_with_logits(
                joint, label[: block.pooled : block.group], reduction="sum"
            )
            total = total + block.weight * pool * block.group * pooled
        total = total + block.weight * (each * share).sum()
    return total / (100 * len(z))


@pytest.mark.parametrize("pool", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_range_loss_has_the_gradient_of_cross_entropy(pool, precision):
    """Against autograd of the definition in float64; products in bfloat16 are as good as those are."""
    z, t, blocks = unit(48, 32, 1), unit(90, 32, 2), example_blocks()
    scale, bias = torch.tensor([2.5], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    exact = [v.detach().double().requires_grad_() for v in (z, t, scale, bias)]
    value = plain_loss(*exact, blocks, pool)
    value.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = RangeLoss.apply(z, t, scale, bias, blocks, 48, pool)
    (loss * 2).backward()
    for v, e in zip((z, t, scale, bias), exact, strict=True):
        error = (v.grad - 2 * e.grad).norm() / (2 * e.grad).norm()
        assert error < (1e-5 if precision == "float32" else 0.012)
    if not pool:
        assert loss.item() == pytest.approx(value.item(), rel=1e-5 if precision == "float32" else 0.01)


def test_range_loss_of_shares_adds_up():
    """Two processes' shares, each divided by half the places: their mean is the whole batch's."""
    t, scale, bias = unit(90, 32, 2), torch.tensor([2.5]), torch.tensor([-1.0])
    z = unit(48, 32, 1).detach()
    labels = example_blocks()[0].labels

    def gradient(rows, count):
        t.grad = None
        RangeLoss.apply(z[rows], t, scale, bias, [BlockLabels(labels[rows], None, slice(0, 40))], count).backward()
        return t.grad.clone()

    whole = gradient(slice(0, 48), 48)
    parts = [gradient(slice(0, 20), 24), gradient(slice(20, 48), 24)]
    assert torch.allclose(sum(parts) / 2, whole, atol=1e-7)


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
    # Probabilities as labels say more than draws from them.
    soft = evaluate.fit_calibration(x, 1 / (1 + np.exp(-(17.0 * x - 6.0))), (5.0, 0.0))
    assert soft == pytest.approx((17.0, -6.0), rel=1e-3)


def test_scores_of_soft_and_partly_known_labels():
    rng = np.random.default_rng(3)
    label = rng.random((300, 4)).astype(np.float32)
    score = label + rng.normal(0, 0.3, label.shape)
    known = rng.random(label.shape) < 0.7
    result = evaluate.score(score, label, label, known, min_places=5)
    expected = [evaluate.auc(score[known[:, j], j], label[known[:, j], j] >= 0.5) for j in range(4)]
    assert result["auc"] == pytest.approx(np.mean(expected)) and result["species"] == 4
    assert result["ece"] == pytest.approx(0, abs=1e-6)  # the label itself as probability
    nothing = evaluate.score(score, label, label * 0, None, min_places=5)
    assert nothing["ap"] is None and nothing["species"] == 0


def test_held_out_blocks_are_whole_blocks():
    rng = np.random.default_rng(2)
    lonlat = np.stack([rng.uniform(-180, 180, 20_000), rng.uniform(-60, 85, 20_000)], axis=1)
    out = splits.held_out_places("blocks", lonlat, block_degrees=10.0, fraction=0.2, seed=7)
    assert 0.1 < out.mean() < 0.3
    tens = np.floor(lonlat / 10.0)
    for block in np.unique(tens, axis=0)[:200]:
        inside = (tens == block).all(axis=1)
        assert out[inside].all() or not out[inside].any()


CITIES = {
    "africa": [(31.2, 30.0), (-5.8, 35.7), (47, -19), (42.6, 11.6)],
    "asia": [(34, 29), (139.7, 35.7), (30, 40.9), (107, -6.2), (-172, 66), (83, 55), (125, 8)],
    "australia": [(151, -33.9), (147.2, -9.4), (172, -43), (-149.5, -17.6)],
    "europe": [(0, 51.5), (-22, 64.1), (16, 78), (25, 35.2), (37.6, 55.7), (14.4, 35.9)],
    "north-america": [(-74, 40.7), (-40, 70), (-156, 20), (-80.5, 8.6), (-160, 66), (-61, 14)],
    "south-america": [(-74.1, 4.6), (-91, -0.7), (-68, -54), (-61.3, 10.4)],
    "antarctica": [(0, -80)],
}


def test_continents():
    for name, cities in CITIES.items():
        assert set(splits.continent(np.array(cities, float))) == {name}
    here = np.array([(31.2, 30.0), (0, 51.5), (-74, 40.7)])
    held = splits.held_out_places("continents", here, continents=("africa", "north-america"))
    assert held.tolist() == [True, False, True]


def test_climates():
    places = {"A": (101.7, 3.1), "B": (25, 25), "C": (0, 51.5), "D": (83, 55), "E": (-40, 72)}
    lonlat = np.array(list(places.values()), float)
    assert splits.koeppen(lonlat).tolist() == list(places)
    assert splits.held_out_places("climate", lonlat, climate=("A", "E")).tolist() == [True, False, False, False, True]
    assert splits.held_out_places("climate", lonlat, climate=("dry",)).tolist()[1:3] == [True, False]
    cold = splits.in_climate(lonlat, ("cold",), 0.2)
    assert cold[4] and not cold[:3].any()


def test_held_out_species_are_a_share():
    out = splits.held_out_species([str(k) for k in range(50)], 0.3, seed=1)
    assert out.sum() == 15 and (out == splits.held_out_species([""] * 50, 0.3, seed=1)).all()
    assert not splits.held_out_places("species", np.zeros((3, 2))).any()


def test_splits_that_are_refused():
    here = np.zeros((2, 2))
    for split, options, said in [
        ("halves", {}, "split 'halves' is not known; choose blocks, continents"),
        ("continents", {}, "needs continents, those held out: africa"),
        ("continents", {"continents": ("atlantis",)}, "continent 'atlantis' is not known"),
        ("climate", {"climate": ("nice",)}, "climate 'nice' is not known; choose A, B"),
        ("climate", {}, "needs climate"),
    ]:
        with pytest.raises(RequestError, match=said):
            splits.held_out_places(split, here, **options)


@pytest.fixture
def world():
    """Two species on a coarse equal-area grid: one in the west, one in the north."""
    rows, cols = 10, 20
    # Between 40 W and 40 E, 40 S and 40 N: of the whole globe the layers would take seconds to read.
    x0, y1 = pyproj.Transformer.from_crs(4326, BEHRMANN, always_xy=True).transform(-40, 40)
    dx, dy = -2 * x0 / cols, -2 * y1 / rows
    west = np.tile(np.arange(cols) < cols // 2, (rows, 1))
    north = np.repeat(np.arange(rows) < rows // 2, cols).reshape(rows, cols)
    packed = np.packbits(np.stack([west.ravel(), north.ravel()], axis=1).astype(np.uint8), axis=1)
    wkt = pyproj.CRS.from_user_input(BEHRMANN).to_wkt()
    return RangeRaster(["Ursus arctos", "Vulpes vulpes"], packed, (rows, cols), (dx, 0, x0, 0, dy, y1), wkt)


def test_places_lie_in_their_cells(world):
    denser = [((0, 0, 20, 90), 9, 3.0)]
    places = draw_places(world, lambda lon, lat: lat > 0, denser, 5, 2, 0.7, seed=3)
    lon, lat = places.lonlat.T
    labels = world.labels(places.origin)
    assert ((lon < 0) == labels[:, 0].astype(bool)).all()
    assert ((lat > 0) == labels[:, 1].astype(bool)).all()
    assert (world.cells(lon, lat) == places.origin).all()
    assert (world.cells(np.array([0.0]), np.array([89.99])) == -1).all()
    land = labels[places.start, 1].astype(bool)
    assert set(places.count[land]) == {5, 9} and set(places.count[~land]) == {2}
    assert places.weight[land].sum() == pytest.approx(0.7) and places.weight.sum() == pytest.approx(1.0)
    assert places.weight[places.count == 9].mean() == pytest.approx(3 * places.weight[places.count == 5].mean())
    assert (places.origin[places.start[7]] == 7) and places.count.sum() == len(lon)


def test_presence_at_positions(world):
    lon, lat = np.array([-30.0, 30.0, -30.0, 30.0, -60.0]), np.array([20.0, 20.0, -20.0, -20.0, 20.0])
    assert [world.at(k, lon, lat).tolist() for k in (0, 1)] == [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    cells = np.arange(200)
    half = np.full(200, 0.5)
    for k in (0, 1):
        assert (world.at(k, *world.positions(cells, half, half)) == world.labels(cells)[:, k]).all()


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
    with pytest.raises(LayerError, match="holds no range"):
        RangeRaster.phylacine(tmp_path / "r", {"Vulpes vulpes"})  # its range is empty
    # Two names of one species are one range.
    write_raster(np.roll(present, 1), name="r/Ursus_horribilis.tif", transform=grid, crs=BEHRMANN)
    assert RangeRaster.names(tmp_path / "r") == ["Ursus arctos", "Ursus horribilis", "Vulpes vulpes"]
    raster = RangeRaster.phylacine(tmp_path / "r", {"Ursus arctos": "Ursus arctos", "Ursus horribilis": "Ursus arctos"})
    assert raster.species == ["Ursus arctos"]
    assert np.flatnonzero(raster.labels(np.arange(72))[:, 0]).tolist() == [15, 16]


def test_ranges_that_are_refused(tmp_path, write_raster):
    from affine import Affine

    grid = Affine(2_000_000, 0, -12_000_000, 0, -2_000_000, 6_000_000)
    ones = np.ones((6, 12), np.uint8)
    for k, (values, options, said) in enumerate(
        [
            (ones * 255, {"transform": grid, "crs": BEHRMANN}, "holds the value 255; present is 1"),
            (ones * np.float32(0.3), {"transform": grid, "crs": BEHRMANN}, "holds the value 0.3"),
            (ones, {"transform": grid, "crs": None}, "has no CRS"),
            (ones, {"transform": grid @ Affine.rotation(30), "crs": BEHRMANN}, "is rotated"),
        ]
    ):
        write_raster(values, name=f"{k}/Ursus_arctos.tif", **options)
        with pytest.raises(LayerError, match=said):
            RangeRaster.phylacine(tmp_path / str(k), {"Ursus arctos"})
    (tmp_path / "0" / "Ursus_arctos.tif").write_bytes(b"II*\0")
    with pytest.raises(LayerError, match="cannot be read"):
        RangeRaster.phylacine(tmp_path / "0", {"Ursus arctos"})
    packed = tmp_path / "0" / "phylacine_current_ranges.npz"
    packed.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(LayerError, match="cannot be read"):
        RangeRaster.phylacine(tmp_path / "0", {"Ursus arctos"})
    np.savez(packed, species=["Ursus_arctos"], packed=np.zeros((1, 3), np.uint8), n_cells=[1], shape=[6, 12],
             transform=np.array(grid)[:6], crs_wkt=BEHRMANN)  # fmt: skip
    with pytest.raises(LayerError, match="do not fit together"):
        RangeRaster.names(tmp_path / "0")


RECIPE = """
name = "tiny"
title = "Tiny"
version = "1"
licence = "CC0-1.0"
[[data.source]]
kind = "ranges"
name = "mammals"
path = "{data}"
points_per_cell = 3
points_per_cell_sea = 1
[architecture]
dim = 16
location = {{ sigmas = [1.0], features = 8, width = 32, depth = 1, pitch = 0.5 }}
satellite = {{ size = 16, pixel = 0.06666666666666667, width = 8, depth = 1, pitch = 0.5 }}
environment = {{ width = 16, depth = 1, pitch = 0.25 }}
[objective]
subset_shares = {{ location = 0.2, environment = 0.2 }}
[optimiser]
steps = {steps}
batch = 128
[evaluation]
block_degrees = 10.0
min_cells = 2
"""

TAXA = """species,kingdom,phylum,class,order,family,genus,common,synonyms,group
Ursus arctos,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,brown bear,,mammal
Ursus ater,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,black bear,,mammal
Vulpes vulpes,Animalia,Chordata,Mammalia,Carnivora,Canidae,Vulpes,red fox,,mammal
Vulpes alba,Animalia,Chordata,Mammalia,Carnivora,Canidae,Vulpes,white fox,,mammal
Abies alba,Plantae,Tracheophyta,Pinopsida,Pinales,Pinaceae,Abies,silver fir,,tree
"""


@pytest.fixture
def tiny(tmp_path, world):
    """Function: (recipe, model folder) of the tiny world; `more` is appended to the recipe."""

    def make(steps=20, more="", swap=()):
        bits = np.unpackbits(world.presence, axis=1)[:, :2].T
        np.savez(
            tmp_path / "phylacine_current_ranges.npz", species=np.array([s.replace(" ", "_") for s in world.species]),
            packed=np.packbits(bits, axis=1), n_cells=bits.sum(1), shape=np.array(world.shape),
            transform=np.array(world.transform), crs_wkt=world.crs,
        )  # fmt: skip
        out = tmp_path / "tiny"
        out.mkdir(exist_ok=True)
        (out / "taxa.csv").write_text(TAXA)
        text = RECIPE.format(data=tmp_path.as_posix(), steps=steps) + more
        for old, new in swap:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.toml"
        path.write_text(text)
        return Recipe.read(path), out

    return make


def silent(line):
    pass


@pytest.mark.slow
def test_recipe_to_map(tmp_path, tiny, capsys):
    """Ranges, recipe, training, export; then the exported folder maps, and has learned the two halves."""
    from sdm.maps.array import map_species
    from sdm.models.bundled import BundledModel

    recipe, out = tiny(300)
    folder = tmp_path / "run"
    with pytest.raises(RequestError, match="run the stage develop"):
        run.run(recipe, out, folder, ("ship",))
    assert not folder.exists()
    metrics = run.run(recipe, out, folder, ("develop", "ship"))
    held = metrics["held_out"]["mammals"]
    assert held["location"]["ece"] < 0.1
    shipped = json.loads((out / "config.json").read_text())["calibration"]["location"]
    assert [shipped["scale"], shipped["bias"]] == list(metrics["calibration"]["location"])
    assert set(held) >= {"location", "location+satellite+environment"}
    assert held["location"]["auc"] > 0.9
    assert json.loads((folder / "metrics.json").read_text())["held_out"]["mammals"].keys() == held.keys()
    west = map_species("Ursus arctos", bbox=(-15, 20, -10, 25), model=out, mask="none", resolution=1.0).values
    east = map_species("Ursus arctos", bbox=(15, 20, 20, 25), model=out, mask="none", resolution=1.0).values
    assert np.nanmean(west) > 0.6 > 0.4 > np.nanmean(east)
    # The run folder says all.
    said = json.loads((folder / "run.json").read_text())
    assert said["settings"]["optimiser"]["batch"] == 128 and said["versions"]["torch"] == torch.__version__
    assert len(said["identity"]["recipe"]) == 64 and said["settings"]["data"]["source"][0]["kind"] == "ranges"
    assert (folder / "recipe.toml").read_text() == recipe.path.read_text()
    for stage in ("develop", "ship"):
        with (folder / stage / "curves.csv").open() as file:
            losses = [float(r["loss"]) for r in csv.DictReader(file)]
        assert losses[-1] < losses[0] and (folder / stage / "checkpoint.pt").is_file()
    assert BundledModel.open(out).config["calibration"] == json.loads((out / "config.json").read_text())["calibration"]
    # What is complete is not run again; another recipe is refused.
    capsys.readouterr()
    assert run.run(recipe, out, folder, ("develop", "ship"))["held_out"] == json.loads(json.dumps(metrics["held_out"]))
    assert "develop is complete" in capsys.readouterr().out
    other, _ = tiny(301)
    with pytest.raises(RequestError, match="holds a run of another recipe; give --restart"):
        run.run(other, out, folder, ("develop",))
    comment, _ = tiny(300, "# only a comment\n")
    assert run._digest(comment) == run._digest(recipe) != run._digest(other)
    # From where this one ended, with two encoders locked.
    swap = [
        ("[objective]", f'[objective]\ninitial = "{folder.as_posix()}"\nlocked = ["text", "location"]'),
        ("= 300", "= 3"),
    ]
    tuned, _ = tiny(300, swap=swap)
    data = prepare(tuned, out, silent, run.initial_inputs(tuned))
    objective = run.make_objective(tuned, data, np.arange(len(data.places.start)))
    before = {k: v.clone() for k, v in objective.encoders.state_dict().items()}
    developed = BundledModel.open(folder / "develop" / "model").load("cpu")
    assert torch.equal(before["text.embedding.weight"], developed.text.embedding.weight.float())
    run.trainer(tuned, objective, tmp_path / "tuned", "cpu", {}, silent).fit()
    moved = {k.split(".")[0] for k, v in objective.encoders.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"satellite", "environment"}


def test_resumed_run_is_exact(tmp_path, tiny):
    """A step that fails leaves the last checkpoint behind; from there the same weights as without a failure."""
    recipe, out = tiny(12, swap=[("batch = 128", "batch = 64\ncheckpoint_every = 5")])
    data = prepare(recipe, out, silent)

    def fitted(folder, fail_at=None):
        objective = run.make_objective(recipe, data, np.arange(len(data.places.start)))
        trainer = run.trainer(recipe, objective, tmp_path / folder, "cpu", {"data": data.fingerprint}, silent)
        draw = objective.draw

        def failing(n, rng):
            if trainer.step == fail_at:
                raise InterruptedError
            return draw(n, rng)

        objective.draw = failing
        trainer.fit()
        return objective.state_dict()

    whole = fitted("a")
    with pytest.raises(InterruptedError):
        fitted("b", fail_at=8)
    again = fitted("b")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize("pool", [0.0, 0.5])
def test_shares_of_two_processes_are_the_batch(tmp_path, tiny, monkeypatch, pool):
    """The mean of two processes' gradients is that of one, pooled groups and several blocks included."""
    points = "".join(f"Abies alba,{lon},{lat}\nUrsus ater,{lon},{lat + 1}\n" for lon in (-10, 20) for lat in (10, 20))
    (tmp_path / "r.csv").write_text("species,lon,lat\n" + points)
    source = f'[[data.source]]\nkind = "occurrences"\npath = "{(tmp_path / "r.csv").as_posix()}"\nshare = 0.5\n'
    objective_keys = f"[objective]\npool = {pool}\nplaces_per_cell = {3 if pool else 1}\n"
    recipe, out = tiny(5, swap=[("[architecture]", source + "[architecture]"), ("[objective]\n", objective_keys)])
    data = prepare(recipe, out, silent)
    objective = run.make_objective(recipe, data, np.arange(len(data.places.start)))
    batch = objective.draw(50, np.random.default_rng(0))
    assert (batch.pooled == 33) if pool else (batch.pooled == 0)
    if pool:
        cells = data.places.origin[batch.index[:33]].reshape(11, 3)
        assert (cells == cells[:, :1]).all() and (data.places.source[batch.index[:33]] == 0).all()
        assert len(np.unique(batch.index[:33])) > 11
    source = data.places.source[batch.index]
    assert (source == 0).sum() == 33 and (source == 1).sum() == 17

    def gradient():
        objective.zero_grad()
        loss, _ = objective(batch)
        loss.backward()
        return {n: p.grad.clone() for n, p in objective.named_parameters()}

    whole, parts = gradient(), []
    monkeypatch.setattr(distributed, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(gradient())
    for name, expected in whole.items():
        found = (parts[0][name] + parts[1][name]) / 2
        assert torch.allclose(found, expected, atol=1e-6 + 1e-5 * float(expected.abs().max())), name


def test_held_out_species(tmp_path, world, tiny):
    """They get no labels and no vector of their own, and are scored by each rank that a trained relative has."""
    bits = np.unpackbits(world.presence, axis=1)[:, :2]
    four = np.concatenate([bits, bits], axis=1)  # the second of each genus lives where the first does
    names = ["Ursus arctos", "Vulpes vulpes", "Ursus ater", "Vulpes alba"]
    object.__setattr__(world, "species", names)
    object.__setattr__(world, "presence", np.packbits(four, axis=1))
    bits_of = np.unpackbits(world.presence, axis=1)[:, :4].T
    recipe, out = tiny(120, swap=[("[evaluation]", '[evaluation]\nsplit = "species"\nheld_out = 0.25\nseed = 3')])
    np.savez(
        tmp_path / "phylacine_current_ranges.npz", species=np.array([s.replace(" ", "_") for s in names]),
        packed=np.packbits(bits_of, axis=1), n_cells=bits_of.sum(1), shape=np.array(world.shape),
        transform=np.array(world.transform), crs_wkt=world.crs,
    )  # fmt: skip
    data = prepare(recipe, out, silent)
    test, without = run.split(recipe, data)
    assert without.sum() == 1 and not test.any()
    objective = run.make_objective(recipe, data, np.arange(len(data.places.start)), without)
    batch = objective.draw(32, np.random.default_rng(0))
    objective(batch)[0].backward()
    own = data.species_rows[np.flatnonzero(without)[0], -1]
    gradient = objective.encoders["text"].embedding.weight.grad
    assert (gradient[own] == 0).all() and (gradient.abs().sum(1) > 0).sum() > 5
    metrics = run.develop(recipe, data, tmp_path / "run", "cpu", silent)
    ranks = metrics["held_out"]["mammals"]
    assert set(ranks) == {"genus", "family", "order"} and "calibration" not in metrics
    # Its genus lives where it does; the order has both halves.
    both = "location+satellite+environment"
    assert ranks["genus"][both]["auc"] > 0.9 > ranks["order"][both]["auc"]
    with pytest.raises(RequestError, match="split 'species' holds no places out"):
        run.run(recipe, out, tmp_path / "other", ("develop", "ship"))


def test_seasonal_model_of_a_teacher_and_surveys(tmp_path, tiny):
    """Soft labels by month, surveys and polygons beside the ranges; each source is scored where it knows something."""
    rng = np.random.default_rng(0)
    lonlat = np.repeat(np.stack([rng.uniform(-35, 35, 200), rng.uniform(-35, 35, 200)], axis=1), 2, axis=0)
    month = np.tile(np.array([1, 7], np.int8), 200)
    value = np.where((lonlat[:, 1] > 0) == (month == 7), 230, 10).astype(np.uint8)  # north in summer
    np.savez(
        tmp_path / "t.npz", species=np.array(["Vulpes alba"]), lonlat=lonlat, place=np.arange(400, dtype=np.int32) // 2,
        month=month, indptr=np.arange(401), indices=np.zeros(400, np.int16), value=value,
    )  # fmt: skip
    rows = "".join(f"{'Abies alba' if lat > 5 else 'Ursus ater'},{lon:.3f},{lat:.3f}\n" for lon, lat in lonlat[::2])
    (tmp_path / "plots.csv").write_text("species,lon,lat\n" + rows)
    sources = f"""
[[data.source]]
kind = "probabilities"
path = "{(tmp_path / "t.npz").as_posix()}"
share = 2.0
[[data.source]]
kind = "surveys"
path = "{(tmp_path / "plots.csv").as_posix()}"
group = "tree"
[architecture]"""
    calibrate = '[evaluation]\ncalibrate = ["mammals", "probabilities"]'
    swap = [("[architecture]", sources), ("sigmas", "season = true, sigmas"), ("[evaluation]", calibrate)]
    recipe, out = tiny(150, swap=swap)
    metrics = run.run(recipe, out, tmp_path / "run", ("develop",))
    held = metrics["held_out"]
    assert set(held) == {"mammals", "probabilities", "surveys"}
    assert held["probabilities"]["location"]["species"] == 1 and held["surveys"]["location"]["species"] == 2
    # Where it is present changes with the month, which location alone knows.
    assert held["probabilities"]["location"]["auc"] > 0.85
    assert held["probabilities"]["environment"]["auc"] < 0.65
    config = json.loads((tmp_path / "run" / "develop" / "model" / "config.json").read_text())
    west, south, east, north = config["groups"]["tree"]["extent"]
    assert (west, north) == pytest.approx((lonlat[:, 0].min(), lonlat[:, 1].max()), abs=1e-3)
    assert south < east and config["location"]["season"] is True


def test_what_a_run_refuses(tmp_path, tiny):
    recipe, out = tiny(5)
    with pytest.raises(ModelError, match=r"has no taxa.csv"):
        run.run(recipe, tmp_path / "none", tmp_path / "run", ("develop",))
    empty, _ = tiny(5, swap=[("[evaluation]", "[evaluation]\nheld_out = 1e-6")])
    with pytest.raises(RequestError, match="split 'blocks' holds out none of 200 groups of places"):
        run.run(empty, out, tmp_path / "run2", ("develop",))
    with pytest.raises(OutputError, match="is a file, not a folder"):
        run.run(recipe, out, tmp_path / "tiny.toml", ("develop",))
    (tmp_path / "run3").mkdir()
    (tmp_path / "run3" / "metrics.json").write_text('{"held_out":')
    with pytest.raises(RequestError, match=r"metrics\.json.* cannot be read"):
        run.run(recipe, out, tmp_path / "run3", ("develop",))
    typo, _ = tiny(5, swap=[("points_per_cell = 3", 'points_per_cell = 3\ngroup = "mamal"')])
    with pytest.raises(RequestError, match=r"group 'mamal'; those of taxa\.csv are mammal, tree"):
        run.run(typo, out, tmp_path / "run4", ("develop",))
    (tmp_path / "phylacine_current_ranges.npz").write_bytes(b"PK")
    with pytest.raises(SdmError):
        run.run(recipe, out, tmp_path / "run4", ("develop",))
    assert not (tmp_path / "run4").exists(), "a run that never began left something behind"
    recipe, out = tiny(5)
    data = prepare(recipe, out, silent)
    assert replace(data, fingerprint="").fingerprint != data.fingerprint
    (out / "taxa.csv").write_text(TAXA + "Abies nova,Plantae,Tracheophyta,Pinopsida,Pinales,Pinaceae,Abies,,,tree\n")
    assert prepare(recipe, out, silent).fingerprint != data.fingerprint


MORE = "[[data.source]]\n{}\n[architecture]"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("min_cells = 2", "wrong = 1", r"\[evaluation\] has the unknown key 'wrong'; known: block_degrees"),
        ('kind = "ranges"', 'kind = "rangers"', r"number 1 has the kind 'rangers'; known: ranges, polygons"),
        ("points_per_cell = 3", "points_per_sell = 3", r"1 \(ranges\) has the unknown key 'points_per_sell'; known"),
        ("batch = 128", 'batch = "128"', r"\[optimiser\] batch = '128' must be a whole number"),
        ("batch = 128", "batch = true", r"batch = True must be a whole number"),
        ("[optimiser]", "[optimizer]", r"the top has the unknown key 'optimizer'; known: architecture"),
        ('version = "1"\n', "", "needs the text 'version' at its top"),
        ("location = 0.2,", "sound = 0.2,", r"\[objective\] names 'sound'; known: location"),
        ("location = 0.2,", "location = 1.2,", "subset_shares must be 0 or more and sum to at most 1"),
        ("[objective]", '[objective]\nlocked = ["text"]', "need the model to start from, initial = a folder"),
        ("[objective]", "[objective]\npool = 0.5", "pool must lie in 0..1, and above 0 needs places_per_cell"),
        ("[evaluation]", '[evaluation]\ncalibrate = ["birds"]', "names 'birds'; the sources are mammals"),
        ("steps = 1\n", "steps = 0\n", r"\[optimiser\] steps = 0 must be at least 1"),
        ("batch = 128", "batch = 128\nlearning_rate = nan", "learning_rate = nan must be a finite number"),
        ("batch = 128", "batch = 128\nbetas = [0.9]", r"betas = \[0.9\] must be a list of 2"),
        ("batch = 128", "batch = 128\nbetas = [0.9, 1.0]", "must be at least 0 and below 1"),
        ("batch = 128", 'batch = 128\nschedule = "up"', r"\[optimiser\] schedule 'up' is not known"),
        ("block_degrees = 10.0", "block_degrees = 0.0", r"block_degrees = 0.0 must be at least 0.01 and at most 90"),
        ("[evaluation]", "[evaluation]\nheld_out = 1", "held_out = 1 must be above 0 and below 1"),
        ("[evaluation]", '[evaluation]\nsplit = "continents"', r"\[evaluation\] split 'continents' needs continents"),
        ("[evaluation]", '[evaluation]\nclimate = ["Z"]', "climate 'Z' is not known"),
        ("[objective]", "[objective]\nmax_scale = 10.0", "max_scale 10 is below start_scale"),
        ("location = 0.2,", '"location+location" = 0.2,', "names 'location.location'; known: location, .*, each once"),
        ("points_per_cell = 3", "points_per_cell = 0", "source 'mammals' draws no place on land"),
        (
            "[objective]",
            '[binding]\nnegatives = "x"\n[objective]',
            r"\[binding\] negatives 'x' is not known; choose area",
        ),
        ("[objective]", '[binding]\nlosses = { satellite = "x" }\n[objective]', "loss 'x' of satellite is not known"),
        ("[objective]", "[binding]\nlocation_weights = [0, 0]\n[objective]", "location_weights are both 0"),
        ("batch = 128", "batch = 1\n[binding]", r"\[optimiser\] batch is 1, which leaves nothing to tell a pair from"),
        ("points_per_cell = 3", "points_per_cell = 3\nweight = 0", "every source has weight 0"),
        ('name = "tiny"', 'name = "../tiny"', "must be a plain file name"),
        ('name = "mammals"', 'name = ""', "has the name ''"),
        ("points_per_cell = 3", "points_per_cell = 3\nweight = inf", "weight = inf must be a finite number"),
        ("pitch = 0.5 }\nsat", "pich = 0.5 }\nsat", r"location has the unknown key 'pich'; known: depth"),
        ("sigmas = [1.0]", "sigmas = [-1.0]", "location sigmas = .* must be above 0"),
        ("size = 16", "size = 16.5", r"\[architecture\] satellite size = 16.5 must be a whole number"),
        ("[architecture]", MORE.format('kind = "ranges"\nname = "mammals"\npath = ""'), "two sources are called"),
        ("[architecture]", MORE.format('kind = "surveys"'), r"\(surveys\) needs the key 'path'"),
        ("[architecture]", MORE.format('kind = "occurrences"\npath = ""\nbackground = "sky"'), "'sky'; known: land"),
    ],
)
def test_recipe_errors_name_the_key(tiny, old, new, said):
    with pytest.raises(RequestError, match=said):
        tiny(1, swap=[(old, new)])


def test_sizes_that_a_recipe_leaves_out_are_those_of_the_bundled_models(tiny):
    recipe, _ = tiny(1, swap=[("size = 16, pixel = 0.06666666666666667, width = 8, ", "")])
    assert recipe.architecture.satellite == {"size": 16, "pixel": 1 / 15, "width": 128, "depth": 1, "pitch": 0.5}
    assert "season" not in recipe.architecture.location and "around_km" not in recipe.architecture.environment


def test_every_number_of_a_recipe_has_limits():
    """A key that is new in a section is not forgotten, and a limit of no key is no limit."""
    from sdm.training import bounds, recipe
    from sdm.training.binding import Binding

    kinds = [*recipe.KINDS.values(), *recipe.SIZES.values(), recipe.Architecture, recipe.ObjectiveData]
    kinds += [recipe.Optimiser, recipe.Evaluation, Binding]
    numbers = {f.name for k in kinds for f in fields(k) if re.search(r"\b(int|float)\b", str(f.type))}
    assert numbers - {"start_bias", "around_km", "pool"} == set(bounds.LIMITS)
    assert bounds.broken("held_out", 0.2) == "" and bounds.broken("start_bias", -6.0) == ""


def test_recipes_that_are_none(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("name = [")
    with pytest.raises(RequestError, match="not valid TOML"):
        Recipe.read(path)
    with pytest.raises(RequestError, match="cannot be read"):
        Recipe.read(tmp_path / "none.toml")
    path.write_text('name = "a"\ntitle = "a"\nversion = "1"\nlicence = ""\n')
    with pytest.raises(RequestError, match="needs at least one"):
        Recipe.read(path)


@pytest.mark.parametrize("name", ["mammals-trees", "birds"])
def test_bundled_recipe_describes_the_bundled_model(name):
    """What the recipe says is what was shipped."""
    from sdm.files.paths import folder
    from sdm.models.bundled import BundledModel
    from sdm.training.prepare import environment_inputs

    recipe = Recipe.read(folder("recipes") / f"{name}.toml")
    config = BundledModel.open(name).config
    assert config["dim"] == recipe.architecture.dim
    for part in ("location", "satellite"):
        assert config[part] == dict(getattr(recipe.architecture, part))
    said = dict(recipe.architecture.environment)
    inputs = environment_inputs(said.pop("around_km", (100, 300)))
    assert {k: v for k, v in config["environment"].items() if k != "inputs"} == said
    assert [(i["layer"], i["transform"]) for i in config["environment"]["inputs"]] == [
        (i.layer, i.transform) for i in inputs
    ]
    for key in ("title", "version", "licence", "ranges"):
        assert config.get(key, "") == getattr(recipe, key)
