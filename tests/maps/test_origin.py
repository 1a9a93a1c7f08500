"""Native and whole ranges: `--origin` reaches the vector of the species on every path, and every output says which."""

import csv
import json
import shutil

import numpy as np
import pytest
import rasterio
import xarray as xr

import sdm
from sdm.engine.targets import named_target
from sdm.errors import ModelError, RequestError
from sdm.files import release
from sdm.index import Index, build_index, plan_index
from sdm.maps.batch import plan_batch, write_batch
from sdm.models.bundled import BundledModel
from sdm.models.origin import of_origin
from sdm.names import Resolution, TaxonTable
from sdm.names.origin import introduced_among, lineage_of, with_introduced
from sdm.serve.state import Explorer

BOX = (5, 45, 8, 47)
OPTIONS = {"bbox": BOX, "resolution": 0.1, "tile_size": 16}
BOAR, BEAR = "Sus scrofa", "Ursus arctos"


@pytest.fixture(scope="session")
def model(tmp_path_factory, write_model):
    """Folder of a model that knows an introduced range of the boar, and none of the bear."""
    rows = [
        (BOAR, "Mammalia", "Cetartiodactyla", "Suidae", "mammal", "wild boar"),
        (BEAR, "Mammalia", "Carnivora", "Ursidae", "mammal", "brown bear"),
    ]
    return write_model(tmp_path_factory.mktemp("origin") / "boars", rows, introduced=[BOAR])


@pytest.fixture(scope="session")
def index(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("index") / "alps.zarr"
    return Index.open(build_index(plan_index(**OPTIONS, model=model), path, threads=1).url)


def vector(model, name, origin):
    opened = BundledModel.open(model)
    return opened.species_embedding(of_origin(opened, opened.resolve(name), origin))


def test_names_of_whole_ranges():
    assert with_introduced(BOAR) == "Sus scrofa [all]"
    lineages = {BOAR: ("Animalia", BOAR)}
    assert lineage_of("Sus scrofa [all]", lineages) == ("Animalia", "Sus scrofa [all]")
    assert lineage_of(BOAR, lineages) == lineages[BOAR]
    assert introduced_among([BOAR, "Sus scrofa [all]", BEAR]) == {BOAR}


def test_a_whole_range_has_a_vector_of_its_own(model):
    opened = BundledModel.open(model)
    assert opened.introduced == {BOAR}
    native, whole = (vector(model, BOAR, origin) for origin in ("native", "all"))
    assert not np.allclose(native, whole, atol=1e-3)
    own = opened.load("cpu").text
    rows = [own.index[t] for t in ("class:Mammalia", "order:Cetartiodactyla", "family:Suidae", "genus:Sus")]
    total = own.embedding.weight[[*rows, own.index["species:Sus scrofa [all]"]]].sum(0).numpy()
    assert np.allclose(whole, total / np.linalg.norm(total), atol=1e-5)
    assert np.array_equal(*(vector(model, BEAR, origin) for origin in ("native", "all")))
    genus = opened.resolve("Sus")
    assert of_origin(opened, genus, "all").origin == "native"


def test_notes_say_which_range_is_mapped(model):
    opened = BundledModel.open(model)
    said = {
        (name, origin): " ".join(of_origin(opened, opened.resolve(name), origin).notes)
        for name in (BOAR, BEAR)
        for origin in ("native", "all")
    }
    assert "native range of Sus scrofa; --origin all adds" in said[BOAR, "native"]
    assert "whole range of Sus scrofa, native and introduced" in said[BOAR, "all"]
    assert said[BEAR, "native"] == ""
    assert "knows no introduced range of Ursus arctos, so --origin all changes nothing" in said[BEAR, "all"]


def test_maps_of_both_ranges(tmp_path, model, run):
    common = ("--bbox", *BOX, "--resolution", 0.1, "--model", model, "--out", "maps")
    assert run(BOAR, *common)[0] == 0
    code, _, said = run(BOAR, BEAR, *common, "--origin", "all")
    assert code == 0
    assert "whole range of Sus scrofa" in said and "no introduced range of Ursus arctos" in said
    names = {p.name for p in (tmp_path / "maps").glob("*.tif")}
    assert names == {"sus-scrofa.tif", "sus-scrofa-with-introduced.tif", "ursus-arctos.tif"}
    tags, values = {}, {}
    for stem in ("sus-scrofa", "sus-scrofa-with-introduced", "ursus-arctos"):
        with rasterio.open(tmp_path / "maps" / f"{stem}.tif") as file:
            tags[stem], values[stem] = file.tags(), file.read(1)
    assert [t["origin"] for t in tags.values()] == ["native", "all", "native"]
    native, whole = values["sus-scrofa"], values["sus-scrofa-with-introduced"]
    assert np.nanmax(np.abs(native - whole)) > 0.01
    report = json.loads((tmp_path / "maps" / "sus-scrofa-with-introduced.json").read_text())
    assert report["resolved"]["origin"] == report["request"]["origin"] == "all"
    assert "introduced populations included" in report["quantity"] and report["species"] == BOAR
    assert "native and introduced range" in (tmp_path / "maps" / "sus-scrofa-with-introduced.html").read_text()
    array = sdm.map_species(BOAR, **OPTIONS, model=model, origin="all").compute()
    assert np.allclose(array, whole, equal_nan=True, atol=1e-6) and array.attrs["origin"] == "all"


def test_an_unknown_origin_is_refused(model, run):
    with pytest.raises(RequestError, match="origin 'feral' is not known; choose one of native, all"):
        sdm.plan(BOAR, **OPTIONS, model=model, origin="feral")
    code, _, said = run(BOAR, "--bbox", *BOX, "--origin", "feral")
    assert code == 2 and "origin 'feral'" in said


def test_records_have_no_origin(tmp_path, model):
    (tmp_path / "boars.csv").write_text("species,lon,lat\nSus scrofa,6,46\n")
    with pytest.raises(RequestError, match="--origin have no meaning for a fit"):
        sdm.plan(BOAR, **OPTIONS, model=model, origin="all", records=tmp_path / "boars.csv")


def test_batches(tmp_path, model):
    found = {}
    for origin in ("native", "all"):
        batch = plan_batch([BOAR, BEAR], **OPTIONS, model=model, origin=origin)
        write_batch(batch, tmp_path / origin, formats=("cog",))
        found[origin] = xr.open_zarr(tmp_path / origin / "probability.zarr")["probability"].compute()
    difference = np.abs(found["all"] - found["native"]).max(("y", "x"))
    assert difference.sel(species=BOAR) > 0.01 and difference.sel(species=BEAR) == 0
    assert [str(v) for v in found["all"]["origin"].values] == ["all", "native"]
    with (tmp_path / "all" / "summary.csv").open() as file:
        boar, bear = csv.DictReader(file)
    assert (boar["origin"], bear["origin"]) == ("all", "native")
    assert "whole range of Sus scrofa" in boar["notes"]
    assert boar["files"].startswith("species/sus-scrofa-with-introduced.tif")
    report = json.loads((tmp_path / "all" / "batch.json").read_text())
    assert report["configuration"]["origin"] == "all"


def test_an_index_answers_both(tmp_path, model, index):
    native, whole = (index.query(BOAR, origin=origin, model=model) for origin in ("native", "all"))
    assert float(np.abs(native - whole).max()) > 0.01
    opened = BundledModel.open(model)
    resolution = of_origin(opened, opened.resolve(BOAR), "all")
    assert np.array_equal(index.query(resolution, model=model), whole, equal_nan=True)
    with pytest.raises(RequestError, match="origin 'feral'"):
        index.query(BOAR, origin="feral", model=model)
    job = sdm.plan(BOAR, index=index, model=model, origin="all")
    assert np.array_equal(job.plan.targets[0].vector, vector(model, BOAR, "all"))
    assert job.slugs == ("sus-scrofa-with-introduced",)


def test_the_explorer_shows_both(tmp_path, model, index):
    explorer = Explorer(index, model)
    try:
        assert explorer.info()["model"]["introduced"] == 1
        native, whole = (explorer.describe(BOAR, origin) for origin in ("native", "all"))
        assert (native["origin"], whole["origin"]) == ("native", "all")
        assert native["expected_km2"] != whole["expected_km2"] and native["name"] == whole["name"]
        assert "--origin" in " ".join(native["notes"]) or "native range" in " ".join(native["notes"])
        assert whole["file"] == "sus-scrofa-with-introduced.tif"
        assert not np.array_equal(explorer.picture(BOAR).levels, explorer.picture(BOAR, "all").levels)
        answers = {origin: explorer.place(6.45, 46.15, BOAR, origin) for origin in ("native", "all")}
        for origin, answer in answers.items():
            top = {item["name"]: item["value"] for item in answer["top"]}
            assert top[BOAR] == pytest.approx(answer["species"]["value"], abs=1e-6), origin
        assert answers["native"]["species"]["value"] != answers["all"]["species"]["value"]
        with pytest.raises(RequestError, match="origin 'feral'"):
            explorer.place(6.45, 46.15, None, "feral")
        with pytest.raises(RequestError, match="origin 'feral'"):
            explorer.job(BOAR, "feral")
        assert explorer.cog(BOAR, tmp_path, "all").name == "sus-scrofa-with-introduced.tif"
    finally:
        explorer.close()


def test_lists_of_names_tell_which_species_have_an_introduced_range(model, run, monkeypatch):
    import sdm.models.folder

    release.write_sums(model.parent)
    monkeypatch.setattr(sdm.models.folder, "resource_folder", lambda kind: model.parent)
    code, out, _ = run("--search", "boar")
    assert code == 0 and "Sus scrofa (wild boar)  [boars]  native and introduced (--origin all)" in out
    assert "--origin" not in run("--search", "bear")[1]
    assert "--origin all (1 species with introduced ranges)" in run("--list-models")[1]


def test_a_resolution_is_native_unless_it_says_otherwise(model):
    taxon = TaxonTable.load(model).resolve(BOAR).taxon
    opened = BundledModel.open(model)
    assert Resolution(BOAR, taxon, True, "").origin == "native"
    target = named_target(opened, Resolution(BOAR, taxon, True, "", (), "all"), opened.modalities)
    assert np.array_equal(target.vector, vector(model, BOAR, "all"))


def test_notes_on_a_species_are_on_its_maps(tmp_path, model, run):
    """What the ranges of the model lack is in the terminal and in the report."""
    noted = tmp_path / "noted"
    shutil.copytree(model, noted)
    (noted / "notes.csv").write_text(f'species,note\n{BEAR},"The atlas lacks the bears of the moon."\n')
    opened = BundledModel.open(noted)
    assert opened.remarks(BEAR) == ("The atlas lacks the bears of the moon.",) and opened.remarks(BOAR) == ()
    code, _, said = run(BEAR, "--bbox", *BOX, "--resolution", 0.2, "--model", noted, "--out", "maps", "--format", "cog")
    assert code == 0 and "bears of the moon" in said
    assert (
        "The atlas lacks the bears of the moon."
        in json.loads((tmp_path / "maps/ursus-arctos.json").read_text())["notes"]
    )
    for text, why in (
        ("species,notes\n", "lacks the column"),
        (f"species,note\n{BEAR},\n", "has no note"),
        ("\0", "lacks the column|not valid CSV"),
    ):
        (noted / "notes.csv").write_text(text)
        with pytest.raises(ModelError, match=why):
            BundledModel.open(noted).remarks(BEAR)


def test_bundled_notes_are_on_species_of_the_model():
    from sdm.names.taxa import read_remarks

    opened = BundledModel.open("mammals-trees")
    notes = read_remarks(opened.folder / "notes.csv")
    assert len(notes) > 20 and all(name in opened.taxa for name in notes)
    assert all(note.endswith(".") and opened.remarks(name) == (note,) for name, note in notes.items())
