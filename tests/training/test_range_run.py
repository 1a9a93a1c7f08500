"""Small models from recipe to map."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdm.errors import ModelError, OutputError, RequestError, SdmError
from sdm.training import distributed
from sdm.training.data.held_out import split_training_set
from sdm.training.data.training_set import prepare_training_set
from sdm.training.runs import range_run
from sdm.training.runs.range_run import StageOptions, run_recipe
from tests.training.tiny import TAXA, silent


@pytest.mark.slow
def test_recipe_to_map(tmp_path, tiny, capsys):
    """Ranges, recipe, training, export; then the exported folder maps, and has learned the two halves."""
    from sdm.maps.array import map_species
    from sdm.models.bundled import BundledModel

    recipe, out = tiny(300)
    folder = tmp_path / "run"
    with pytest.raises(RequestError, match="run the stage develop"):
        run_recipe(recipe, out, folder, ("ship",))
    assert not folder.exists()
    metrics = run_recipe(recipe, out, folder, ("develop", "ship"))
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
    assert run_recipe(recipe, out, folder, ("develop", "ship"))["held_out"] == json.loads(
        json.dumps(metrics["held_out"])
    )
    assert "develop is complete" in capsys.readouterr().out
    other, _ = tiny(301)
    with pytest.raises(RequestError, match="holds a run of another recipe; give --restart"):
        run_recipe(other, out, folder, ("develop",))
    comment, _ = tiny(300, "# only a comment\n")
    assert range_run.recipe_digest(comment) == range_run.recipe_digest(recipe) != range_run.recipe_digest(other)
    # From where this one ended, with two encoders locked.
    swap = [
        ("[objective]", f'[objective]\ninitial = "{folder.as_posix()}"\nlocked = ["text", "location"]'),
        ("= 300", "= 3"),
    ]
    tuned, _ = tiny(300, swap=swap)
    data = prepare_training_set(tuned, out, silent, range_run.initial_inputs(tuned))
    objective = range_run.make_objective(tuned, data, np.arange(len(data.places.start)))
    before = {k: v.clone() for k, v in objective.encoders.state_dict().items()}
    developed = BundledModel.open(folder / "develop" / "model").load("cpu")
    assert torch.equal(before["text.embedding.weight"], developed.text.embedding.weight.float())
    options = StageOptions(tmp_path / "tuned", "cpu", silent, {})
    range_run.make_trainer(tuned, objective, "ship", options).fit()
    moved = {k.split(".")[0] for k, v in objective.encoders.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"satellite", "environment"}


def test_resumed_run_is_exact(tmp_path, tiny):
    """A step that fails leaves the last checkpoint behind; from there the same weights as without a failure."""
    recipe, out = tiny(12, swap=[("batch = 128", "batch = 64\ncheckpoint_every = 5")])
    data = prepare_training_set(recipe, out, silent)

    def fitted(folder, fail_at=None):
        objective = range_run.make_objective(recipe, data, np.arange(len(data.places.start)))
        trainer = range_run.make_trainer(
            recipe, objective, "ship", StageOptions(tmp_path / folder, "cpu", silent, {"data": data.fingerprint})
        )
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
    data = prepare_training_set(recipe, out, silent)
    objective = range_run.make_objective(recipe, data, np.arange(len(data.places.start)))
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
        tmp_path / "phylacine_current_ranges.npz",
        species=np.array([s.replace(" ", "_") for s in names]),
        packed=np.packbits(bits_of, axis=1),
        n_cells=bits_of.sum(1),
        shape=np.array(world.shape),
        transform=np.array(world.transform),
        crs_wkt=world.crs,
    )
    data = prepare_training_set(recipe, out, silent)
    test, without = split_training_set(recipe, data)
    assert without.sum() == 1 and not test.any()
    objective = range_run.make_objective(recipe, data, np.arange(len(data.places.start)), without)
    batch = objective.draw(32, np.random.default_rng(0))
    objective(batch)[0].backward()
    own = data.species_rows[np.flatnonzero(without)[0], -1]
    gradient = objective.encoders["text"].embedding.weight.grad
    assert (gradient[own] == 0).all() and (gradient.abs().sum(1) > 0).sum() > 5
    metrics = range_run.develop(recipe, data, StageOptions(tmp_path / "run", "cpu", silent, {}))
    ranks = metrics["held_out"]["mammals"]
    assert set(ranks) == {"genus", "family", "order"} and "calibration" not in metrics
    # Its genus lives where it does; the order has both halves.
    both = "location+satellite+environment"
    assert ranks["genus"][both]["auc"] > 0.9 > ranks["order"][both]["auc"]
    with pytest.raises(RequestError, match="split 'species' holds no places out"):
        run_recipe(recipe, out, tmp_path / "other", ("develop", "ship"))


def test_seasonal_model_of_a_teacher_and_surveys(tmp_path, tiny):
    """Soft labels by month, surveys and polygons beside the ranges; each source is scored where it knows something."""
    rng = np.random.default_rng(0)
    lonlat = np.repeat(np.stack([rng.uniform(-35, 35, 200), rng.uniform(-35, 35, 200)], axis=1), 2, axis=0)
    month = np.tile(np.array([1, 7], np.int8), 200)
    value = np.where((lonlat[:, 1] > 0) == (month == 7), 230, 10).astype(np.uint8)  # north in summer
    np.savez(
        tmp_path / "t.npz",
        species=np.array(["Vulpes alba"]),
        lonlat=lonlat,
        place=np.arange(400, dtype=np.int32) // 2,
        month=month,
        indptr=np.arange(401),
        indices=np.zeros(400, np.int16),
        value=value,
    )
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
    metrics = run_recipe(recipe, out, tmp_path / "run", ("develop",))
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
        run_recipe(recipe, tmp_path / "none", tmp_path / "run", ("develop",))
    empty, _ = tiny(5, swap=[("[evaluation]", "[evaluation]\nheld_out = 1e-6")])
    with pytest.raises(RequestError, match="split 'blocks' holds out none of 200 groups of places"):
        run_recipe(empty, out, tmp_path / "run2", ("develop",))
    with pytest.raises(OutputError, match="is a file, not a folder"):
        run_recipe(recipe, out, tmp_path / "tiny.toml", ("develop",))
    (tmp_path / "run3").mkdir()
    (tmp_path / "run3" / "metrics.json").write_text('{"held_out":')
    with pytest.raises(RequestError, match=r"metrics\.json.* cannot be read"):
        run_recipe(recipe, out, tmp_path / "run3", ("develop",))
    typo, _ = tiny(5, swap=[("points_per_cell = 3", 'points_per_cell = 3\ngroup = "mamal"')])
    with pytest.raises(RequestError, match=r"group 'mamal'; those of taxa\.csv are mammal, tree"):
        run_recipe(typo, out, tmp_path / "run4", ("develop",))
    (tmp_path / "phylacine_current_ranges.npz").write_bytes(b"PK")
    with pytest.raises(SdmError):
        run_recipe(recipe, out, tmp_path / "run4", ("develop",))
    assert not (tmp_path / "run4").exists(), "a run that never began left something behind"
    recipe, out = tiny(5)
    data = prepare_training_set(recipe, out, silent)
    assert replace(data, fingerprint="").fingerprint != data.fingerprint
    (out / "taxa.csv").write_text(TAXA + "Abies nova,Plantae,Tracheophyta,Pinopsida,Pinales,Pinaceae,Abies,,,tree\n")
    assert prepare_training_set(recipe, out, silent).fingerprint != data.fingerprint
