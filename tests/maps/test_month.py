"""Seasonal models: the month reaches the encoder on every path, and every output says which it was."""

import json

import numpy as np
import pytest
import rasterio
import xarray as xr

import sdm
from sdm import cli
from sdm.engine.encode import embed_positions
from sdm.engine.points import embed_places, score_places
from sdm.engine.relative import reference
from sdm.engine.tile import embed_tile, score_tile
from sdm.errors import OutputError, RegionIndexError, RequestError
from sdm.grid import Tile
from sdm.index import Index, build_index, plan_index
from sdm.models.bundled import BundledModel
from sdm.request import Sampling
from sdm.request.months import MONTHS, parse_month
from sdm.serve.state import Explorer

SWALLOW = "Hirundo rustica"
BOX = (5, 45, 8, 47)
OPTIONS = {"bbox": BOX, "resolution": 0.1, "tile_size": 16}


@pytest.fixture(scope="session")
def birds(tmp_path_factory, write_model):
    """Folder of a seasonal model."""
    rows = [
        (SWALLOW, "Aves", "Passeriformes", "Hirundinidae", "bird", "barn swallow"),
        ("Turdus merula", "Aves", "Passeriformes", "Turdidae", "bird", "blackbird"),
    ]
    return write_model(
        tmp_path_factory.mktemp("models") / "birds",
        rows,
        season=True,
        licence="CC BY-NC-SA 4.0",
        ranges="ranges are made up",
    )


@pytest.fixture(scope="session")
def indexes(tmp_path_factory, birds):
    """Indexes of the whole year and of May, by month."""
    folder = tmp_path_factory.mktemp("indexes")
    return {
        month: build_index(plan_index(**OPTIONS, model=birds, month=month or None), folder / f"{month}.zarr", threads=1)
        for month in (0, 5)
    }


def values(birds, **options):
    job = sdm.plan(SWALLOW, **{**OPTIONS, "model": birds, **options})
    rows, cols = job.grid.shape
    return score_tile(job.plan, Tile((0, 0), slice(0, rows), slice(0, cols)))[0]


def unsettled(birds, **options):
    """The same with the environment encoded at every pixel, as a batch and an index do."""
    job = sdm.plan(SWALLOW, **{**OPTIONS, "model": birds, **options})
    rows, cols = job.grid.shape
    embeddings, pixels, _ = embed_tile(job.plan, Tile((0, 0), slice(0, rows), slice(0, cols)), "land")
    found = np.full(rows * cols, np.nan)
    found[pixels] = job.plan.targets[0].score.values(embeddings @ job.plan.targets[0].vector)
    return found.reshape(rows, cols)


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 13))
def test_a_month_by_any_of_its_names(number):
    name = MONTHS[number - 1]
    for text in (
        number,
        np.int64(number),
        str(number),
        f" {number:02d} ",
        name,
        name.upper(),
        name[:3],
        f"{name[:3]}.",
    ):
        assert parse_month(text) == number
    assert parse_month(None) == 0 and parse_month("Sept.") == 9


@pytest.mark.parametrize("bad", [0, 13, -1, "0", "013", "", "ma", "ju", "mayo", "5.0", 5.0, True, "९", [5], "1" * 9999])
def test_what_is_no_month(bad):
    with pytest.raises(RequestError, match="1 to 12 or a name such as May") as caught:
        parse_month(bad)
    assert len(str(caught.value)) < 200


# Values ------------------------------------------------------------------------------------------


def test_pixels_of_a_month_agree_with_the_formula(birds):
    """Place by place in NumPy, as the encoders read them: lon, lat, month; 0 is the whole year."""
    model = BundledModel.open(birds)
    encoders, vector = model.load(), model.species_embedding(model.resolve(SWALLOW))
    job = sdm.plan(SWALLOW, **OPTIONS, model=birds)
    rows, cols = job.grid.shape
    lon, lat = (a.ravel() for a in job.grid.lonlat(np.arange(rows), np.arange(cols)))
    maps = {}
    for month in (None, 1, 7, "December"):
        got = values(birds, month=month, modalities="location", step=1, mask="none").ravel()
        at = np.column_stack([lon, lat, np.full(lon.size, parse_month(month))])
        cosines = encoders.encode("location", at).numpy() @ vector
        np.testing.assert_allclose(got, 1 / (1 + np.exp(-(6.0 * cosines - 1.0))), atol=1e-5)
        maps[month] = got
    assert min(np.abs(maps[a] - maps[b]).max() for a, b in [(None, 1), (1, 7), (7, "December")]) > 0.01


def test_every_path_to_an_embedding_knows_the_month(birds):
    """Tiles with interpolation, single positions, points and scores: the same in a month, another in the next."""
    model = BundledModel.open(birds)
    job = sdm.plan(SWALLOW, **OPTIONS, model=birds, month=7, step=1)
    rows, cols = job.grid.shape
    tiles, pixels, _ = embed_tile(job.plan, Tile((0, 0), slice(0, rows), slice(0, cols)))
    lon, lat = (a.ravel()[pixels] for a in job.grid.lonlat(np.arange(rows), np.arange(cols)))
    exact, _ = embed_positions(model, Sampling(month=7), lon, lat)
    np.testing.assert_allclose(tiles, exact, atol=1e-5)
    parts = embed_places(model, lon, lat, Sampling(month=7))
    total = sum(parts.values())
    np.testing.assert_allclose(total / np.linalg.norm(total, axis=1, keepdims=True), exact, atol=1e-5)
    scores = score_places(model, [SWALLOW], lon, lat, Sampling(month=7))[:, 0]
    np.testing.assert_allclose(scores, values(birds, month=7, step=1, mask="none").ravel()[pixels], atol=1e-4)
    assert np.abs(scores - score_places(model, [SWALLOW], lon, lat)[:, 0]).max() > 0.01


def test_interpolated_maps_know_the_month(birds):
    options = {"resolution": 0.05, "modalities": "location"}
    default = values(birds, month=7, **options)
    assert 0 < np.nanmax(np.abs(default - values(birds, month=7, step=1, **options))) < 0.03
    assert np.nanmax(np.abs(default - values(birds, **options))) > 0.05


def test_the_sample_of_the_world_s_land_is_kept_by_month(birds, tmp_path, monkeypatch):
    monkeypatch.setenv("TAXABIND_MAP_CACHE", str(tmp_path))
    monkeypatch.setattr("sdm.engine.relative.SAMPLE", 600)
    model = BundledModel.open(birds)
    year, may = (reference(model, Sampling(modalities=("location",), month=month)) for month in (None, 5))
    assert np.abs(year.astype(float) - may).max() > 0.01
    again = reference(model, Sampling(modalities=("location",), month=5))
    assert np.array_equal(again, may) and len(list(tmp_path.iterdir())) == 2


# Refusals ----------------------------------------------------------------------------------------


def test_a_month_of_a_model_without_seasons_is_refused(run, tmp_path, birds):
    code, _, err = run("Ursus arctos", "--bbox", 5, 45, 6, 46, "--month", 5)
    assert code == 2 and "'mammals-trees' is not seasonal; omit the month May" in err
    code, _, err = run(SWALLOW, "--bbox", 5, 45, 6, 46, "--month", "Mayo", "--model", birds)
    assert code == 2 and "'Mayo'" in err and "1 to 12" in err
    code, _, err = run(SWALLOW, "--bbox", 5, 45, 6, 46, "--month", 5, "--model", birds, "--modalities", "environment")
    assert code == 2 and "month May needs the modality location" in err
    code, _, err = run("index", "build", "--bbox", 5, 45, 6, 46, "--month", 5, "--out", "a.zarr", entry=cli.main_sdm)
    assert code == 2 and "is not seasonal" in err
    assert list(tmp_path.iterdir()) == []


# Outputs -----------------------------------------------------------------------------------------


def test_every_output_says_the_month_and_the_licence(run, tmp_path, birds):
    arguments = (SWALLOW, "--bbox", *BOX, "--resolution", 0.1, "--model", birds)
    code, out, err = run(*arguments, "--month", "may", "--out", "maps")
    assert code == 0, err
    stem = "hirundo-rustica-month-05"
    assert {p.name for p in (tmp_path / "maps").iterdir()} == {
        f"{stem}.{s}" for s in ("tif", "qml", "zarr", "html", "json")
    }
    assert f"{stem}.tif" in out
    assert err.splitlines().count("Model birds: licence CC BY-NC-SA 4.0 (non-commercial)") == 1
    with rasterio.open(tmp_path / "maps" / f"{stem}.tif") as src:
        tags = src.tags()
        assert tags["month"] == "5" and tags["licence"] == "CC BY-NC-SA 4.0"
        assert "Model birds: CC BY-NC-SA 4.0 (non-commercial)" in tags["TIFFTAG_COPYRIGHT"]
        assert "not a habitat quality; ranges are made up." in tags["TIFFTAG_IMAGEDESCRIPTION"]
        assert src.descriptions == ("probability",)
        assert src.tags(1)["quantity"] == "Probability that the place lies in the range of Hirundo rustica in May"
    data = xr.open_zarr(tmp_path / "maps" / f"{stem}.zarr")
    assert data.attrs["month"] == "5" and "(barn swallow) in May" in data.attrs["title"]
    assert "CC BY-NC-SA 4.0" in data.attrs["licence"]
    assert data.probability.month.shape == () and int(data.probability.month) == 5
    with rasterio.open(
        f'ZARR:"{tmp_path}/maps/{stem}.zarr":/probability'
    ) as src:  # a scalar more does not confuse GDAL
        assert src.crs.to_epsg() == 4326 and src.count == 1
    page = (tmp_path / "maps" / f"{stem}.html").read_text()
    assert "<title>Hirundo rustica (barn swallow) in May</title>" in page and "CC BY-NC-SA 4.0" in page
    report = json.loads((tmp_path / "maps" / f"{stem}.json").read_text())
    assert report["month"] == 5 and report["request"]["month"] == 5

    assert run(*arguments, "--out", "maps")[0] == 0  # beside it, under a name of its own
    year = json.loads((tmp_path / "maps" / "hirundo-rustica.json").read_text())
    assert year["month"] == "whole year" and year["quantity"].endswith("at any time of the year")
    with rasterio.open(tmp_path / "maps" / "hirundo-rustica.tif") as src:
        assert src.tags()["month"] == "whole year"
    assert "month" not in xr.open_zarr(tmp_path / "maps" / "hirundo-rustica.zarr").probability.coords


def test_a_map_of_a_model_without_seasons_speaks_of_none(run, tmp_path):
    code, _, err = run("Ursus arctos", "--bbox", -150, 60, -149, 61, "--resolution", 0.5)
    assert code == 0 and "licence" not in err
    report = json.loads((tmp_path / "maps" / "ursus-arctos.json").read_text())
    assert report["month"] is None and report["quantity"].endswith("range of Ursus arctos")
    with rasterio.open(tmp_path / "maps" / "ursus-arctos.tif") as src:
        assert "month" not in src.tags()


def test_arrays_of_several_months_join(birds):
    year = [sdm.map_species(SWALLOW, bbox=BOX, resolution=0.5, model=birds, month=m) for m in (4, "May", 6)]
    joined = xr.concat(year, "month", combine_attrs="drop_conflicts")
    assert joined.dims[0] == "month" and joined.month.values.tolist() == [4, 5, 6]
    assert len({a.data.name for a in year}) == 3  # no result of one is ever taken for another's
    assert float(np.abs(joined.sel(month=4) - joined.sel(month=6)).max()) > 0.01


def test_a_config_file_may_name_the_month(run, tmp_path, birds):
    (tmp_path / "c.toml").write_text(f'species = "{SWALLOW}"\nbbox = [5, 45, 6, 46]\nmonth = 5\nmodel = "{birds}"\n')
    assert run("--config", "c.toml", "--resolution", 0.5, "--format", "zarr")[0] == 0
    assert (tmp_path / "maps" / "hirundo-rustica-month-05.zarr").is_dir()


# Batches -----------------------------------------------------------------------------------------


def test_a_batch_of_a_month(run, tmp_path, birds):
    (tmp_path / "list.txt").write_text(f"{SWALLOW}\nTurdus merula\n")
    arguments = ("--species", "list.txt", "--bbox", *BOX, "--resolution", 0.1, "--model", birds, "--out", "out")
    code, _, err = run(*arguments, "--month", 7, "--format", "cog")
    assert code == 0 and "Model birds: licence CC BY-NC-SA 4.0 (non-commercial)" in err
    data = xr.open_zarr(tmp_path / "out" / "probability.zarr")
    assert int(data.month) == 7 and {"month", "family", "spatial_ref"} <= set(data.probability.coords)
    np.testing.assert_allclose(data.probability.sel(species=SWALLOW), unsettled(birds, month=7), atol=1e-4)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "2 species in July" in page and "CC BY-NC-SA 4.0 (non-commercial)" in page
    assert (tmp_path / "out" / "species" / "hirundo-rustica-month-07.tif").is_file()
    report = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert report["month"] == 7 and report["configuration"]["month"] == "July"
    assert report["model"]["licence"] == "CC BY-NC-SA 4.0"
    # Another month, or none, is another batch: nothing of this one is taken for it.
    for other in ((), ("--month", 8)):
        code, _, err = run(*arguments, *other, "--format", "cog")
        assert code == 6 and "month July, not" in err


def test_an_unfinished_batch_of_another_month_is_not_gone_on_with(birds, tmp_path, monkeypatch):
    from sdm.maps.batch import run as batch_run

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_run, "_collected", stop)
    with pytest.raises(KeyboardInterrupt):
        sdm.map_batch([SWALLOW], **OPTIONS, model=birds, month=1, out=tmp_path)
    with pytest.raises(OutputError, match="unfinished run with month January, not whole year"):
        sdm.map_batch([SWALLOW], **OPTIONS, model=birds, out=tmp_path)


# Indexes -----------------------------------------------------------------------------------------


def test_an_index_is_of_one_month(indexes, birds):
    year, may = indexes[0], indexes[5]
    assert (year.month, may.month) == (0, 5) and year.digest != may.digest
    assert "month" not in year.identity and may.info()["month"] == 5
    for index, month in ((year, None), (may, 5)):
        got = index.query(SWALLOW, model=birds).values
        np.testing.assert_allclose(got, unsettled(birds, month=month), atol=0.02)
    job = sdm.plan(SWALLOW, index=may, model=birds)  # no month need be given: it was decided when it was built
    assert job.plan.month == 5 and job.slugs == ("hirundo-rustica-month-05",)
    assert sdm.plan(SWALLOW, index=may, model=birds, month="May").plan.month == 5
    assert may.query(SWALLOW, model=birds).attrs["month"] == 5


@pytest.mark.parametrize(("built", "asked", "says"), [(5, 6, "built with May"), (0, 5, "built with whole year")])
def test_an_index_of_another_month_refuses(indexes, birds, built, asked, says):
    with pytest.raises(RequestError, match=f"--month is given, but region index .* was {says}; omit it"):
        sdm.plan(SWALLOW, index=indexes[built], model=birds, month=asked)


def test_pixels_of_another_month_are_not_taken_over(indexes, birds, tmp_path):
    job = plan_index(**OPTIONS, model=birds, month=6)
    with pytest.raises(RegionIndexError, match="month May, not June"):
        build_index(job, tmp_path / "june.zarr", reuse=indexes[5], threads=1)
    grown = build_index(plan_index(**OPTIONS, model=birds, month=5), tmp_path / "may.zarr", reuse=indexes[5], threads=1)
    assert np.array_equal(grown.query(SWALLOW, model=birds), indexes[5].query(SWALLOW, model=birds), equal_nan=True)


def test_a_month_that_is_none_makes_an_index_damaged(indexes, tmp_path):
    import shutil

    from sdm.index import store

    for bad in (13, -1, "5", True, 5.0):
        folder = shutil.copytree(indexes[5].url, tmp_path / "bad.zarr")
        metadata = json.loads((folder / ".zmetadata").read_text())
        header = metadata["metadata"][".zattrs"]["region_index"]
        header["identity"]["month"] = bad
        header["digest"] = store.digest(header["identity"])
        (folder / ".zmetadata").write_text(json.dumps(metadata))
        with pytest.raises(RegionIndexError, match="damaged"):
            Index.open(folder)
        shutil.rmtree(folder)


def test_an_index_with_each_modality_adds_up(birds, tmp_path):
    options = {**OPTIONS, "resolution": 0.25, "each": True, "encoding": "float16"}  # as coarse as the model's pitch
    index = build_index(plan_index(**options, model=birds, month=5), tmp_path / "e.zarr", threads=1)
    rows, cols = (slice(0, n) for n in index.grid.shape)
    total = sum(index.embeddings(rows, cols, m)[0] for m in index.modalities)
    whole, _ = index.embeddings(rows, cols)
    np.testing.assert_allclose(total / np.linalg.norm(total, axis=1, keepdims=True), whole, atol=0.002)


def test_the_explorer_shows_the_month(indexes, birds, tmp_path):
    explorer = Explorer(indexes[5], birds)
    try:
        info = explorer.info()
        assert info["season"] == "in May"
        assert "Model birds: CC BY-NC-SA 4.0 (non-commercial)" in info["credits"]
        assert explorer.describe(SWALLOW)["file"] == "hirundo-rustica-month-05.tif"
        with rasterio.open(explorer.cog(SWALLOW, tmp_path)) as src:
            assert src.tags()["month"] == "5"
        # What each modality adds to the cosine is encoded again, in the same month: it adds up.
        said = explorer.place(6.55, 46.05, SWALLOW)["species"]
        assert sum(part["cosine"] for part in said["parts"]) == pytest.approx(said["cosine"], abs=0.01)
    finally:
        explorer.close()


# Vectors -----------------------------------------------------------------------------------------


def test_embed_and_classify_at_a_month(run, tmp_path, birds):
    from sdm.files.embeddings import read_embeddings

    (tmp_path / "p.csv").write_text("lon,lat\n6.5,46\n7,45.5\n")
    (tmp_path / "l.txt").write_text(f"{SWALLOW}\nTurdus merula\n")
    arguments = ("embed", "--places", "p.csv", "--model", birds, "--modalities", "location,environment")
    assert run(*arguments, "--month", 5, "--out", "may.parquet", entry=cli.main_sdm)[0] == 0
    assert run(*arguments, "--out", "year.parquet", entry=cli.main_sdm)[0] == 0
    may, year = read_embeddings("may.parquet"), read_embeddings("year.parquet")
    assert may.metadata["month"] == "5" and "month" not in year.metadata
    lon, lat = np.array([6.5, 7.0]), np.array([46.0, 45.5])
    for found, month in ((may, 5), (year, 0)):
        exact = embed_places(BundledModel.open(birds), lon, lat, Sampling(month=month or None))
        np.testing.assert_allclose(found.vectors, np.concatenate([exact["location"], exact["environment"]]), atol=1e-5)
    code, out, _ = run(
        "classify",
        "--at",
        6.5,
        46,
        "--species",
        "l.txt",
        "--model",
        birds,
        "--month",
        "5",
        "--json",
        entry=cli.main_sdm,
    )
    answer = json.loads(out)
    cosines = {s["name"]: s["cosine"] for s in answer["results"][0]["species"]}
    model = BundledModel.open(birds)
    expected = {n: float(may.vectors[0] @ model.species_embedding(model.resolve(n))) for n in cosines}
    assert code == 0 and answer["month"] == 5 and cosines == pytest.approx(expected, abs=1e-4)
    code, _, err = run(
        "embed", "--places", "p.csv", "--model", birds, "--modalities", "environment", "--month", 5, entry=cli.main_sdm
    )
    assert code == 2 and "month May needs the modality location" in err
