"""Maps of species fitted to the user's records: what is read, fitted, written, and taken up again elsewhere."""

import csv
import json
import shutil

import numpy as np
import pytest
import rasterio

import sdm
from sdm.errors import ModelError, OutputError, RecordsError, RequestError
from sdm.files.workspace import Workspace
from sdm.maps.plan import plan
from sdm.records.background import Positions
from sdm.records.fitted import Fitted

BBOX = (6.0, 45.0, 10.0, 48.0)
FAST = {"resolution": 0.1, "background_places": 200, "refits": 3, "reach_km": 300.0, "evaluate": False}


@pytest.fixture(scope="module")
def points():
    """Forty places in the mountains between 7 and 9 degrees east: (lon, lat)."""
    rng = np.random.default_rng(4)
    return rng.uniform(7.0, 9.0, 40), rng.uniform(45.9, 46.8, 40)


def write_csv(path, rows, header=("species", "decimalLongitude", "decimalLatitude")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def hawkers(tmp_path_factory, points):
    """A file of records of a species that no bundled model knows."""
    path = tmp_path_factory.mktemp("records") / "hawkers.csv"
    return write_csv(path, [("Aeshna affinis", lon, lat) for lon, lat in zip(*points, strict=True)])


@pytest.fixture(scope="module")
def mapped(hawkers, tmp_path_factory):
    """The folder of a map of it, and the result."""
    folder = tmp_path_factory.mktemp("hawkers")
    return folder, sdm.write_maps(plan(records=hawkers, bbox=BBOX, **FAST), folder)[0]


def values(path):
    with rasterio.open(path) as file:
        return file.read(1)


def at(path, lon, lat):
    """Values of a map at positions."""
    with rasterio.open(path) as file:
        return np.array([v[0] for v in file.sample(zip(lon, lat, strict=True))])


def test_a_species_that_no_model_knows(mapped, points):
    folder, result = mapped
    assert result.species == "Aeshna affinis"
    here = at(folder / "aeshna-affinis.tif", *points)
    everywhere = values(folder / "aeshna-affinis.tif")
    assert np.nanmean(here) > np.nanmean(everywhere) + 0.2
    assert result.report["score"]["score"] == "relative_suitability"  # no prevalence is known
    assert result.report["fit"]["counts"]["presences"] > 20
    with rasterio.open(folder / "aeshna-affinis.tif") as file:
        assert "not a probability" in file.tags()["TIFFTAG_IMAGEDESCRIPTION"].lower()
        assert file.tags()["fit_background"] == "random"


def test_the_key_of_gbif_reaches_report_tags_and_item(tmp_path, points):
    rows = [("Aeshna affinis", lon, lat, 5224394) for lon, lat in zip(*points, strict=True)]
    path = write_csv(tmp_path / "a.csv", rows, ("species", "decimalLongitude", "decimalLatitude", "speciesKey"))
    result = sdm.write_maps(plan(records=path, bbox=BBOX, **FAST), tmp_path, formats="cog,stac")[0]
    assert result.report["fit"]["gbif_taxon_keys"] == {"5224394": 40}
    with rasterio.open(result.files["tif"]) as file:
        assert file.tags()["gbif_taxon_key"] == "5224394"
    assert json.loads(result.files["stac.json"].read_text())["properties"]["taxabind-map:gbif_taxon_key"] == "5224394"


def test_every_record_is_accounted_for(mapped):
    folder, _ = mapped
    with (folder / "aeshna-affinis-records.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40


def test_a_fit_is_taken_elsewhere_without_the_records(mapped, tmp_path):
    folder, _ = mapped
    moved = shutil.copy(folder / "aeshna-affinis.fit.safetensors", tmp_path / "elsewhere.fit.safetensors")
    job = plan(fitted=moved, bbox=BBOX, resolution=0.1)
    assert job.slugs == ("aeshna-affinis",)
    sdm.write_maps(job, tmp_path / "out")
    again = values(tmp_path / "out" / "aeshna-affinis.tif")
    np.testing.assert_array_equal(again, values(folder / "aeshna-affinis.tif"))
    assert not (tmp_path / "out" / "aeshna-affinis-records.csv").exists()


def test_a_fit_of_another_model_is_refused(mapped, tmp_path, write_model):
    folder, _ = mapped
    other = write_model(tmp_path / "other", [("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal")])
    with pytest.raises(ModelError, match="the fit was made with model"):
        plan(fitted=folder / "aeshna-affinis.fit.safetensors", bbox=BBOX, resolution=0.1, model=str(other))


@pytest.mark.parametrize("tile_size", [16, 64])
def test_tiles_do_not_change_a_fitted_map(mapped, tmp_path, tile_size):
    folder, _ = mapped
    job = plan(fitted=folder / "aeshna-affinis.fit.safetensors", bbox=BBOX, resolution=0.1, tile_size=tile_size)
    sdm.write_maps(job, tmp_path, formats="cog")
    np.testing.assert_array_equal(values(tmp_path / "aeshna-affinis.tif"), values(folder / "aeshna-affinis.tif"))


def test_a_known_species_is_corrected_and_stays_a_probability(tmp_path, points):
    path = write_csv(tmp_path / "ibex.csv", [("Capra ibex", lon, lat) for lon, lat in zip(*points, strict=True)])
    (result,) = sdm.write_maps(plan("Capra ibex", BBOX, records=path, **FAST), tmp_path / "out", formats="cog")
    assert result.report["score"]["score"] == "probability"
    assert "zero-shot map" in result.report["score"]["prevalence_source"]
    assert result.report["fit"]["known"] is True


def test_over_an_index_nothing_is_encoded_again(tmp_path, mapped):
    folder, _ = mapped
    index = sdm.build_index(sdm.plan_index(BBOX, resolution=0.1, encoding="float16"), tmp_path / "alps.zarr")
    job = plan(fitted=folder / "aeshna-affinis.fit.safetensors", index=index)
    sdm.write_maps(job, tmp_path / "out", formats="cog")
    got, exact = values(tmp_path / "out" / "aeshna-affinis.tif"), values(folder / "aeshna-affinis.tif")
    assert got.shape == exact.shape
    both = np.isfinite(got) & np.isfinite(exact)
    assert both.sum() > 500 and np.abs(got - exact)[both].mean() < 0.02


def test_the_users_own_covariates_alone(tmp_path, write_raster):
    rng = np.random.default_rng(0)
    wet = np.linspace(0.0, 1.0, 60)[None, :].repeat(60, axis=0) + rng.normal(0, 0.01, (60, 60))
    soil = rng.integers(1, 4, (60, 60)).astype("float32")
    paths = [
        write_raster(wet.astype("float32"), "wetness.tif", west=6.0, north=48.0, cell=0.05),
        write_raster(soil, "soil.tif", west=6.0, north=48.0, cell=0.05),
    ]
    lon, lat = rng.uniform(6.1, 8.9, 300), rng.uniform(45.1, 47.9, 300)
    seen = (lon > 7.5).astype(int)
    path = write_csv(tmp_path / "survey.csv", zip(lon, lat, seen, strict=True), ("lon", "lat", "seen"))
    job = plan(
        records=path,
        bbox=(6.2, 45.2, 8.8, 47.8),
        environment=paths,
        categorical=("soil",),
        presence_column="seen",
        capital_km=0,
        centroid_km=0,
        thin=0,
        resolution=0.05,
        refits=0,
        evaluate=False,
    )
    (result,) = sdm.write_maps(job, tmp_path / "out", formats="cog")
    assert result.species == "survey" and result.report["score"]["score"] == "probability"
    grid = at(tmp_path / "out" / "survey.tif", np.array([6.5, 8.5]), np.array([46.5, 46.5]))
    assert grid[0] < 0.2 < 0.8 < grid[1]


def test_several_species_of_one_file(tmp_path, points):
    rows = [(name, lon, lat) for name in ("Aeshna affinis", "Aeshna juncea") for lon, lat in zip(*points, strict=True)]
    path = write_csv(tmp_path / "two.csv", rows)
    job = plan(records=path, bbox=BBOX, **FAST)
    assert job.slugs == ("aeshna-affinis", "aeshna-juncea")
    # The records of each are the target group of the other.
    assert {one.fitted.info.background for one in job.fits} <= {"mixed", "group", "random"}
    assert isinstance(job.fits[0].case.group, Positions)
    (only,) = plan("aeshna juncea", BBOX, records=path, **FAST).slugs
    assert only == "aeshna-juncea"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"records": "a.csv", "fitted": "b.fit"}, RequestError, "only one source of records"),
        ({"background": "a.csv", "species": "Ursus arctos"}, RequestError, "without records"),
        ({"records": "nowhere.csv"}, RecordsError, "nowhere.csv"),
        ({"records": "a.csv", "text": "a swamp"}, RequestError, "cannot be combined with other evidence"),
        ({"records": "a.csv", "prevalence": 1.5}, RequestError, "prevalence"),
    ],
)
def test_bad_requests_are_one_sentence(options, error, says):
    with pytest.raises(error, match=says):
        plan(bbox=BBOX, **options)


def test_a_name_that_the_file_lacks(tmp_path):
    path = write_csv(tmp_path / "two.csv", [("Aeshna affinis", 7, 46), ("Aeshna juncea", 8, 46)])
    with pytest.raises(RecordsError, match=r"holds no records of 'Ursus arctos'; it holds 2 species"):
        plan("Ursus arctos", BBOX, records=path)


def test_without_a_usable_record(tmp_path):
    path = write_csv(tmp_path / "sea.csv", [("Aeshna affinis", 0, 0), ("Aeshna affinis", "", "")])
    with pytest.raises(RecordsError, match=r"no usable presence among the records of 'Aeshna affinis'.*2 rows, 0 kept"):
        plan(records=path, bbox=BBOX)


def test_the_fit_file_is_small_and_holds_no_code(mapped):
    folder, _ = mapped
    path = folder / "aeshna-affinis.fit.safetensors"
    assert path.stat().st_size < 2_000_000 and b"pickle" not in path.read_bytes()
    assert Fitted.open(path).info.species == "Aeshna affinis"


def test_command(run, hawkers, tmp_path):
    options = ("--bbox", *BBOX, "--resolution", 0.2, "--background-places", 200, "--refits", 0, "--no-evaluate")
    code, out, err = run("--records", hawkers, *options, "--out", tmp_path / "o", "--format", "cog")
    assert code == 0, err
    assert "40 rows, 40 kept" in err and "Fitted to" in err
    assert "aeshna-affinis-records.csv" in out
    report = json.loads((tmp_path / "o" / "aeshna-affinis.json").read_text())
    assert report["request"]["records"] == str(hawkers)


def test_a_saved_fit_keeps_its_modalities_and_month(tmp_path, hawkers):
    job = plan(records=hawkers, bbox=BBOX, modalities="location,environment", **FAST)
    path = job.fits[0].fitted.save(tmp_path / "a.fit.safetensors")
    again = plan(fitted=path, bbox=BBOX, resolution=0.1)
    assert again.plan.modalities == ("location", "environment")
    with pytest.raises(RequestError, match="--modalities is given, but the fit was made with location,environment"):
        plan(fitted=path, bbox=BBOX, resolution=0.1, modalities="location")


def test_rasters_of_a_saved_fit_may_come_in_any_order_but_all_of_them(tmp_path, write_raster):
    rng = np.random.default_rng(2)
    east = np.linspace(0.0, 1.0, 40)[None, :].repeat(40, axis=0).astype("float32")
    noise = rng.random((40, 40)).astype("float32")
    place = {"west": 6.0, "north": 48.0, "cell": 0.05}
    a, b = write_raster(east, "east.tif", **place), write_raster(noise, "noise.tif", **place)
    lon, lat = rng.uniform(6.1, 7.9, 200), rng.uniform(46.1, 47.9, 200)
    path = write_csv(tmp_path / "s.csv", zip(lon, lat, (lon > 7).astype(int), strict=True), ("lon", "lat", "seen"))
    box = (6.2, 46.2, 7.8, 47.8)
    options = {"bbox": box, "resolution": 0.05, "thin": 0, "capital_km": 0, "centroid_km": 0, "refits": 0}
    job = plan(records=path, presence_column="seen", environment=[a, b], evaluate=False, **options)
    sdm.write_maps(job, tmp_path / "one", formats="cog")
    fit_file = tmp_path / "one" / "s.fit.safetensors"
    sdm.write_maps(plan(fitted=fit_file, environment=[b, a], bbox=box, resolution=0.05), tmp_path / "two")
    np.testing.assert_array_equal(values(tmp_path / "two" / "s.tif"), values(tmp_path / "one" / "s.tif"))
    with pytest.raises(RecordsError, match="needs the covariate 'noise'"):
        plan(fitted=fit_file, environment=[a], bbox=box, resolution=0.05)


def test_an_index_decides_how_a_fit_describes_places(tmp_path, hawkers):
    index = sdm.build_index(
        sdm.plan_index(BBOX, resolution=0.2, modalities="location,environment"), tmp_path / "two.zarr"
    )
    job = plan(records=hawkers, index=index, background_places=200, refits=0, evaluate=False)
    assert job.fits[0].fitted.info.modalities == ("location", "environment")


def test_records_of_another_species_are_not_relabelled(hawkers):
    with pytest.raises(RecordsError, match="holds no records of 'Ursus arctos'"):
        plan("Ursus arctos", BBOX, records=hawkers)


def test_names_of_one_species_are_one_map(tmp_path, points):
    rows = [
        (("Puma concolor", "Felis concolor")[k % 2], lon, lat) for k, (lon, lat) in enumerate(zip(*points, strict=True))
    ]
    job = plan(records=write_csv(tmp_path / "puma.csv", rows), bbox=BBOX, **FAST)
    assert job.slugs == ("puma-concolor",)
    assert len(job.fits[0].records) == 40


def test_the_rest_of_the_file_is_the_group_of_a_species_asked_for_by_name(tmp_path, points):
    lon, lat = points
    rows = [("Aeshna affinis", x, y) for x, y in zip(lon, lat, strict=True)]
    rows += [("Aeshna juncea", x + 0.5, y + 0.3) for x, y in zip(lon, lat, strict=True)]
    path = write_csv(tmp_path / "two.csv", rows)
    group = plan("Aeshna affinis", BBOX, records=path, **FAST).fits[0].case.group
    assert len(group) == 40 and not np.isin(lon, group.lon).any()


def test_a_batch_of_fits_has_the_same_bits_for_any_tiling(tmp_path, points):
    from sdm.maps.batch.records import plan_records
    from sdm.maps.batch.run import write_batch
    from sdm.request import ListOptions, MapRequest

    rows = [(name, lon, lat) for name in ("Aeshna affinis", "Aeshna juncea") for lon, lat in zip(*points, strict=True)]
    path = write_csv(tmp_path / "two.csv", rows)
    fast = FAST | {"refits": 2}
    cubes, bands = [], []
    for tile_size in (16, 128):
        request = MapRequest.of(records=path, bbox=BBOX, tile_size=tile_size, **fast)
        result = write_batch(plan_records(request, ListOptions()), tmp_path / str(tile_size), formats=["cog"])
        data = result.open().compute()
        cubes.append(data["relative_suitability"].values)
        bands.append(np.stack([data["uncertainty"].values, data["novelty"].values]))
    np.testing.assert_array_equal(*cubes)
    np.testing.assert_array_equal(*bands)
    assert np.array_equal(np.isfinite(bands[0][0]), np.isfinite(cubes[0]))
    alone = sdm.map_species("Aeshna affinis", bbox=BBOX, records=path, bands=True, **fast).compute()
    both = np.isfinite(alone["novelty"].values) & np.isfinite(bands[0][1, 0])
    assert both.sum() > 1000
    for name, band in zip(("uncertainty", "novelty"), bands[0][:, 0], strict=True):
        assert np.abs(alone[name].values - band)[both].max() < 1e-3
    with rasterio.open(tmp_path / "16" / "species" / "aeshna-affinis.tif") as file:
        assert file.descriptions[1:] != (None, None) and file.count == 3
        np.testing.assert_array_equal(file.read(3), bands[0][1, 0])
    single = sdm.map_species(bbox=BBOX, records=path, step=1, **fast).compute().values
    both = np.isfinite(cubes[0]) & np.isfinite(single)
    assert both.sum() > 1000 and np.abs(cubes[0] - single)[both].max() < 0.15
    assert (tmp_path / "16" / "species" / "aeshna-affinis-records.csv").is_file()


def test_a_saved_fit_is_not_another_species(mapped):
    folder, _ = mapped
    with pytest.raises(RecordsError, match="the fit is of 'Aeshna affinis', not of 'Ursus arctos'"):
        plan("Ursus arctos", BBOX, fitted=folder / "aeshna-affinis.fit.safetensors", resolution=0.1)
    assert plan("aeshna affinis", BBOX, fitted=folder / "aeshna-affinis.fit.safetensors", resolution=0.1).slugs


def test_records_outside_the_map_are_said_so(hawkers):
    far = plan(records=hawkers, bbox=(20.0, 50.0, 24.0, 53.0), **FAST)
    assert any("None of the 40 presences lies in the box" in note for note in far.notes[0])
    assert not any("lies in the box" in note for note in plan(records=hawkers, bbox=BBOX, **FAST).notes[0])


def test_a_finished_batch_of_records_is_known_without_a_fit(run, tmp_path, points, monkeypatch):
    rows = [(name, lon, lat) for name in ("Aeshna affinis", "Aeshna juncea") for lon, lat in zip(*points, strict=True)]
    path = write_csv(tmp_path / "two.csv", rows)
    fast = ("--resolution", 0.2, "--background-places", 200, "--refits", 0, "--reach-km", 300)
    command = ("--records", path, "--bbox", *BBOX, *fast, "--out", tmp_path / "o")
    code, out, err = run(*command)
    assert code == 0, err
    folder = tmp_path / "o" / "species"
    for ending in ("-report.html", "-report.json", "-odmap.csv", "-records.csv", ".fit.safetensors"):
        assert (folder / f"aeshna-juncea{ending}").is_file()
    page = (folder / "aeshna-juncea-report.html").read_text()
    assert "Aeshna juncea" in page and "<image" in page  # with its map
    with (tmp_path / "o" / "summary.csv").open(newline="") as file:
        assert "species/aeshna-affinis-report.html" in next(csv.DictReader(file))["files"]
    assert "species/aeshna-affinis-report.html" in (tmp_path / "o" / "index.html").read_text()
    report = json.loads((tmp_path / "o" / "batch.json").read_text())
    assert report["fits"][1]["cross_validation"][0]["auc"] is not None

    def refuse(*_, **__):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr("sdm.maps.fits.fit_prepared", refuse)
    code, out, err = run(*command)
    assert code == 0 and "finished before" in out, err
    code, _, err = run(*command, "--thin", 0.5)
    assert code != 0 and "thin 0.1, not 0.5" in err
    write_csv(path, rows[:-1])
    code, _, err = run(*command)
    assert code != 0 and "records two.csv with another content" in err


def test_an_interrupted_batch_of_records_keeps_its_fits(run, tmp_path, points, monkeypatch):
    rows = [(name, lon, lat) for name in ("Aeshna affinis", "Aeshna juncea") for lon, lat in zip(*points, strict=True)]
    path = write_csv(tmp_path / "two.csv", rows)
    fast = ("--resolution", 0.2, "--background-places", 200, "--refits", 2, "--reach-km", 300, "--no-evaluate")
    command = ("--records", path, "--bbox", *BBOX, *fast)

    def stop(*_, **__):
        raise OutputError("the disk is full.")

    def refuse(*_, **__):
        raise AssertionError("it was fitted again")

    with monkeypatch.context() as patch:
        patch.setattr("sdm.maps.batch.run._Run.tiles", stop)
        assert run(*command, "--out", tmp_path / "o")[0] != 0
    assert "finished fits are kept in" in Workspace(tmp_path / "o", ()).note
    fit = next((tmp_path / "o" / "batch.partial" / "fits").iterdir())
    fit.write_bytes(fit.read_bytes()[:-1])  # a damaged one is fitted again
    with monkeypatch.context() as patch:
        patch.setattr("sdm.maps.batch.run._Run.tiles", stop)
        assert run(*command, "--out", tmp_path / "o")[0] != 0
    with monkeypatch.context() as patch:
        patch.setattr("sdm.maps.fits.prepare", refuse)
        code, _, err = run(*command, "--out", tmp_path / "o")
    assert code == 0, err
    assert not (tmp_path / "o" / "batch.partial").exists()
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    for name in ("aeshna-affinis.fit.safetensors", "aeshna-juncea.fit.safetensors"):
        kept, whole = (Fitted.open(tmp_path / out / "species" / name) for out in ("o", "whole"))
        assert kept.info == whole.info
    records = [(tmp_path / out / "species" / "aeshna-juncea-records.csv").read_bytes() for out in ("o", "whole")]
    assert records[0] == records[1]
    kept, whole = (rasterio.open(tmp_path / out / "richness.tif").read(1) for out in ("o", "whole"))
    assert np.array_equal(kept, whole, equal_nan=True)


def test_a_batch_of_fits_that_fails_leaves_nothing(run, tmp_path):
    path = write_csv(tmp_path / "two.csv", [("Aeshna affinis", 0.0, 0.0), ("Aeshna juncea", 0.0, 0.0)])
    code, _, err = run("--records", path, "--bbox", *BBOX, "--resolution", 0.2, "--out", tmp_path / "o")
    assert code != 0 and "no species of the records can be fitted" in err
    assert not (tmp_path / "o" / "batch.partial").exists()


def test_places_of_several_species_are_read_once(tmp_path, points, monkeypatch):
    from sdm.records.features import ModelFeatures

    asked = []
    read = ModelFeatures._read

    def counted(self, lon, lat):
        asked.append(lon.size)
        return read(self, lon, lat)

    monkeypatch.setattr(ModelFeatures, "_read", counted)
    lon, lat = points
    rows = [("Aeshna affinis", x, y) for x, y in zip(lon, lat, strict=True)]
    rows += [("Aeshna juncea", x + 0.1, y) for x, y in zip(lon, lat, strict=True)]
    plan(records=write_csv(tmp_path / "two.csv", rows), bbox=BBOX, **FAST | {"background_places": 1000})
    assert asked[0] > 1000 and sum(asked[1:]) < 0.4 * asked[0]


def test_a_fit_maps_itself(points, tmp_path):
    from sdm.request import FitOptions

    fitted = sdm.fit(
        sdm.Records.from_points(*points, species="Aeshna affinis"),
        options=FitOptions(background_places=200, refits=2, reach_km=300.0),
    )
    box = (7.0, 46.0, 8.0, 47.0)
    here = fitted.map(bbox=box, resolution=0.1)
    assert here.dims == ("y", "x") and here.name == "relative_suitability"
    again = sdm.Fitted.open(fitted.save(tmp_path / "a.fit.safetensors")).map(bbox=box, resolution=0.1, bands=True)
    assert set(again.data_vars) == {"relative_suitability", "uncertainty", "novelty"}
    np.testing.assert_array_equal(again["relative_suitability"], here)
    np.testing.assert_array_equal(sdm.map_species(bbox=box, resolution=0.1, fitted=fitted), here)
