"""Fits from records to values, and the file of a fit."""

import json
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from safetensors.numpy import load_file, save_file

from sdm.errors import LayerError, RecordsError, RequestError
from sdm.maps.fitted import fit
from sdm.models.registry import open_model
from sdm.records.background import Positions
from sdm.records.features import ModelFeatures, RasterFeatures
from sdm.records.fitted import Fitted
from sdm.records.measures import auc
from sdm.records.table import Records
from sdm.records.target import FittedScore, FittedTrust
from sdm.request import Sampling
from sdm.request.records import FitOptions

WEST, NORTH, CELL, SIDE = 5.0, 50.0, 0.05, 120


def surfaces():
    """Two smooth covariates, a class map, a constant, and a copy of the first: (5, SIDE, SIDE)."""
    row, col = np.mgrid[:SIDE, :SIDE] / SIDE
    warm = (np.sin(5 * col) + row).astype("f4")
    wet = (np.cos(7 * row) * col).astype("f4")
    soil = (4 * col).astype("f4").astype("i4").astype("f4")
    return np.stack([warm, wet, soil, np.full_like(warm, 7.0), warm])


def truth(values):
    """Logit of the planted species from covariates (N, >= 3)."""
    return -2.5 + 3.0 * values[:, 0] - 8.0 * (values[:, 1] - 0.2) ** 2 + 1.0 * (values[:, 2] == 2)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """The surfaces in two files: four bands with names, and one without."""
    folder = tmp_path_factory.mktemp("stack")
    bands = surfaces()
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "dtype": "float32", "crs": "EPSG:4326"}
    profile["transform"] = from_origin(WEST, NORTH, CELL, CELL)
    profile["nodata"] = -9999.0
    bands[0, :6, :6] = bands[4, :6, :6] = -9999.0
    with rasterio.open(folder / "site.tif", "w", count=4, **profile) as f:
        f.write(bands[:4])
        f.descriptions = ("warmth", "wetness", "soil", "flat")
    with rasterio.open(folder / "twin.tif", "w", count=1, **profile) as f:
        f.write(bands[4:5])
    return [folder / "site.tif", folder / "twin.tif"]


@pytest.fixture(scope="module")
def source(stack):
    return RasterFeatures(stack, ["soil"])


@pytest.fixture(scope="module")
def survey(source):
    """Places with presence and absence, by the planted species: records of both kinds."""
    rng = np.random.default_rng(0)
    lon = rng.uniform(WEST + 0.4, WEST + CELL * SIDE - 0.1, 6000)
    lat = rng.uniform(NORTH - CELL * SIDE + 0.1, NORTH - 0.4, 6000)
    present = rng.random(6000) < 1 / (1 + np.exp(-truth(source.read(lon, lat).environment)))
    return Records.from_points(lon, lat, present, species="Planta inventa")


@pytest.fixture(scope="module")
def own(survey, stack):
    """A presence-only fit to 150 records and the user's own rasters."""
    options = FitOptions(categorical=("soil",), thin=0.0, reach_km=300, background_places=1500, refits=4)
    return fit(survey.presences.select(np.arange(150)), covariates=stack, options=options)


def skill(fitted, survey, source):
    f = source.read(survey.lon[3000:], survey.lat[3000:])
    logit, present = fitted.logit(f.embedding, f.environment), survey.present[3000:]
    return auc(logit[present], logit[~present])


def test_own_covariates_find_the_planted_species(own, survey, source):
    f = source.read(survey.lon[3000:], survey.lat[3000:])
    present = survey.present[3000:]
    best = truth(f.environment)
    assert skill(own, survey, source) > auc(best[present], best[~present]) - 0.03
    assert own.meaning == "relative suitability" and own.dim == 0
    values = own.values(f.embedding, f.environment)
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1
    assert own.info.features == "covariates" and "Maxent" in own.info.method and "forest" in own.info.method
    assert own.info.background == "random" and own.info.background_rule


def test_constant_and_repeated_covariates_are_left_out_and_named(own, source):
    assert any("'flat' has the same value" in n for n in own.info.notes)
    assert any("'twin' equals 'warmth'" in n for n in own.info.notes)
    f = source.read(np.linspace(6, 10, 200), np.linspace(45, 49, 200))
    moved = f.environment.copy()
    moved[:, 3] = -1e6
    assert np.allclose(own.ensemble.members[0].score(f.embedding, moved),
                       own.ensemble.members[0].score(f.embedding, f.environment))  # fmt: skip


def test_uncertainty_novelty_and_mess_of_own_covariates(own, source):
    f = source.read(np.linspace(6, 10, 500), np.linspace(45, 49, 500))
    sd = own.uncertainty(f.embedding, f.environment)
    assert sd.shape == (500,) and (sd >= 0).all() and sd.max() > 0.01
    assert own.refits(f.embedding, f.environment).shape == (4, 500)
    near = own.novelty(f.environment)
    far = own.novelty(f.environment + np.array([9, 9, 0, 0, 9], np.float32))
    assert np.median(near) < 80 and (far == 100).all()
    assert (own.mess(f.environment + np.array([9, 0, 0, 0, 0], np.float32)) < 0).all()


def test_absences_are_used_and_give_a_probability(survey, stack, source):
    options = FitOptions(categorical=("soil",), thin=0.0)
    fitted = fit(survey.select(np.arange(3000)), covariates=stack, options=options)
    assert fitted.info.background == "absences" and fitted.meaning == "probability"
    f = source.read(survey.lon[3000:], survey.lat[3000:])
    values, present = fitted.values(f.embedding, f.environment), survey.present[3000:]
    assert values.mean() == pytest.approx(present.mean(), abs=0.03)
    high = values > np.quantile(values, 0.8)
    assert values[high].mean() == pytest.approx(present[high].mean(), abs=0.06)


def test_a_given_prevalence_makes_it_a_probability(survey, stack, source):
    options = FitOptions(categorical=("soil",), thin=0.0, reach_km=300, background_places=1500, prevalence=0.3)
    fitted = fit(survey.presences.select(np.arange(100)), covariates=stack, options=options)
    assert fitted.meaning == "probability" and fitted.calibration.prevalence == 0.3
    rng = np.random.default_rng(9)
    f = source.read(rng.uniform(5.4, 10.9, 2000), rng.uniform(44.1, 49.6, 2000))
    assert fitted.values(f.embedding, f.environment).mean() == pytest.approx(0.3, abs=0.05)
    other = fitted.with_prevalence(0.1, f.embedding, f.environment, "a survey")
    assert other.values(f.embedding, f.environment).mean() == pytest.approx(0.1, abs=0.001)


def test_target_group_undoes_a_planted_sampling_bias(source, stack, survey):
    """Observers go west: against random places that looks like a preference, against other species' records not."""
    rng = np.random.default_rng(3)
    visited = rng.random(6000) < np.exp(-1.2 * (survey.lon - WEST))
    seen = survey.select(visited & survey.present)
    others = survey.select(visited & ~survey.present)
    group = Positions(others.lon, others.lat)
    options = FitOptions(categorical=("soil",), thin=0.0, reach_km=300, background_places=2000, refits=0)
    skills = {}
    for kind in ("random", "mixed", "group"):
        fitted = fit(seen, covariates=stack, group=group, options=replace(options, background_kind=kind))
        assert fitted.info.background == kind
        skills[kind] = skill(fitted, survey, source)
    assert skills["group"] > skills["random"] and skills["mixed"] > skills["random"]
    assert fit(seen, covariates=stack, group=group, options=options).info.background == "mixed"


def test_places_are_returned_in_the_order_given(source):
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(5.4, 10.9, 50), rng.uniform(44.1, 49.6, 50)
    together = source.read(lon, lat).environment
    single = np.concatenate([source.read(lon[k : k + 1], lat[k : k + 1]).environment for k in range(50)])
    assert np.array_equal(together, single)
    assert set(np.unique(together[:, 2])) <= {0.0, 1.0, 2.0, 3.0}  # classes are never interpolated


def test_places_without_data_are_not_known(source):
    f = source.read(np.array([WEST + 0.1, 8.0, 40.0]), np.array([NORTH - 0.1, 47.0, 0.0]))
    assert f.known.tolist() == [False, True, False]


def test_unknown_categories_and_repeated_names_are_refused(stack):
    with pytest.raises(LayerError, match="'rock' is in no raster"):
        RasterFeatures(stack, ["rock"])
    with pytest.raises(LayerError, match="twice"):
        RasterFeatures([stack[1], stack[1]])


def test_records_outside_the_rasters_are_counted_or_refused(stack, survey):
    options = FitOptions(thin=0.0, reach_km=300, background_places=500, refits=0)
    few = survey.presences.select(np.arange(20))
    far = Records.from_points(np.append(few.lon, 60.0), np.append(few.lat, 50.0), species="Planta inventa")
    assert fit(far, covariates=stack, options=options).info.counts["not_covered"] == 1
    with pytest.raises(RecordsError, match="cover no place of a presence"):
        fit(Records.from_points(np.array([60.0]), np.array([50.0])), covariates=stack, options=options)
    with pytest.raises(RecordsError, match="no presence"):
        fit(survey.absences, covariates=stack, options=options)


# With a model


@pytest.fixture(scope="module")
def features():
    return ModelFeatures(open_model("mammals-trees"))


@pytest.fixture(scope="module")
def salamander():
    """Records like those of a salamander no model knows: hills of central Europe."""
    rng = np.random.default_rng(4)
    lon, lat = rng.normal([[9.5], [47.8]], [[1.5], [1.0]], (2, 40))
    return Records.from_points(lon, lat, species="Salamandra inventa")


@pytest.fixture(scope="module")
def unknown(salamander):
    return fit(salamander, options=FitOptions(background_places=800, refits=3))


def test_an_unknown_species_starts_from_the_mean_of_all(unknown, features, salamander):
    info = unknown.info
    assert not info.known and info.model == "mammals-trees" and info.model_digest == features.model.digest
    assert "mean of all species" in info.method and "forest" in info.method and not info.gate
    assert unknown.meaning == "relative suitability" and unknown.dim == 256
    here, there = (
        features.read(salamander.lon, salamander.lat),
        features.read(np.full(20, 35.0), np.linspace(-20, 20, 20)),
    )
    assert unknown.values(here.embedding, here.environment).mean() > 0.3
    assert unknown.values(there.embedding, there.environment).mean() < 0.1


def test_fits_repeat_to_the_bit(unknown, salamander, features):
    again = fit(salamander, options=FitOptions(background_places=800, refits=3))
    f = features.read(np.linspace(0, 20, 300), np.full(300, 48.0))
    assert np.array_equal(again.values(f.embedding, f.environment), unknown.values(f.embedding, f.environment))
    other = fit(salamander, options=FitOptions(background_places=800, refits=3, seed=1))
    assert not np.array_equal(other.values(f.embedding, f.environment), unknown.values(f.embedding, f.environment))


def test_a_known_species_is_corrected_or_left_as_it_was(features):
    """Records where the map says that the species is, and records where it says that it is not."""
    model = features.model
    vector = model.species_embedding(model.resolve("Ursus americanus"))
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-125, -70, 3000), rng.uniform(35, 55, 3000)
    f = features.read(lon, lat)
    score = np.where(f.known, f.embedding @ vector, -np.inf)
    best = np.argsort(-score)[:600]
    agreeing = Records.from_points(lon[best][:60], lat[best][:60], species="Ursus americanus")
    options = FitOptions(background_places=800, refits=2)
    kept = fit(agreeing, options=options)
    assert kept.info.known and "zero-shot" in kept.info.gate
    moved = np.flatnonzero((lon < -95) & (lat < 43) & np.isfinite(score))[:60]  # the plains, without bears
    other = Records.from_points(lon[moved], lat[moved], species="Ursus americanus")
    corrected = fit(other, options=options)
    assert not corrected.info.zero_shot and "the fit is used" in corrected.info.gate
    assert corrected.meaning == "probability" and "zero-shot" in corrected.calibration.source
    plains, logit = features.read(lon[moved], lat[moved]), f.embedding @ vector
    before = auc(plains.embedding @ vector, logit)
    after = auc(corrected.logit(plains.embedding, plains.environment), corrected.logit(f.embedding, f.environment))
    assert after > before + 0.1


def test_the_gate_keeps_the_zero_shot_map_to_the_bit(features):
    """Records spread at random over the range tell nothing: the map of the model stays."""
    model = features.model
    resolution = model.resolve("Ursus americanus")
    scale, bias = model.calibration(features.modalities)
    rng = np.random.default_rng(2)
    lon, lat = rng.uniform(-125, -70, 4000), rng.uniform(35, 60, 4000)
    f = features.read(lon, lat)
    zero = f.embedding @ model.species_embedding(resolution) * np.float32(scale) + np.float32(bias)
    chosen = np.argsort(-zero + rng.normal(0, 0.1, zero.size))[:8]
    fitted = fit(Records.from_points(lon[chosen], lat[chosen], species="Ursus americanus"),
                 options=FitOptions(background_places=800, refits=2))  # fmt: skip
    if fitted.info.zero_shot:  # decided by evidence; where it is kept, it is the same map
        assert np.allclose(fitted.values(f.embedding, f.environment), 1 / (1 + np.exp(-zero)), atol=1e-5)
        assert (fitted.uncertainty(f.embedding, f.environment) == 0).all()
        assert "kept" in fitted.info.gate
    ungated = fit(Records.from_points(lon[chosen], lat[chosen], species="Ursus americanus"),
                  options=FitOptions(background_places=800, refits=2, gate=False))  # fmt: skip
    assert not ungated.info.zero_shot and not ungated.info.gate


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_records_still_fit(n, features):
    records = Records.from_points(
        np.array([9.0, 10.0, 9.5])[:n], np.array([48.0, 47.5, 48.5])[:n], species="Sylvana nova"
    )
    fitted = fit(records, options=FitOptions(background_places=300, refits=2))
    f = features.read(np.linspace(0, 20, 50), np.full(50, 48.0))
    values = fitted.values(f.embedding, f.environment)
    assert np.isfinite(values).all() and values.max() > values.min()
    assert np.isfinite(fitted.uncertainty(f.embedding, f.environment)).all()


def test_a_seasonal_model_is_fitted_in_its_month():
    records = Records.from_points(np.linspace(-100, -90, 12), np.linspace(40, 45, 12), species="Turdus migratorius")
    options = FitOptions(background_places=300, refits=0)
    fitted = fit(records, model="birds", sampling=Sampling(month=6), options=options)
    assert fitted.info.month == 6 and fitted.info.model == "birds" and fitted.info.known


def test_novelty_and_shares_with_a_model(unknown, features, salamander):
    here, desert = (
        features.read(salamander.lon, salamander.lat),
        features.read(np.full(9, 20.0), np.linspace(18, 28, 9)),
    )
    near = unknown.novelty(features.environment_embedding(here.environment))
    far = unknown.novelty(features.environment_embedding(desert.environment))
    assert np.median(near) < 90 and far.min() > np.median(near)
    out = unknown.shares({"embedding": here.embedding}, here.environment)
    assert set(out) == {"embedding", "climate", "terrain", "land cover", "surroundings"}
    assert np.allclose(sum(out.values()), 1.0, atol=1e-5)


def test_novelty_does_not_depend_on_the_number_of_threads(features, monkeypatch):
    """The encoder of the environment runs on one thread, in the fit as in the map, in batches of one size."""
    import torch

    environment = features.read(np.linspace(0, 20, 700), np.full(700, 48.0)).environment
    encoders, seen = features.model.load("cpu"), set()
    encode = type(encoders).encode

    def watched(self, modality, values):
        seen.add((torch.get_num_threads(), len(values)))
        return encode(self, modality, values)

    monkeypatch.setattr(type(encoders), "encode", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        space = features.environment_embedding(environment)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {(1, 512)}
    assert np.allclose(np.linalg.norm(space, axis=1), 1.0, atol=1e-5)
    assert features.environment_embedding(environment[:0]).shape == (0, space.shape[1])


def test_uncertainty_is_that_of_the_band(unknown, features):
    """Far from the records too, where scores joined by ranks are all at the end of the scale."""
    f = features.read(np.linspace(-60, 60, 200), np.full(200, 65.0))
    f = f.select(f.known)
    spread = unknown.uncertainty(f.embedding, f.environment)
    first = unknown.ensemble.members[0].refits(f.embedding, f.environment)
    assert len(unknown.ensemble.members) > 1 and np.allclose(spread, first.std(axis=0, ddof=1), atol=1e-5)
    space = features.environment_embedding(f.environment)
    assert np.array_equal(FittedTrust(unknown).trust(f.embedding, f.environment, space)[0], np.clip(spread, 0, 5))


def test_prior_options_are_obeyed(salamander):
    with pytest.raises(RequestError, match="is not one that model"):
        fit(salamander, options=FitOptions(prior="known", background_places=300))
    bear = Records.from_points(salamander.lon, salamander.lat, species="Ursus arctos")
    assert fit(bear, options=FitOptions(prior="unknown", background_places=300, refits=0)).info.taxon == ""


# Files


@pytest.fixture
def saved(unknown, tmp_path):
    return unknown.save(tmp_path / "salamandra.fit.safetensors")


def test_a_saved_fit_gives_the_same_values(unknown, own, saved, features, source, tmp_path):
    opened = Fitted.open(saved)
    f = features.read(np.linspace(0, 20, 200), np.full(200, 48.0))
    assert np.array_equal(opened.values(f.embedding, f.environment), unknown.values(f.embedding, f.environment))
    assert np.array_equal(
        opened.uncertainty(f.embedding, f.environment), unknown.uncertainty(f.embedding, f.environment)
    )
    assert opened.info == unknown.info and opened.calibration == unknown.calibration
    assert saved.stat().st_size < 2_000_000
    again = Fitted.open(own.save(tmp_path / "own.fit.safetensors"))
    g = source.read(np.linspace(6, 10, 200), np.linspace(45, 49, 200))
    assert np.array_equal(again.values(g.embedding, g.environment), own.values(g.embedding, g.environment))
    assert np.array_equal(again.novelty(g.environment), own.novelty(g.environment))


def tampered(path, change):
    """Write the file again with its arrays and its description changed by `change(arrays, meta)`."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    arrays, meta = load_file(path), json.loads(header["__metadata__"]["fit"])
    metadata = {"format": header["__metadata__"]["format"]}
    change(arrays, meta)
    metadata["fit"] = json.dumps(meta)
    save_file(arrays, path, metadata=metadata)


def _set(name, index, value):
    def change(arrays, meta):
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


def _replace(name, value):
    return lambda arrays, meta: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("member0.vector", 3, np.nan), "not finite"),
        (_set("member0.scale", 0, 0.0), "must be positive"),
        (_set("member1.forest.feature", (0, 0), 10_000), "points outside"),
        (_set("member1.forest.feature", (0, 0), -1), "points outside"),
        (_set("member1.forest.threshold", (0, 0), np.nan), "not finite"),
        (_set("member1.columns", 0, 107), "points outside"),
        (_replace("member0.vector", np.zeros(7, np.float32)), "shape"),
        (_replace("member0.vectors", np.zeros((3, 256), np.float64)), "shape"),
        (_replace("member1.forest.leaf", np.zeros((100, 300), np.float32)), "leaves"),
        (_replace("member0.weight", np.zeros(3, np.float32)), "shape"),
        (_replace("weights", np.array([5.0, -4.0], np.float32)), "joined"),
        (_replace("extra", np.zeros(3, np.float32)), "that no fit has"),
        (lambda a, m: a.pop("blend.values"), "missing"),
        (_set("scale0.values", 0, 1e30), "ascend"),
        (_set("reference.distances", 0, 9.0), "training places"),
        (lambda a, m: m.update(members=["ridge"] * 99), "members"),
        (lambda a, m: m.update(members=["os.system"]), "members"),
        (lambda a, m: m["info"].update(seed="1"), "seed"),
        (lambda a, m: m["info"].update(more=1), "comes from"),
        (lambda a, m: m["info"].pop("model"), "comes from"),
        (lambda a, m: m["covariates"].update(names=[]), "covariates"),
        (lambda a, m: m["calibration"].update(shift=float("inf")), "values are"),
        (lambda a, m: m["calibration"].update(meaning="truth"), "values are"),
        (lambda a, m: m.update(typical={"climate": "much"}), "typical"),
        (lambda a, m: m.update(typical={"climate": 10**400}), "typical"),
        (lambda a, m: m.update(members=[["x"]]), "members"),
        (lambda a, m: m.update(members={"ridge": 1}), "members"),
        (lambda a, m: m["info"].update(modalities=5), "modalities"),
        (lambda a, m: m["info"].update(modalities=["smell"]), "modalities"),
        (lambda a, m: m["info"].update(extent=[0, 0, 10**400, 1]), "extent"),
        (lambda a, m: m["info"].update(extent=7), "extent"),
        (lambda a, m: m["info"].update(background="foo"), "background"),
        (lambda a, m: m["info"].update(mask="moon"), "mask"),
        (lambda a, m: m["info"].update(month=13), "month"),
        (lambda a, m: m["info"].update(method=["x"]), "method"),
        (lambda a, m: m["info"].update(counts={"presences": True}), "counts"),
        (lambda a, m: m["info"].update(features="covariates"), "describe places by"),
        (lambda a, m: m["info"].update(species="\ud800"), "Unicode"),
        (lambda a, m: m["covariates"].update(names=5), "covariates"),
        (lambda a, m: m["calibration"].update(meaning="probability", prevalence=None), "values are"),
        (lambda a, m: m["calibration"].update(meaning=[]), "values are"),
        (_replace("reference.places", np.ones((9, 7), np.float16)), "shape"),
        (_replace("member1.projection", np.ones((3, 8), np.float32)), "different lengths|points outside"),
        (lambda a, m: a.update({"member1.projection": a["member1.projection"][:0].copy()}), "points outside"),
    ],
)
def test_a_hostile_file_is_refused(saved, change, message):
    tampered(saved, change)
    with pytest.raises(RecordsError, match=message):
        Fitted.open(saved)


def test_any_value_in_a_description_is_read_or_refused(saved):
    """Every entry of the description in turn is replaced by values of every type."""
    raw = saved.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    meta, arrays = json.loads(header["__metadata__"]["fit"]), load_file(saved)
    places = [(meta, key) for key in meta]
    places += [(meta[part], key) for part in ("info", "covariates", "calibration") for key in meta[part]]
    tried = 0
    for holder, key in places:
        before = holder[key]
        for value in (None, True, -1, 10**400, 1e308, "", "x", [], [[]], [None], [{}], {}, {"a": None}, {"a": [[]]}):
            holder[key] = value
            save_file(arrays, saved, metadata={"format": "taxabind-map-fit/1", "fit": json.dumps(meta)})
            try:
                opened = Fitted.open(saved)
            except RecordsError:
                tried += 1
            else:
                assert FittedScore.of(opened).explanation and opened.save(saved)
        holder[key] = before
    assert tried > 300
    deep = "[" * 200_000 + "]" * 200_000
    save_file(arrays, saved, metadata={"format": "taxabind-map-fit/1", "fit": deep})
    with pytest.raises(RecordsError, match="not JSON"):
        Fitted.open(saved)


def test_what_is_no_fit_is_refused(saved, tmp_path):
    for name, data in {
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
        "cut": saved.read_bytes()[:2000],
        "header": struct.pack("<Q", 2**60) + b"{}",
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(RecordsError, match="fit file"):
            Fitted.open(path)
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecordsError, match="its format is not"):
        Fitted.open(tmp_path / "other.safetensors")
    with pytest.raises(RecordsError, match="does not exist"):
        Fitted.open(tmp_path / "none.safetensors")
