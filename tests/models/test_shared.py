"""Models that share their encoders of places: what they may be, what is refused, and several of them as one."""

import itertools
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdm.models.folder
from sdm.engine.targets import doubter, named_target
from sdm.errors import BoxError, ModelError, RegionIndexError, RequestError, SpeciesNameError
from sdm.files import release
from sdm.index import Index, build_index, plan_index, store
from sdm.maps.batch import plan_batch, write_batch
from sdm.models.bundled import BundledModel
from sdm.models.choice import choose, choose_for_most
from sdm.models.joint import JointModel, join, member_of, narrowed, spaces
from sdm.models.known_ranges import KnownRange
from sdm.models.registry import list_models, open_model
from sdm.models.shared import encoders_digest

BEAR, OAK, ADDER, FROG, SWIFT = "Ursus arctos", "Quercus robur", "Vipera berus", "Rana temporaria", "Apus apus"
MAMMALS = [
    (BEAR, "Mammalia", "Carnivora", "Ursidae", "mammal", "brown bear"),
    (OAK, "Magnoliopsida", "Fagales", "Fagaceae", "tree", "English oak|racer"),
]
REPTILES = [
    (ADDER, "Reptilia", "Squamata", "Viperidae", "reptile", "adder|northern viper", "Coluber berus"),
    (FROG, "Amphibia", "Anura", "Ranidae", "amphibian", "common frog|racer"),
]
BIRDS = [(SWIFT, "Aves", "Apodiformes", "Apodidae", "bird", "common swift")]
BOX = {"bbox": (5, 45, 8, 47), "resolution": 0.1, "tile_size": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_model, share_model):
    """Folder of three bundled models, two of which share their encoders."""
    root = tmp_path_factory.mktemp("bundled")
    write_model(root / "mammals-trees", MAMMALS)
    write_model(root / "birds", BIRDS, seed=1, licence="CC BY-NC-SA 4.0")
    share_model(root / "life", root / "mammals-trees", REPTILES)
    release.write_sums(root)
    return root


@pytest.fixture(autouse=True)
def bundle(root, monkeypatch):
    monkeypatch.setattr(sdm.models.folder, "resource_folder", lambda kind: root)


@pytest.fixture
def copy(root, tmp_path):
    """Function: the folder of a copy of the sharing model without its base, its config changed by a function."""

    def make(change=lambda config: None, **changes):
        folder = tmp_path / "copy"
        folder.mkdir()
        for file in (root / "life").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return make


def places(model):
    lonlat = np.random.default_rng(0).uniform(-50, 50, (5, 2))
    return model.embed("location", lonlat)


# One model ----------------------------------------------------------------------------------------


def test_places_are_those_of_the_other_model_and_species_its_own(root):
    base, life, birds = (BundledModel.open(name) for name in ("mammals-trees", "life", "birds"))
    assert life.space == base.space != birds.space and base.space[0] == "mammals-trees"
    assert life.digest != base.digest
    np.testing.assert_array_equal(places(life), places(base))
    assert life.load("cpu").location is base.load("cpu").location  # one copy in memory
    assert (life.dim, life.domain, life.layers, life.modalities) == (
        base.dim,
        base.domain,
        base.layers,
        base.modalities,
    )
    tensors = load_file(root / "life" / "model.safetensors")
    rows = tensors["text.embedding.weight"] * tensors["text.embedding.scale"][:, None]
    vocabulary = [t for t in (root / "life" / "vocabulary.txt").read_text().split("\n") if t]
    wanted = ("class:Reptilia", "order:Squamata", "family:Viperidae", "genus:Vipera", f"species:{ADDER}")
    vector = sum(rows[vocabulary.index(token)] for token in wanted)
    found = life.species_embedding(life.resolve(ADDER))
    np.testing.assert_allclose(found, vector / np.linalg.norm(vector), atol=1e-6)
    assert life.verify()[0].good


def test_the_digest_of_encoders_is_of_them_alone(root, tmp_path):
    config = json.loads((root / "mammals-trees" / "config.json").read_text())
    folders = map(str, itertools.count())
    weights = load_file(root / "mammals-trees" / "model.safetensors")

    def digest(change=None, **described):
        folder = tmp_path / next(folders)  # a file is not read again before its time has changed
        folder.mkdir()
        save_file(weights | (change or {}), folder / "model.safetensors")
        return encoders_digest(folder, config | described)

    before = digest()
    assert before == BundledModel.open("mammals-trees").space[1]
    text = {"text.embedding.weight": weights["text.embedding.weight"][:-1]}
    assert digest(text) == digest(version="2", calibration={}) == before  # new species, a new calibration
    other = weights["location.net.0.bias"] + np.float32(1e-3)
    assert digest({"location.net.0.bias": other}) != before
    assert digest(environment=config["environment"] | {"pitch": 0.3}) != before


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b"\x0e\0\0\0\0\0\0\0" + b'{"a": {"x": 1}}']
)
def test_weights_that_are_none_have_no_digest(root, tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        encoders_digest(tmp_path, json.loads((root / "mammals-trees" / "config.json").read_text()))


ENTRY = {"model": "mammals-trees", "digest": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("encoders", "says"),
    [
        (ENTRY, "made for the encoders 0123456789abcdef of model 'mammals-trees', but those here are"),
        (ENTRY | {"model": "gone"}, "model 'gone', which is neither bundled nor in a folder beside it"),
        (ENTRY | {"model": "life"}, "shares the encoders of 'life', which has none of its own"),
        (ENTRY | {"model": "../life"}, "without the name of a model"),
        (ENTRY | {"digest": "0123"}, "16 hexadecimal digits"),
        (ENTRY | {"digest": 7}, "16 hexadecimal digits"),
        ("mammals-trees", "without the name of a model"),
        (None, "without the name of a model"),
    ],
)
def test_encoders_that_are_not_there_are_refused(copy, encoders, says):
    with pytest.raises(ModelError, match=says):
        BundledModel.open(copy(encoders=encoders))


def test_a_model_describes_its_encoders_or_names_them(copy):
    with pytest.raises(ModelError, match="must not have 'dim'"):
        BundledModel.open(copy(dim=16))


def test_a_model_beside_its_base_is_opened_with_it(root, tmp_path, write_model, share_model):
    base = write_model(tmp_path / "mine", MAMMALS, seed=7)
    mine = BundledModel.open(share_model(tmp_path / "more", base, REPTILES))
    assert mine.space[0] == "mine" and mine.encoders.folder == base
    np.testing.assert_array_equal(places(mine), places(BundledModel.open(base)))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("text.embedding.scale"),
        lambda t: t.update({"text.embedding.scale": t["text.embedding.scale"][1:]}),
        lambda t: t.update({"text.embedding.scale": t["text.embedding.scale"].astype(np.float64)}),
        lambda t: t.update({"text.embedding.weight": t["text.embedding.weight"].astype(np.float32)}),
        lambda t: t.update({"text.embedding.weight": t["text.embedding.weight"].astype(np.int16)}),
        lambda t: t.update({"text.embedding.scale": np.full_like(t["text.embedding.scale"], np.inf)}),
        lambda t: t.update({"location.net.0.bias": np.zeros(16, np.float32)}),
        lambda t: t.pop("text.embedding.weight"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(copy, change):
    folder = copy()
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"copy|life"):
        BundledModel.open(folder).load("cpu")


# Several as one -----------------------------------------------------------------------------------


@pytest.fixture
def both():
    return open_model("mammals-trees+life")


def test_several_models_as_one(both):
    base, life = (BundledModel.open(name) for name in ("mammals-trees", "life"))
    assert isinstance(both, JointModel) and (both.name, both.version) == ("mammals-trees+life", "1+1")
    assert both.licence == "CC0-1.0 and CC-BY-4.0" and both.digest not in (base.digest, life.digest)
    assert {t.name for t in both.taxa} == {BEAR, OAK, ADDER, FROG}
    adder, bear = both.resolve("northern viper").taxon, both.resolve("Brown Bear").taxon
    assert member_of(both, adder).name == "life" and member_of(both, bear).name == "mammals-trees"
    assert member_of(both, both.resolve("Viperidae").taxon).name == "life"
    vectors = both.species_embeddings([adder, bear, adder])
    np.testing.assert_array_equal(vectors[[0, 2]], life.species_embeddings([adder, adder]))
    np.testing.assert_array_equal(vectors[1], base.species_embedding(base.resolve(BEAR)))
    np.testing.assert_array_equal(both.species_embedding(both.resolve(ADDER)), vectors[0])
    assert pickle.loads(pickle.dumps(both)).digest == both.digest
    assert narrowed(both, [adder]).name == "life" and narrowed(both, [adder, bear]) == both
    assert narrowed(both, []).name == "mammals-trees"
    with pytest.raises(SpeciesNameError, match="racer"):  # a name that two members understand differently
        both.resolve("racer")


def test_what_is_known_of_a_species_is_what_its_model_knows(both, monkeypatch):
    known = KnownRange(np.array([[0, 0, 1, 1]], np.float32), 1.0, 0.5, 100.0, 0.9, 0.4)
    both.members[1].__dict__["known_ranges"] = {ADDER: known}
    both.members[1].__dict__["_notes"] = {ADDER: "A note."}
    targets = {name: named_target(both, both.resolve(name), both.modalities) for name in (BEAR, ADDER)}
    assert (targets[BEAR].score.scale, targets[BEAR].known) == (6.0, None)
    assert (targets[ADDER].score.scale, targets[ADDER].known.offset) == (5.0, pytest.approx(0.2))
    assert both.remarks(ADDER) == ("A note.",) and both.remarks(BEAR) == ()


def test_only_models_of_one_space_are_joined():
    assert [model.name for model in spaces(list_models())] == ["mammals-trees+life", "birds"]
    with pytest.raises(ModelError, match="models mammals-trees, birds do not share their encoders"):
        join([BundledModel.open("mammals-trees"), BundledModel.open("birds")])
    with pytest.raises(ModelError, match="do not share"):
        open_model("mammals-trees+birds")
    assert open_model("life+life").name == "life"
    with pytest.raises(ModelError, match="neither a bundled model"):
        open_model("mammals-trees+gone")


@pytest.mark.parametrize("names", [(BEAR, ADDER), ("adder", "brown bear"), (ADDER, "common frog", OAK)])
def test_names_of_several_models_of_a_space_are_mapped_together(names):
    model, resolutions = choose(list(names))
    assert model.name == "mammals-trees+life" and len(resolutions) == len(names)
    assert choose_for_most(list(names))[0] == model


@pytest.mark.parametrize(("names", "model"), [((ADDER, FROG), "life"), ((BEAR,), "mammals-trees"), ((SWIFT,), "birds")])
def test_names_of_one_model_are_mapped_with_it(names, model):
    assert choose(list(names))[0].name == choose_for_most(list(names))[0].name == model


def test_names_of_other_encoders_are_not():
    with pytest.raises(RequestError, match=r"'Apus apus' \(birds\), 'Vipera berus' \(life\)"):
        choose([SWIFT, ADDER])
    model, (bear, adder, swift) = choose_for_most([BEAR, ADDER, SWIFT])
    assert model.name == "mammals-trees+life" and (bear.known, adder.known) == (True, True)
    assert "known to model birds" in str(swift) and "this run uses mammals-trees and life" in str(swift)
    # A species whose genus alone is known is none of a list, and needs no model.
    model, (bear, viper) = choose_for_most([BEAR, "Vipera aspis"])
    assert model.name == "mammals-trees" and "names no species of model life" in str(viper)


# Maps ---------------------------------------------------------------------------------------------


def test_a_list_of_mixed_groups_is_mapped_in_one_pass(tmp_path, monkeypatch):
    from sdm.maps.batch import tiles

    encoded = []
    real = tiles.stored_tile
    monkeypatch.setattr(tiles, "stored_tile", lambda *args: encoded.append(args[1].index) or real(*args))
    batch = plan_batch([BEAR, "adder", FROG, SWIFT], **BOX)
    assert batch.job.grid.tile_count == 4
    result = write_batch(batch, tmp_path / "mixed", threads=1)
    assert len(encoded) == batch.job.grid.tile_count  # once each
    data = result.open()
    assert list(data.model.values) == ["mammals-trees", "life", "life"]
    alone = write_batch(plan_batch([ADDER], **BOX), tmp_path / "alone", threads=1).open()
    np.testing.assert_array_equal(data.probability.sel(species=ADDER), alone.probability[0])
    assert "model" not in alone.coords
    report = result.report
    assert report["model"]["name"] == "mammals-trees+life"
    assert [m["name"] for m in report["model"]["members"]] == ["mammals-trees", "life"]
    assert "species of the model 'life': sigmoid(5.000" in data.attrs["summary"]
    assert "map it separately with --model birds" in result.summary[3]["error"]


def test_each_map_of_a_call_is_of_its_own_model(tmp_path):
    job = sdm.plan([BEAR, ADDER], **BOX)
    results = sdm.write_maps(job, tmp_path, formats=["cog"], threads=1)
    found = [json.loads(result.files["json"].read_text()) for result in results]
    assert [one["model"]["name"] for one in found] == ["mammals-trees", "life"]
    assert [one["model"]["licence"] for one in found] == ["CC0-1.0", "CC-BY-4.0"]
    assert [any("CC-BY" in line for line in one["layers"]["attribution"]) for one in found] == [False, True]
    assert [one["score"]["scale"] for one in found] == [6.0, 5.0]


def test_the_uncertainty_of_a_species_is_that_of_its_model(both, tmp_path, monkeypatch):
    job = sdm.plan([BEAR, ADDER], **BOX)
    asked = []
    monkeypatch.setattr(
        "sdm.engine.doubt.Doubt.read", lambda folder, modalities: asked.append(folder.name) or folder.name
    )
    doubt = doubter(job.plan)
    assert [doubt(r.taxon) for r in job.resolutions] == asked == ["mammals-trees", "life"]


# Indexes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(root, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdm.models.folder, "resource_folder", lambda kind: root)
        return Index.open(build_index(plan_index(**BOX), tmp_path_factory.mktemp("index") / "alps.zarr", threads=1).url)


def test_an_index_answers_for_every_model_of_its_encoders(index):
    assert index.model.name == "mammals-trees+life"
    values = index.query([BEAR, ADDER, "common frog"])
    for name in (BEAR, ADDER, FROG):
        single = index.query(name)
        np.testing.assert_array_equal(values.sel(species=name), single)
        direct = sdm.map_species(name, **BOX, step=1).compute()
        assert float(np.abs(single - direct).mean()) < 0.02  # interpolated otherwise, and stored as int8
    assert (values.attrs["model"], index.query(ADDER).attrs["model"]) == ("mammals-trees+life", "life")
    job = sdm.plan(ADDER, index=index)
    assert job.plan.model.name == "life"
    with pytest.raises(SpeciesNameError, match="known to model birds"):
        index.query(SWIFT)
    # The user may choose one of them.
    with pytest.raises(SpeciesNameError, match="known to model life"):
        index.query(ADDER, model="mammals-trees")
    assert index.query(ADDER, model="life").attrs["model"] == "life"


def test_the_identity_of_an_index_rests_on_the_encoders(index):
    wanted = plan_index(**BOX)
    assert wanted.identity["model"] == {"name": "mammals-trees", "encoders": index.encoders}
    assert plan_index(**BOX, model="life").digest == wanted.digest == index.digest
    assert plan_index(**BOX, model="birds").digest != wanted.digest


def test_an_index_of_an_earlier_version_states_the_whole_model(index, monkeypatch):
    base = BundledModel.open("mammals-trees")
    stated = {"name": base.name, "version": "1", "digest": base.digest}
    monkeypatch.setitem(index.identity, "model", stated)
    assert index.find_model().name == "mammals-trees+life"
    index.check(BundledModel.open("mammals-trees"))
    stated["digest"] = "0123456789abcdef"
    with pytest.raises(RegionIndexError, match="not bundled here"):
        index.find_model()
    assert store.digest({"model": stated}) != store.digest({"model": {}})


def test_living_things_of_all_models_are_listed_together(index):
    from sdm.analysis.living import living_at

    encoded = living_at(7.4, 46.2, 0.0)
    assert {one.taxon.name: one.model for one in encoded.species} == {
        BEAR: "mammals-trees",
        OAK: "mammals-trees",
        ADDER: "life",
        FROG: "life",
        SWIFT: "birds",
    }
    stored = living_at(7.45, 46.25, 0.0, index=index)
    assert {one.taxon.name: one.model for one in stored.species} == {
        name: "life" if name in (ADDER, FROG) else "mammals-trees" for name in (BEAR, OAK, ADDER, FROG)
    }
    with pytest.raises(BoxError, match="--at 9 46 lies outside the region index"):
        living_at(9.0, 46.0, 0.0, index=index)
