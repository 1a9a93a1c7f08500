"""Maps in the published space: names, photos, sounds, words and vectors against places, from request to file."""

import json

import numpy as np
import pytest
import rasterio
from PIL import Image

import sdm
from sdm import cli
from sdm.errors import LayerError, ModelError, RequestError, SpeciesNameError
from sdm.layers.worldclim import approximated
from sdm.models.registry import open_model

BOX = (6.0, 44.0, 10.0, 47.0)
GRID = {"resolution": 0.25, "tile_size": 16}


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """Small towers that take pictures of the published size."""
    root = tmp_path_factory.mktemp("taxabind")
    make(root, image=224)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The world's land is encoded once for all tests here, and not into the user's cache."""
    kept = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("TAXABIND_MAP_CACHE", str(kept))
    return kept


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "bear.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def expected(model, vector, array, modalities=("location", "environment")):
    """Cosines at the centres of the pixels, computed plainly: unit vectors added, normalised, compared."""
    lon, lat = (a.ravel() for a in np.meshgrid(array.x.values, array.y.values))
    encoders = model.load("cpu")
    environment, known = approximated().sample(lon, lat)
    total = np.zeros((lon.size, model.dim))
    if "location" in modalities:
        total += encoders.encode("location", np.stack([lon, lat], axis=1)).numpy()
    if "environment" in modalities:
        total += encoders.encode("environment", environment).numpy()
    cosines = (total / np.linalg.norm(total, axis=1, keepdims=True)) @ vector
    cosines[~known] = np.nan
    return cosines.reshape(array.shape)


def test_a_photo_is_mapped_by_its_cosine(folder, photo):
    from sdm.models.taxabind.photo import read_photo

    model = open_model(folder)
    array = sdm.map_species(photo=photo, bbox=BOX, model=folder, score="cosine", mask="none", **GRID)
    vector = model.embed("image", read_photo(photo)[None])[0]
    assert array.name == "cosine" and array.dims == ("y", "x")
    np.testing.assert_allclose(array.values, expected(model, vector, array), atol=2e-5)
    assert np.isfinite(array.values).mean() > 0.5


def test_relative_suitability_is_the_share_of_the_worlds_land_below(folder, photo):
    from sdm.layers.landmask import land_sample
    from sdm.models.taxabind.photo import read_photo

    model = open_model(folder)
    array = sdm.map_species(photo=photo, bbox=BOX, model=folder, **GRID)
    assert array.name == "relative_suitability"
    vector = model.embed("image", read_photo(photo)[None])[0]
    lon, lat = land_sample(20_000)
    encoders = model.load("cpu")
    environment, known = approximated().sample(lon, lat)
    total = encoders.encode("location", np.stack([lon, lat], 1)) + encoders.encode("environment", environment)
    land = np.sort((total / total.norm(dim=1, keepdim=True)).numpy()[known] @ vector)
    share = np.searchsorted(land, expected(model, vector, array)) / land.size
    seen = np.isfinite(array.values)
    assert seen.any() and not seen.all()  # sea is masked
    assert np.abs(array.values - share)[seen].max() < 0.01
    # It does not depend on the box.
    part = sdm.map_species(photo=photo, bbox=(7.0, 45.0, 8.0, 46.0), model=folder, **GRID)
    np.testing.assert_array_equal(part.values, array.sel(x=slice(7, 8), y=slice(46, 45)).values)


def test_evidence_adds_up(folder, photo, tmp_path):
    model = open_model(folder)
    name = model.species_embedding(model.resolve("Ursus arctos"))
    lineage = "Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos"
    np.testing.assert_allclose(name, model.embed("text", [lineage])[0])
    text = model.embed("text", ["alpine meadow"])[0]
    np.save(tmp_path / "v.npy", text)
    options = {"bbox": BOX, "model": folder, "score": "cosine", **GRID}
    both = sdm.map_species("Ursus arctos", text="alpine meadow", **options)
    same = sdm.map_species("brown bear", embedding=tmp_path / "v.npy", **options)
    np.testing.assert_allclose(both.values, same.values, atol=1e-6)
    total = (name + text) / np.linalg.norm(name + text)
    shown = np.isfinite(both.values)
    np.testing.assert_allclose(both.values[shown], expected(model, total, both)[shown], atol=2e-5)
    photos = sdm.plan(photo=[photo, photo], text="alpine meadow", bbox=BOX, model=folder, score="cosine", **GRID)
    once = sdm.plan(photo=photo, text="alpine meadow", bbox=BOX, model=folder, score="cosine", **GRID)
    np.testing.assert_allclose(photos.plan.species, once.plan.species, atol=1e-6)


def test_written_maps_say_what_they_are(folder, photo, tmp_path):
    job = sdm.plan("Ursus arctos", photo=photo, bbox=BOX, model=folder, **GRID)
    result = sdm.write_maps(job, tmp_path / "out")[0]
    with rasterio.open(result.files["tif"]) as src:
        tags = src.tags()
        assert tags["score"] == "relative_suitability" and tags["model"] == "taxabind"
        assert "bear.png" in tags["species"] and src.nodata is not None and np.isnan(src.nodata)
        text = json.dumps(tags) + json.dumps(src.tags(1))
        assert src.descriptions == ("relative_suitability",)
        assert "NOT a probability" in text and "Probability that the place lies" not in text
        assert "approximat" in text.lower()  # the environment is not WorldClim itself
    report = json.loads(result.files["json"].read_text())
    assert report["score"]["score"] == "relative_suitability" and report["request"]["photo"] == [str(photo)]
    assert any("approximat" in note.lower() for note in report["notes"])


def test_imagery(folder, write_raster):
    rng = np.random.default_rng(0)
    path = write_raster(
        rng.integers(0, 255, (3, 200, 200), dtype=np.uint8), west=8.0, north=46.0, cell=0.0005, photometric="RGB"
    )
    options = {"bbox": (8.0, 45.9, 8.2, 46.0), "model": folder, "satellite": path, "mask": "none", "resolution": 0.01}
    array = sdm.map_species("Ursus arctos", score="cosine", modalities="satellite", **options)
    model, vector = open_model(folder), sdm.plan("Ursus arctos", score="cosine", **options).plan.species[0]
    from sdm.layers.imagery import open_imagery

    lon, lat = (a.ravel() for a in np.meshgrid(array.x.values[:10], array.y.values))
    crops = open_imagery(path).crops(lon, lat)
    cosines = (model.load("cpu").encode("satellite", crops).numpy() @ vector).reshape(10, 10)
    every = sdm.map_species("Ursus arctos", score="cosine", modalities="satellite", satellite_step=1, **options)
    np.testing.assert_allclose(every.values[:, :10], cosines, atol=2e-5)
    assert np.isnan(every.values[:, 10:]).all()  # the raster ends at 8.1 degrees
    # A crop is 0.023 degrees wide: by default every second pixel of 0.01 is encoded, and the rest lies between.
    assert sdm.plan("Ursus arctos", score="cosine", **options).plan.strides["satellite"] == 2
    assert 0 < np.nanmax(np.abs(every.values - array.values)) < np.nanmax(cosines) - np.nanmin(cosines)
    with pytest.raises(RequestError, match="cover 0 of 2,000"):
        sdm.plan("Ursus arctos", **options)
    with pytest.raises(LayerError, match="give --satellite"):
        sdm.plan("Ursus arctos", bbox=BOX, model=folder, modalities="satellite", **GRID)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("brown bear", "Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos"),
        ("Animalia Chordata Aves Accipitriformes Accipitridae Haliaeetus leucocephalus", None),
        ("Ursus americanus", "Animalia Chordata Mammalia Carnivora Ursidae Ursus americanus"),
    ],
)
def test_names_become_taxonomic_strings(folder, query, text):
    from sdm.names import taxonomic_string

    assert taxonomic_string(open_model(folder).resolve(query).taxon) == (text or query)


def test_a_name_without_a_lineage_is_refused(folder):
    with pytest.raises(SpeciesNameError, match="full lineage"):
        open_model(folder).resolve("Aeshna cyanea")


def test_parts_that_are_missing(folder, copy_of, photo, tmp_path):
    with pytest.raises(ModelError, match="cannot encode photos; give --model taxabind"):
        sdm.plan(photo=photo, bbox=BOX)
    with pytest.raises(ModelError, match=r"cannot encode free text"):
        sdm.plan(text="meadow", bbox=BOX, model=copy_of("ecogeo", "ecoclim"), **GRID)
    with pytest.raises(ModelError, match="none of TaxaBind's files"):
        open_model(tmp_path)
    location = sdm.plan(embedding=_vector(tmp_path, 64), bbox=BOX, model=copy_of("ecogeo", to=tmp_path / "l"), **GRID)
    assert location.plan.modalities == ("location",)
    with pytest.raises(ModelError, match="has no environment encoder"):
        sdm.plan(embedding=_vector(tmp_path, 64), bbox=BOX, model=tmp_path / "l", modalities="environment", **GRID)
    with pytest.raises(RequestError, match="not calibrated"):
        sdm.plan("Ursus arctos", bbox=BOX, model=folder, score="probability", **GRID)


def _vector(tmp_path, dim):
    path = tmp_path / "vector.npy"
    np.save(path, np.ones(dim, dtype=np.float32))
    return path


def test_command(folder, photo, tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr("sys.argv", ["taxabind-map", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        found = capsys.readouterr()
        return stop.value.code or 0, found.out, found.err

    out = tmp_path / "maps"
    code, _, err = run("--photo", photo, "--bbox", *BOX, "--model", folder, "--resolution", 0.25, "--out", out)
    assert code == 0, err
    assert "approximat" in err.lower() and list(out.glob("*.tif"))
    code, _, err = run("--photo", photo, "--bbox", *BOX, "--resolution", 0.25, "--out", out)
    assert code == 5 and "--model taxabind" in err
    code, _, err = run("Ursus arctos", "Puma concolor", "--photo", photo, "--bbox", *BOX, "--model", folder)
    assert code == 2 and "one name only" in err
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    code, _, err = run("Ursus arctos", "--bbox", *BOX, "--model", "taxabind")
    assert code == 5 and "sdm models fetch taxabind" in err
