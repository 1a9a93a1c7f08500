"""Which bundled model a name belongs to: one call has one model, and a name is never guessed."""

import time

import pytest

import sdm
import sdm.models.folder
from sdm.errors import RequestError, SdmError, SpeciesNameError
from sdm.files import release
from sdm.maps.batch import plan_batch
from sdm.models.choice import choose
from sdm.names import TaxonTable, listed

SMALL = {"bbox": (-4, 52, -2, 53), "resolution": 0.5}
BIRDS = [
    ("Hirundo rustica", "Aves", "Passeriformes", "Hirundinidae", "bird", "barn swallow|swallow"),
    ("Erithacus rubecula", "Aves", "Passeriformes", "Muscicapidae", "bird", "European robin|robin"),
    ("Turdus migratorius", "Aves", "Passeriformes", "Turdidae", "bird", "American robin|robin"),
    ("Morus bassanus", "Aves", "Suliformes", "Sulidae", "bird", "northern gannet", "Sula bassana"),
    ("Falco tinnunculus", "Aves", "Falconiformes", "Falconidae", "bird", "kestrel|windhover"),
]
MAMMALS = [
    ("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal", "brown bear|grizzly"),
    ("Martes martes", "Mammalia", "Carnivora", "Mustelidae", "mammal", "pine marten|windhover"),
    ("Morus alba", "Magnoliopsida", "Rosales", "Moraceae", "tree", "white mulberry"),
]
TREES = [
    ("Morus alba", "Magnoliopsida", "Rosales", "Moraceae", "tree", "white mulberry"),
    ("Fagus sylvatica", "Magnoliopsida", "Fagales", "Fagaceae", "tree", "European beech"),
]
OTHER_TREE = ("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Castanea")


@pytest.fixture(scope="module")
def models(tmp_path_factory, write_model):
    """Folder of three bundled models."""
    root = tmp_path_factory.mktemp("bundled")
    write_model(root / "birds", BIRDS, season=True, licence="CC BY-NC-SA 4.0")
    write_model(root / "mammals-trees", MAMMALS)
    write_model(root / "trees", TREES, genera=[OTHER_TREE])
    release.write_sums(root)
    return root


@pytest.fixture(autouse=True)
def bundle(models, monkeypatch):
    monkeypatch.setattr(sdm.models.folder, "resource_folder", lambda kind: models)


@pytest.mark.parametrize(
    ("query", "model", "name"),
    [
        ("Ursus arctos", "mammals-trees", "Ursus arctos"),
        ("HIRUNDO rustica Linnaeus, 1758", "birds", "Hirundo rustica"),
        ("barn swallow", "birds", "Hirundo rustica"),
        ("grizzly", "mammals-trees", "Ursus arctos"),
        ("Sula bassana", "birds", "Morus bassanus"),
        ("Morus bassanus", "birds", "Morus bassanus"),  # Morus is a genus of mulberries too
        ("Morus alba", "mammals-trees", "Morus alba"),  # in two models, which agree: the first
        ("white mulberry", "mammals-trees", "Morus alba"),
        ("Fagus sylvatica", "trees", "Fagus sylvatica"),
        ("E. rubecula", "birds", "Erithacus rubecula"),
        ("European robin", "birds", "Erithacus rubecula"),
        ("Falconidae", "birds", "Falconidae"),
        ("Hirundo neoxena", "birds", "Hirundo"),
        ("Castanea sativa", "trees", "Fagaceae"),
        ("Animalia Chordata Aves Suliformes Sulidae Morus Morus bassanus", "birds", "Morus bassanus"),
    ],
)
def test_a_name_finds_its_model(query, model, name):
    found, (resolution,) = choose([query], as_group=True)
    assert (found.name, resolution.taxon.name) == (model, name)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("robin", ["Erithacus rubecula (European robin) [birds]", "Turdus migratorius (American robin) [birds]"]),
        ("windhover", ["Falco tinnunculus (kestrel) [birds]", "Martes martes (pine marten) [mammals-trees]"]),
        ("Morus", ["genus Morus [birds]", "genus Morus [mammals-trees]"]),
        ("Morus nigra", ["genus Morus [birds]", "genus Morus [trees]"]),
    ],
)
def test_a_name_of_several_models_asks(query, words):
    with pytest.raises(SpeciesNameError, match="give the scientific name you mean") as caught:
        choose([query])
    assert all(word in str(caught.value) for word in words) and "--model" in str(caught.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Ursus arctoss", ["Ursus arctos (brown bear) [mammals-trees]"]),
        ("Falco tinunculus", ["Falco tinnunculus (kestrel) [birds]"]),
        ("Morus albaa", ["Morus alba (white mulberry) [trees]"]),  # a slip, not an unknown gannet
        ("Crotalus atrox", ["5 birds, 3 trees, 2 mammals", "none is spelled like it"]),
        ("bear", ["Ursus arctos (brown bear) [mammals-trees]"]),
    ],
)
def test_an_unknown_name_is_told_what_all_models_know(query, words):
    with pytest.raises(SpeciesNameError) as caught:
        choose([query])
    assert all(word in str(caught.value) for word in [*words, "--search"]), caught.value
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("bad", ["", "12345", "a\0b", "Plantae", "x" * 300])
def test_what_is_no_name_is_refused_in_one_sentence(bad):
    with pytest.raises(SdmError):
        choose([bad])


def test_names_of_different_models_are_told_apart():
    with pytest.raises(
        RequestError, match=r"'Ursus arctos' \(mammals-trees\), 'barn swallow' \(birds\); map them in sep"
    ):
        choose(["Ursus arctos", "barn swallow"])
    model, found = choose(["Fagus sylvatica", "Morus alba"])  # the first of the two models knows one only
    assert model.name == "trees" and [r.taxon.name for r in found] == ["Fagus sylvatica", "Morus alba"]


def test_a_scientific_name_opens_no_table_of_another_model(monkeypatch):
    opened = []
    load = TaxonTable.load.__func__
    monkeypatch.setattr(TaxonTable, "load", classmethod(lambda cls, f: opened.append(f.name) or load(cls, f)))
    choose(["ursus ARCTOS", "Martes martes"])
    assert opened == ["mammals-trees"]
    opened.clear()
    choose(["swallow"])  # may mean something else elsewhere
    assert sorted(opened) == ["birds", "mammals-trees", "trees"]


def test_what_a_table_lists_is_found_fast(models, tmp_path):
    assert listed(models / "birds", ["Hirundo rustica", "Ursus arctos", "rustica"]) == {"Hirundo rustica"}
    header = (models / "birds" / "taxa.csv").read_text().splitlines()[0]
    rows = (
        f"Genus species-{a}{b},Animalia,Chordata,Aves,O,F,Genus,name,,bird,1,0.0"
        for a in range(100)
        for b in range(100)
    )
    (tmp_path / "taxa.csv").write_text("\n".join([header, *rows, ""]))
    started = time.perf_counter()
    assert len(listed(tmp_path, [f"Genus species-{k}{k}" for k in range(100)])) == 100
    assert time.perf_counter() - started < 0.2


def test_a_model_that_was_named_is_kept_to():
    (mulberries,) = sdm.plan("Morus nigra", model="trees", as_group=True, **SMALL).resolutions
    assert mulberries.taxon.class_ == "Magnoliopsida"
    with pytest.raises(SpeciesNameError, match="'barn owl'"):
        sdm.plan("barn owl", model="mammals-trees", **SMALL)
    for query in ("Hirundo rustica", "Morus bassanus"):  # of the second it has the genus, but of mulberries
        with pytest.raises(SpeciesNameError, match=f"'{query}' is known to model birds .*--model birds"):
            sdm.plan(query, model="mammals-trees", **SMALL)


@pytest.mark.parametrize(
    ("query", "model", "group"),
    [("Hirundo neoxena", "birds", "genus Hirundo"), ("Castanea sativa", "trees", "family Fagaceae")],
)
def test_an_unknown_species_is_refused_with_its_group(query, model, group):
    for options in ({}, {"model": model}):
        with pytest.raises(SpeciesNameError, match=f"'{query}' names no species of model {model}") as caught:
            sdm.plan(query, **SMALL, **options)
        assert all(words in str(caught.value) for words in (group, "may be wrong", "--as-group", "--records FILE"))
        job = sdm.plan(query, as_group=True, **SMALL, **options)
        assert not job.resolutions[0].known and "is not in the model" in job.notes[0][0] and job.request["as_group"]
    word = group.split()[1]
    assert sdm.plan(word, **SMALL).resolutions[0].known  # a group that is named needs no option
    with pytest.raises(SpeciesNameError, match="--as-group"):  # and not that the models differ
        sdm.plan(["Ursus arctos", query], **SMALL)


def test_the_command_refuses_an_unknown_species(run):
    arguments = ["Hirundo neoxena", "--bbox", -4, 52, -3, 53, "--resolution", 0.5, "--dry-run"]
    code, _, err = run(*arguments)
    assert code == 3 and "the map of its genus Hirundo instead may be wrong" in err
    code, _, err = run(*arguments, "--as-group")
    assert code == 0, err
    code, _, err = run("Canis familiaris", *arguments[1:], "--as-group")
    assert code == 3 and "domestic form (dog)" in err


def test_a_list_leaves_unknown_species_out_and_they_choose_no_model():
    chestnuts = [f"Castanea {epithet}" for epithet in ("sativa", "dentata", "mollissima", "crenata")]
    names = ["Hirundo rustica", *chestnuts, "Hirundo neoxena", "dog"]
    batch = plan_batch(names, SMALL["bbox"], resolution=0.5)
    assert batch.job.plan.model.name == "birds" and len(batch.job.resolutions) == 1
    errors = {row.asked.query: row.error for row in batch.failed}
    assert list(errors) == names[1:]
    assert "names no species of model trees" in errors["Castanea sativa"]
    assert "family Fagaceae" in errors["Castanea sativa"]
    assert "names no species of model birds" in errors["Hirundo neoxena"] and "domestic form" in errors["dog"]
    grouped = plan_batch(names, SMALL["bbox"], resolution=0.5, as_group=True)
    assert grouped.job.plan.model.name == "trees" and [r.taxon.name for r in grouped.job.resolutions] == ["Fagaceae"]
    with pytest.raises(SpeciesNameError, match="row 2: 'Castanea sativa' names no species of model trees"):
        plan_batch(names, SMALL["bbox"], resolution=0.5, strict=True)


def test_a_mixed_list_has_one_model_and_names_the_other():
    names = ["Ursus arctos", "Hirundo rustica", "kestrel", "Morus alba", "robin", "Crotalus atrox", "northern gannet"]
    batch = plan_batch(names, SMALL["bbox"], resolution=0.5)
    assert batch.job.plan.model.name == "birds"
    assert [row.resolution.taxon.name if row.resolution else None for row in batch.rows] == [
        None,
        "Hirundo rustica",
        "Falco tinnunculus",
        None,
        None,
        None,
        "Morus bassanus",
    ]
    errors = {row.asked.query: row.error for row in batch.failed}
    assert "'Ursus arctos' is known to model mammals-trees (Ursus arctos (brown bear))" in errors["Ursus arctos"]
    assert "this run uses birds" in errors["Ursus arctos"] and "--model mammals-trees" in errors["Ursus arctos"]
    assert "mammals-trees or trees" in errors["Morus alba"]  # and not the map of the gannets' genus
    assert "is ambiguous" in errors["robin"] and "Unknown species" in errors["Crotalus atrox"]
    named = plan_batch(["Ursus arctos", "Hirundo rustica"], SMALL["bbox"], resolution=0.5, model="mammals-trees")
    assert "is known to model birds" in named.failed[0].error


def test_a_list_of_one_model_is_mapped_by_it():
    assert plan_batch(["Fagus sylvatica", "Morus alba"], SMALL["bbox"], resolution=0.5).job.plan.model.name == "trees"
    with pytest.raises(SpeciesNameError, match="no name of the list can be mapped"):
        plan_batch(["Crotalus atrox"], SMALL["bbox"], resolution=0.5)


def test_models_are_listed_with_their_licence_and_season(run):
    code, out, _ = run("--list-models")
    assert code == 0 and [line.split()[0] for line in out.splitlines() if "  version " in line] == [
        "mammals-trees",
        "birds",
        "trees",
    ]
    assert "birds  version 1  CC BY-NC-SA 4.0 (non-commercial)" in out and out.count("--month") == 1
    code, out, _ = run("--search", "rob")
    assert code == 0 and "Erithacus rubecula (European robin)  [birds]" in out


def test_a_map_by_common_name_says_model_and_licence(run, tmp_path):
    code, _, err = run(
        "barn swallow", "--bbox", -4, 52, -3, 53, "--resolution", 0.5, "--month", "May", "--format", "cog"
    )
    assert code == 0, err
    assert "Model birds: licence CC BY-NC-SA 4.0 (non-commercial)" in err.splitlines()
    assert (tmp_path / "maps" / "hirundo-rustica-month-05.tif").is_file()
    code, _, err = run("grizzly", "--bbox", -4, 52, -3, 53, "--month", 5)
    assert code == 2 and "'mammals-trees' is not seasonal" in err


def test_an_index_takes_the_usual_model():
    assert sdm.plan_index(SMALL["bbox"], resolution=0.5).places.model.name == "mammals-trees"
    assert next(iter(sdm.list_models())).name == "mammals-trees"
