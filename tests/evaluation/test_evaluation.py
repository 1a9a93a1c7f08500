"""Classification, retrieval and the published datasets, against brute force and in tiny copies of their layouts."""

import csv
import importlib.util
import json
from functools import partial
from itertools import combinations
from math import sqrt
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sdm.models.bundled
import sdm.models.registry
from sdm import cli
from sdm.errors import LayerError, ModelError, RequestError
from sdm.evaluation import datasets, paper_tables, ranking
from sdm.evaluation.classification import accuracies, accuracy, classify
from sdm.evaluation.csv_rows import read_places
from sdm.evaluation.encode import encode_items, read_crop
from sdm.evaluation.ranking import nearest, rank
from sdm.evaluation.retrieval import retrievals, retrieve
from sdm.evaluation.species import Taxonomy, read_candidates
from sdm.files.embeddings import read_embeddings, unit_vectors
from sdm.outputs.embeddings import write_embeddings
from sdm.request.choices import MODALITIES

BEAR = "Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos"
LIZARD = "Animalia Chordata Reptilia Squamata Lacertidae Lacerta agilis"


def unit(n, dim=12, seed=0):
    return unit_vectors(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks far smaller than the data, so that their seams are crossed."""
    monkeypatch.setattr(ranking, "BLOCK", 7)


# Ranks ---------------------------------------------------------------------------------------------


def test_rank_is_that_of_a_sorted_list(small_blocks):
    queries, gallery = unit(40, seed=1), unit(33, seed=2)
    answers = np.random.default_rng(3).integers(0, 33, 40)
    found = rank(queries, gallery, answers)
    order = np.argsort(-(queries.astype(np.float64) @ gallery.T.astype(np.float64)), axis=1)
    expected = np.array([int(np.flatnonzero(order[i] == answers[i])[0]) + 1 for i in range(40)])
    np.testing.assert_array_equal(found.positions(), expected)
    for k in (1, 3, 10, 33, 50):
        assert found.recall(k) == pytest.approx(np.mean(expected <= k))
    assert found.median() == np.median(expected)


def test_nearest_is_that_of_a_sorted_list(small_blocks):
    queries, gallery = unit(20, seed=1), unit(33, seed=2)
    rows, cosines = nearest(queries, gallery, 10)
    full = queries @ gallery.T
    np.testing.assert_array_equal(rows, np.argsort(-full, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(cosines, np.take_along_axis(full, rows, 1), atol=1e-6)
    assert nearest(queries, gallery, 99)[0].shape == (20, 33)


def test_equal_neighbours_are_all_there(small_blocks):
    gallery = np.repeat(unit(3, seed=5), 10, axis=0)
    rows, _ = nearest(gallery[::10], gallery, 10)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.arange(30).reshape(3, 10))


@given(st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_permuted_embeddings_are_found_again(n, seed):
    gallery = unit(n, 16, seed)
    order = np.random.default_rng(seed).permutation(n)
    found = rank(gallery[order], gallery, order)
    assert found.recall(1) == 1 and found.median() == 1


def test_random_embeddings_find_k_in_n():
    n, k = 3000, 30
    found = rank(unit(n, 64, 1), unit(n, 64, 2), np.arange(n))
    p = k / n
    assert abs(found.recall(k) - p) < 5 * sqrt(p * (1 - p) / n)
    assert abs(found.median() - n / 2) < 5 * n * sqrt(1 / 12 / n) * 2


def test_a_collapsed_space_scores_chance_not_one():
    same = np.tile(unit(1), (50, 1))
    found = rank(same, same, np.arange(50))
    assert found.recall(1) == pytest.approx(1 / 50) and found.recall(10) == pytest.approx(0.2)
    assert found.median() == 25.5


def test_duplicates_in_the_gallery_share_the_hit():
    gallery = np.concatenate([unit(4), unit(4)])
    found = rank(unit(4), gallery, np.arange(4))
    assert found.recall(1) == 0.5 and found.recall(2) == 1


def test_memory_stays_within_the_blocks(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK", 16)
    largest = []
    real = torch.Tensor.__matmul__

    def watched(a, b):
        result = real(a, b)
        largest.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    rank(unit(100), unit(90, seed=1), np.zeros(100, int))
    nearest(unit(100), unit(90, seed=1), 5)
    assert max(largest) == 16 * 16


def test_shapes_that_do_not_fit():
    with pytest.raises(RequestError, match="12 numbers each, the gallery 16"):
        rank(unit(3), unit(3, 16), np.arange(3))
    with pytest.raises(RequestError, match="a row of the gallery"):
        rank(unit(3), unit(3), np.array([0, 1, 3]))
    with pytest.raises(RequestError, match="at least 1"):
        nearest(unit(3), unit(3), 0)


# Classification and retrieval ----------------------------------------------------------------------


def brute_sum(parts):
    total = np.sum([p.astype(np.float64) for p in parts], axis=0)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def test_accuracy_of_every_sum_is_that_of_brute_force(small_blocks):
    rng = np.random.default_rng(0)
    texts, labels = unit(9, seed=1), rng.integers(0, 7, 60)  # two classes without samples
    embeddings = {
        m: unit_vectors(texts[labels] + rng.normal(size=(60, 12)) * s)
        for m, s in (("image", 0.3), ("location", 0.6), ("audio", 1.0))
    }
    found = {a.modalities: a for a in accuracies(embeddings, texts, labels, ks=(1, 3))}
    subsets = [s for n in (1, 2, 3) for s in combinations(embeddings, n)]
    assert list(found) == subsets
    for subset in subsets:
        scores = brute_sum([embeddings[m] for m in subset]) @ texts.T
        right = scores.argmax(1) == labels
        in_three = [labels[i] in np.argsort(-scores[i])[:3] for i in range(60)]
        per_class = [right[labels == c].mean() for c in range(9) if (labels == c).any()]
        assert found[subset].top == pytest.approx({1: right.mean(), 3: np.mean(in_three)})
        assert found[subset].mean_class == pytest.approx(np.mean(per_class))
        assert (found[subset].samples, found[subset].classes) == (60, 9)


def test_mean_class_accuracy_weighs_classes_not_samples():
    texts = np.eye(2, 4, dtype=np.float32)
    images = np.concatenate([np.tile(texts[:1], (9, 1)), texts[:1]])  # nine right, one taken for the other
    found = accuracy({"image": images}, texts, np.array([0] * 9 + [1]), ks=(1,))
    assert found.top[1] == pytest.approx(0.9) and found.mean_class == pytest.approx(0.5)


def test_classify_adds_what_it_is_given():
    texts = np.eye(4, dtype=np.float32)
    image = unit_vectors(np.array([[1.0, 0.9, 0, 0]]))
    place = unit_vectors(np.array([[0.0, 1.0, 0.5, 0]]))
    assert classify({"image": image}, texts, 1)[0][0, 0] == 0
    rows, cosines = classify({"image": image, "location": place}, texts, 4)
    assert rows[0, 0] == 1
    np.testing.assert_allclose(cosines[0, 0], brute_sum([image, place])[0, 1], atol=1e-6)


def test_every_sum_against_every_other_modality(small_blocks):
    base = unit(30, 16)
    rng = np.random.default_rng(1)
    embeddings = {
        m: unit_vectors(base + rng.normal(size=base.shape) * s)
        for m, s in (("image", 0.1), ("satellite", 0.2), ("location", 0.3), ("audio", 0.2))
    }
    texts = unit(5, 16, 7)
    labels = rng.integers(0, 5, 30)
    found = list(retrievals(embeddings, {"text": (texts, labels)}, ks=(1, 5)))
    assert len(found) == 4 * 7 + 15 == len({(r.query, r.target) for r in found})
    assert all(r.target not in r.query for r in found)
    for r in found:
        gallery, answers = (texts, labels) if r.target == "text" else (embeddings[r.target], np.arange(30))
        scores = brute_sum([embeddings[m] for m in r.query]) @ gallery.T
        position = (scores > scores[np.arange(30), answers][:, None]).sum(1) + 1
        assert r.recall == pytest.approx({k: np.mean(position <= k) for k in (1, 5)})
        assert r.median_rank == np.median(position) and r.gallery == len(gallery)


def test_retrieve_defaults_to_the_same_row():
    x = unit(20)
    assert retrieve({"image": x}, "satellite", x).recall[1] == 1
    assert retrieve({"image": x}, "satellite", x[::-1]).recall[1] == 0


# A small model -------------------------------------------------------------------------------------


class Fake:
    """A model whose encoders are fixed random projections of what they are given."""

    name, digest, dim, seasonal = "fake", "feed" * 4, 16, False

    def __init__(self, *modalities):
        self.modalities = modalities or ("image", "satellite", "location", "environment", "audio", "text")

    def load(self, device):
        return self

    def encode(self, modality, values):
        assert modality in self.modalities
        if modality == "text":
            rows = [np.random.default_rng(list(t.encode())).normal(size=16) for t in values]
        elif modality == "audio":
            assert all(v.dtype == np.float32 and v.ndim == 1 for v in values)
            rows = [np.sin(v[:2000] @ np.random.default_rng(2).normal(size=(2000, 16)) * 3) for v in values]
        else:
            shapes = {"image": (224, 224, 3), "satellite": (256, 256, 3), "location": (2,), "environment": (20,)}
            types = {"location": np.float64, "environment": np.float32}
            assert values.shape[1:] == shapes[modality] and values.dtype == types.get(modality, np.uint8)
            flat = values.reshape(len(values), -1).astype(np.float64)
            flat = flat[:, :: max(1, flat.shape[1] // 40)]
            rows = np.sin(flat @ np.random.default_rng(1).normal(size=(flat.shape[1], 16)) * 0.05)
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


def picture(path, seed, size=(300, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
    return path


def sound(path, seed, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(size=int(48000 * seconds)) * 0.1, 48000)
    return path


def test_batches_change_nothing_and_keep_the_order(tmp_path):
    model = Fake()
    photos = [picture(tmp_path / f"{i}.png", i) for i in range(5)]
    crops = [picture(tmp_path / f"s{i}.jpg", i, (256, 256)) for i in range(5)]
    sounds = [sound(tmp_path / f"{i}.wav", i, 0.05 + i / 100) for i in range(5)]
    places = np.random.default_rng(0).uniform(-90, 90, (5, 2))
    items = {"image": photos, "satellite": crops, "audio": sounds, "text": list("abcde"), "location": places}
    for modality, values in items.items():
        told = []
        found = encode_items(model, modality, values, 2, lambda done, total, told=told: told.append((done, total)))
        single = np.concatenate([encode_items(model, modality, values[i : i + 1]) for i in range(5)])
        np.testing.assert_allclose(found, single, atol=1e-6, err_msg=modality)
        assert told == [(2, 5), (4, 5), (5, 5)]
        assert len(np.unique(found.round(4), axis=0)) == 5


def test_a_crop_of_another_size_is_squashed(tmp_path):
    path = tmp_path / "c.png"
    Image.fromarray(np.full((512, 300, 3), 77, np.uint8)).save(path)
    crop = read_crop(path)
    assert crop.shape == (256, 256, 3) and (crop == 77).all()


def test_an_encoder_that_returns_rubbish(tmp_path):
    class Broken(Fake):
        def encode(self, modality, values):
            return super().encode(modality, values) * float("nan")

    with pytest.raises(ModelError, match="text encoder returned no finite vector"):
        encode_items(Broken(), "text", ["a"])


# Species -------------------------------------------------------------------------------------------


def test_names_become_seven_ranks(tmp_path):
    bundled = [m.taxa for m in sdm.models.registry.list_models()]
    (tmp_path / "birds.csv").write_text(
        "kingdom,phylum,class,order,family,genus,species\n"
        "Animalia,Chordata,Reptilia,Squamata,Lacertidae,Lacerta,Lacerta agilis\n"
        "Animalia,Chordata,Reptilia,Squamata,Lacertidae,Lacerta,viridis\n"
        "Animalia,Chordata,Reptilia,,Lacertidae,Lacerta,nusquama\n"
    )
    taxonomy = Taxonomy.read(tmp_path / "birds.csv", bundled)
    (tmp_path / "list.txt").write_text(
        "# mine\nUrsus arctos\n\ngrizzly\nlacerta  agilis\nLacerta viridis\nLacerta nusquama\nUrsus arctos\n"
    )
    found = {c.name: c for c in read_candidates(tmp_path / "list.txt", taxonomy)}
    assert found["Ursus arctos"].text == found["grizzly"].text == BEAR
    assert found["lacerta agilis"].text == LIZARD
    assert found["Lacerta viridis"].text == LIZARD.replace("agilis", "viridis")
    assert (found["Lacerta nusquama"].text, found["Lacerta nusquama"].complete) == ("Lacerta nusquama", False)
    assert len(found) == 5


def test_a_list_with_ranks_is_its_own_taxonomy(tmp_path):
    (tmp_path / "l.csv").write_text(
        "genus;species;kingdom;phylum;class;order;family\nLacerta;agilis;Animalia;Chordata;Reptilia;Squamata;Lacertidae\n"
    )
    (found,) = read_candidates(tmp_path / "l.csv", Taxonomy())
    assert (found.name, found.text, found.complete) == ("Lacerta agilis", LIZARD, True)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.txt", "", "names no species"),
        ("l.csv", "a,b\n1,2\n", "none of the columns"),
        ("l.csv", "species\n   \n", "line 2: the name is empty"),
        ("l.csv", "species,x\nUrsus arctos\n", "1 fields where the header has 2"),
        ("l.csv", 'species\n"Ursus\n', "not valid CSV"),
    ],
)
def test_lists_that_are_none(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=reason):
        read_candidates(tmp_path / name, Taxonomy())


def test_places_by_any_usual_header(tmp_path):
    path = tmp_path / "p.csv"
    for header, row in [
        ("lat,lon", "58.5,-134"),
        ("id\tdecimalLatitude\tdecimalLongitude", "a\t58.5\t-134"),
        ("Longitude;Latitude", "-134;58.5"),
        ("y,x,note", '58.5,-134,"a, b"'),
    ]:
        path.write_text(f"{header}\n{row}\n")
        names, lonlat, without = read_places(path)
        assert without == 0
        np.testing.assert_array_equal(lonlat, [[-134, 58.5]])
        assert names == ["a" if header.startswith("id") else "0"]
    for text, reason in [
        ("lon,lat\n-134,91\n", "line 2: '91'"),
        ("lon,lat\nnan,1\n", "none with coordinates"),
        ("lon\n1\n", "latitudes"),
        ("lon,lat\n", "holds none"),
        ("lon,lat\n1e999,2\n", "'1e999'"),
    ]:
        path.write_text(text)
        with pytest.raises(RequestError, match=reason):
            read_places(path)


# The published layouts -----------------------------------------------------------------------------

# The header of TaxaBench-8k's and iSoundNat's tables, as published.
HEADER = (
    ",image_url,sound_url,Unnamed: 0.3,Unnamed: 0.2,Unnamed: 0.1,Unnamed: 0,id,observed_on_string,observed_on,"
    "time_observed_at,time_zone,user_id,user_login,user_name,created_at,updated_at,quality_grade,license,url,tag_list,"
    "description,num_identification_agreements,num_identification_disagreements,captive_cultivated,oauth_application_id,"
    "place_guess,latitude,longitude,positional_accuracy,private_place_guess,private_latitude,private_longitude,"
    "public_positional_accuracy,geoprivacy,taxon_geoprivacy,coordinates_obscured,positioning_method,positioning_device,"
    "species_guess,scientific_name,common_name,iconic_taxon_name,taxon_id,sound_format"
)
SPECIES = ("Aeshna cyanea", "Ursus arctos", "Aeshna cyanea", "Bombus terrestris", "Vulpes vulpes", "Ursus arctos")


def observations(path, count=6, **change):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER.split(","))
        writer.writeheader()
        for i in range(count):
            row = dict.fromkeys(HEADER.split(","), "")
            row |= {
                "": i,
                "id": str(86062172 + i),
                "latitude": 41.37 - 3 * i,
                "longitude": -81.25 + 10 * i,
                "scientific_name": SPECIES[i],
                "description": 'two\nlines, "quoted"',
                "sound_format": "m4a" if i == 0 else "wav",
            }
            writer.writerow(row | (change if i == 1 else {}))
    return [str(86062172 + i) for i in range(count)]


def environment_cell(lat, lon):
    """(row, column) as the authors' code looks it up."""
    return int((-lat + 90.0) * 2160 / 180.0), int((lon + 180.0) * 4320 / 360.0)


@pytest.fixture
def bench(tmp_path):
    """TaxaBench-8k with six observations, one of which has an m4a and its conversion."""
    root = tmp_path / "TaxaBench-8k"
    root.mkdir()
    for i, key in enumerate(observations(root / "test_df.csv")):
        picture(root / "taxabench_images" / f"{key}.jpg", i)
        lat, lon = 41.37 - 3 * i, -81.25 + 10 * i
        picture(root / "sat_images" / "sentinel" / f"{key}_{lat}_{lon}.jpeg", 100 + i, (256, 256))
        sound(root / "taxabench_sound" / f"{key}.{'flac' if i == 0 else 'wav'}", i)
    (root / "taxabench_sound" / "86062172.m4a").write_bytes(b"not decodable here")
    # Of the published size, since nothing else is taken; a file with holes takes no room.
    grid = np.lib.format.open_memmap(root / "bioclim_elevation_scaled.npy", "w+", np.float16, (2160, 4320, 20))
    for i in range(6):
        grid[environment_cell(41.37 - 3 * i, -81.25 + 10 * i)] = np.random.default_rng(i).normal(size=20)
    grid[environment_cell(41.37, -81.25)][3] = np.nan
    np.save(root / "taxa_names.npy", np.array(sorted(set(SPECIES)), object), allow_pickle=True)
    return root


def test_taxabench_as_published(bench):
    data = datasets.taxabench(bench, taxonomy=Taxonomy(tables=[m.taxa for m in sdm.models.registry.list_models()]))
    assert len(data) == 6 and data.modalities == datasets.MODALITIES
    np.testing.assert_allclose(data.lonlat[2], [-61.25, 35.37])
    assert [c.name for c in data.classes] == sorted(set(SPECIES))
    assert [data.classes[k].name for k in data.labels] == list(SPECIES)
    assert data.classes[2].text == BEAR and "2 of 4 classes" in data.notes[0]  # a dragonfly and a bee are not bundled
    assert data.files["audio"][0].name == "86062172.flac" and data.files["audio"][3].name == "86062175.wav"
    assert data.files["satellite"][1].name.startswith("86062173_38.37_")
    values = data.values("environment")
    assert values.shape == (6, 20) and values.dtype == np.float32
    for i in range(6):
        expected = np.random.default_rng(i).normal(size=20).astype(np.float16).astype(np.float32)
        if i == 0:
            expected[3] = 0  # NaN
        np.testing.assert_array_equal(values[i], expected)


def test_missing_files_are_named_or_left_out(bench):
    (bench / "taxabench_images" / "86062174.jpg").unlink()
    with pytest.raises(RequestError, match=r"1 of 6 observations have no image file .* 86062174; .*--skip-missing"):
        datasets.taxabench(bench)
    data = datasets.taxabench(bench, skip_missing=True)
    assert len(data) == 5 and "86062174" not in data.ids and any("1 of 6" in n for n in data.notes)
    assert [p.stem.split("_")[0] for p in data.files["satellite"]] == list(data.ids)
    assert len(data.classes) == 4  # leaving out observations makes no candidate go away
    assert len(datasets.taxabench(bench, ("location", "audio"))) == 6  # not needed, not missed
    (bench / "taxabench_sound" / "86062172.flac").unlink()
    with pytest.raises(RequestError, match=r"1 recordings .* cannot be decoded here, the first 86062172.m4a; .*ffmpeg"):
        datasets.taxabench(bench, ("audio",))
    for name in ("bioclim_elevation_scaled.npy", "test_df.csv"):
        (bench / name).unlink()
        with pytest.raises(RequestError, match=name):
            datasets.taxabench(bench, ("location", "environment"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "../../etc/passwd"}, "test_df.csv, line .* not a whole number"),
        ({"id": "/etc/passwd"}, "not a whole number"),
        ({"id": "\x1b[31m"}, "not a whole number"),
        ({"sound_format": "../x"}, "not an ending"),
        ({"latitude": "95"}, "'95'"),
        ({"longitude": ""}, "''"),
        ({"latitude": "nan"}, "'nan'"),
        ({"scientific_name": " "}, "scientific name is empty"),
        ({"id": "86062172"}, "86062172 twice"),
    ],
)
def test_hostile_rows(bench, change, reason):
    observations(bench / "test_df.csv", **change)
    with pytest.raises(RequestError, match=reason) as error:
        datasets.taxabench(bench)
    assert str(error.value).isprintable()


def test_a_hostile_environment_array(bench):
    path = bench / "bioclim_elevation_scaled.npy"
    data = datasets.taxabench(bench)
    np.save(path, np.array([print], object), allow_pickle=True)
    with pytest.raises(LayerError, match="cannot be read"):
        data.values("environment")


def test_isoundnat_as_published(tmp_path):
    for split, folder in (("train", "sounds_mp3"), ("val", "sounds")):
        root = tmp_path / split
        root.mkdir()
        for i, key in enumerate(observations(root / f"{split}_df.csv")):
            picture(root / "images" / f"{key}.jpg", i)
            sound(root / folder / f"{key}.mp3", i)
        data = datasets.isoundnat(root, split)
        assert len(data) == 6 and data.modalities == ("image", "location", "audio")
        assert data.files["audio"][5].parent.name == folder
    with pytest.raises(RequestError, match="no modality 'satellite'"):
        datasets.isoundnat(tmp_path / "val", "val", ("satellite",))
    with pytest.raises(RequestError, match="split 'dev'"):
        datasets.isoundnat(tmp_path / "val", "dev")


FOLDERS = (
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
    "04859_Animalia_Chordata_Mammalia_Carnivora_Ursidae_Ursus_arctos",
)


@pytest.fixture
def satnat(tmp_path):
    """iSatNat's test table with the validation photos of iNaturalist 2021."""
    root = tmp_path / "iSatNat"
    root.mkdir()
    images, rows = [], ["index,sat_url,lat,lon,key,inat_id"]
    for i in range(5):
        number, lat, lon = 2686843 + i, -21.93073 + i, 114.12239 - i
        key = f"{number}_{lat}_{lon}"
        name = f"val/{FOLDERS[i % 2]}/0ff6c{i}.jpg"
        picture(root / name, i)
        picture(root / "images" / "sentinel" / f"{key}.jpeg", 50 + i, (256, 256))
        images.append({"id": number, "file_name": name, "latitude": lat, "longitude": lon})
        rows.append(f"{i},https://tiles.maps.eox.at/wms?bbox=1&layers=s2cloudless-2020,{lat},{lon},{key},{number}")
    rows[0] = rows[0].replace("index", "")
    (root / "test_df.csv").write_text("\n".join(r.replace(",bbox", "&bbox") for r in rows) + "\n")
    (root / "val.json").write_text(json.dumps({"images": images[::-1], "annotations": [], "categories": []}))
    return root


def test_isatnat_as_published(satnat):
    data = datasets.isatnat(satnat)
    assert len(data) == 5 and data.modalities == ("image", "satellite", "location")
    assert [c.text for c in data.classes] == [
        "Animalia Annelida Clitellata Haplotaxida Lumbricidae Lumbricus terrestris",
        BEAR,
    ]
    np.testing.assert_array_equal(data.labels, [0, 1, 0, 1, 0])
    np.testing.assert_allclose(data.lonlat[3], [111.12239, -18.93073])
    assert data.files["satellite"][4].name.startswith("2686847_") and data.notes == ()


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/{0}/passwd",
        "val/{0}/../../../x.jpg",
        "val/{0}\\..\\x.jpg",
        "C:/{0}/x.jpg",
        "val/{0}/a\0.jpg",
        "val/too_few_ranks/x.jpg",
        7,
    ],
)
def test_file_names_that_lead_astray(satnat, name):
    table = json.loads((satnat / "val.json").read_text())
    table["images"][2]["file_name"] = name.format(FOLDERS[0]) if isinstance(name, str) else name
    (satnat / "val.json").write_text(json.dumps(table))
    with pytest.raises(RequestError, match=r"leads out of the dataset|does not name a class") as error:
        datasets.isatnat(satnat)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("key", ["../../x", "2686844_1_2/../../x", "2686999_1.0_2.0", "2686844_1.0_"])
def test_keys_that_lead_astray(satnat, key):
    lines = (satnat / "test_df.csv").read_text().splitlines()
    fields = lines[2].split(",")
    lines[2] = ",".join([*fields[:4], key, fields[5]])
    (satnat / "test_df.csv").write_text("\n".join(lines))
    with pytest.raises(RequestError, match=r"test_df.csv, line 3: key .* is not"):
        datasets.isatnat(satnat)


def test_a_table_without_its_challenge(satnat):
    table = json.loads((satnat / "val.json").read_text())
    (satnat / "val.json").write_text(json.dumps({"images": table["images"][1:]}))
    with pytest.raises(RequestError, match=r"2686847 is not in val\.json"):
        datasets.isatnat(satnat)
    for text in ("[]", "{", '{"images": [{"id": 1}]}', "[" * 100_000):
        (satnat / "val.json").write_text(text)
        with pytest.raises(RequestError, match="not a table of the iNaturalist"):
            datasets.isatnat(satnat)


# Tables --------------------------------------------------------------------------------------------


@pytest.fixture
def use_model(monkeypatch):
    """Function: make `open_model` give this model."""

    def use(model):
        monkeypatch.setattr(sdm.models.registry, "open_model", lambda name: model, raising=False)
        return model

    return use


def recipe():
    path = Path(__file__).parents[2] / "recipes" / "taxabind_tables.py"
    spec = importlib.util.spec_from_file_location("taxabind_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_prints_and_writes_the_paper_s_tables(bench, tmp_path, use_model, capsys):
    model = use_model(Fake())
    arguments = ["--dataset", "taxabench", "--folder", str(bench), "--model", "fake", "--out", str(tmp_path / "out")]
    recipe().main(arguments)
    printed = capsys.readouterr().out
    data = datasets.taxabench(bench, taxonomy=Taxonomy(tables=[m.taxa for m in sdm.models.registry.list_models()]))
    parts = {m: encode_items(model, m, data.values(m)) for m in datasets.MODALITIES}
    texts = encode_items(model, "text", [c.text for c in data.classes])

    zero_shot = list(csv.DictReader((tmp_path / "out" / "zero-shot.csv").open()))
    assert len(zero_shot) == 31
    for row in zero_shot:
        scores = brute_sum([parts[m] for m in row["modalities"].split(" + ")]) @ texts.T
        assert float(row["top-1 %"]) == round(100 * np.mean(scores.argmax(1) == data.labels), 2)
    published = {r["modalities"]: r["published top-1 %"] for r in zero_shot}
    assert published["image"] == "34.45" and published["image + satellite"] == "37.54"
    assert published["satellite"] == published["image + satellite + audio"] == ""  # never invented

    found = list(csv.DictReader((tmp_path / "out" / "retrieval.csv").open()))
    assert len(found) == 5 * 15 + 31
    for row in found:
        if row["target"] != "text":
            scores = brute_sum([parts[m] for m in row["query"].split(" + ")]) @ parts[row["target"]].T
            rank_ = (scores > np.diag(scores)[:, None] + 1e-6).sum(1) + 1
            assert float(row["R@1 %"]) == round(100 * np.mean(rank_ == 1), 2)
            assert float(row["median rank"]) == np.median(rank_)
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| image + location |" in printed and printed.split("## ")[1].strip() in text
    assert "Model fake, hash feedfeedfeedfeed" in text and "2 of 4 classes" in text


def test_a_second_run_encodes_nothing(bench, tmp_path, use_model):
    use_model(Fake())
    arguments = ["--dataset", "taxabench", "--folder", str(bench), "--out", str(tmp_path / "out"), "--overwrite"]
    recipe().main(arguments)
    first = (tmp_path / "out" / "tables.md").read_text()

    class Idle(Fake):
        def encode(self, modality, values):
            raise AssertionError("encoded again")

    use_model(Idle())
    recipe().main(arguments)
    assert (tmp_path / "out" / "tables.md").read_text() == first
    other = use_model(Fake())
    other.digest = "beef" * 4
    with pytest.raises(RequestError, match="made by another model"):
        recipe().main(arguments)


def test_isatnat_recipe(satnat, use_model, capsys):
    use_model(Fake())
    recipe().main(["--dataset", "isatnat", "--folder", str(satnat), "--table", "zero-shot"])
    out = capsys.readouterr().out
    assert "Zero-shot classification, iSatNat" in out and "| 73.2 |" in out and "retrieval" not in out


def test_tables_without_a_text_encoder(bench):
    model = Fake("location", "satellite")
    with pytest.raises(ModelError, match="'fake' has no text encoder; use --model taxabind"):
        paper_tables.encode_dataset(datasets.taxabench(bench), model, model)


# Commands ------------------------------------------------------------------------------------------


@pytest.fixture
def run(run):
    """Function: run `sdm ...` in an empty folder; returns (exit code, stdout, stderr)."""
    return partial(run, entry=cli.main_sdm)


def test_embed_everything(run, tmp_path, use_model):
    model = use_model(Fake())
    photos = [picture(tmp_path / f"{n}.jpg", i) for i, n in enumerate("ab")]
    call = sound(tmp_path / "call.wav", 3)
    (tmp_path / "p.csv").write_text("name,decimalLatitude,decimalLongitude\nhere,58.5,-134\nthere,-3,60\n")
    code, _, err = run(
        "embed",
        "--photo",
        "a.jpg",
        "b.jpg",
        "call.wav",
        "--text",
        BEAR,
        "--places",
        "p.csv",
        "--model",
        "fake",
        "--out",
        "e.parquet",
    )
    assert code == 0, err
    assert "6 embeddings of 16 numbers by model fake: e.parquet" in err
    read = read_embeddings("e.parquet", 16)
    assert read.labels == ("a.jpg", "b.jpg", "call.wav", BEAR, "here", "there")
    assert list(read.columns["modality"]) == ["image", "image", "audio", "text", "location", "location"]
    assert list(read.columns["path"]) == ["a.jpg", "b.jpg", "call.wav", None, None, None]
    assert list(read.columns["lon"]) == [None] * 4 + [-134, 60] and list(read.columns["lat"])[4:] == [58.5, -3]
    assert read.metadata == {"model": "fake", "digest": "feed" * 4, "dim": "16"}
    expected = [
        encode_items(model, "image", photos),
        encode_items(model, "audio", [call]),
        encode_items(model, "text", [BEAR]),
        encode_items(model, "location", np.array([[-134, 58.5], [60.0, -3.0]])),
    ]
    np.testing.assert_allclose(read.vectors, np.concatenate(expected), atol=1e-6)
    assert run("embed", "a.jpg", "--out", "e.parquet")[0] == 6


def test_embed_places_with_the_bundled_model(run, tmp_path, use_model):
    """Every modality of real places, and their sum: what maps compare with a species."""
    bundled = sdm.models.registry.list_models()[0]
    if not hasattr(bundled, "modalities"):
        object.__setattr__(bundled, "modalities", MODALITIES)
    use_model(bundled)
    (tmp_path / "p.csv").write_text("lon,lat\n-134.2,58.4\n12,47\n")
    arguments = ("embed", "--places", "p.csv", "--modalities", "environment,location,satellite")
    assert run(*arguments, "--out", "each.parquet")[0] == 0
    assert run(*arguments, "--sum", "--out", "sum.parquet")[0] == 0
    each, total = read_embeddings("each.parquet"), read_embeddings("sum.parquet")
    assert list(each.columns["modality"]) == [m for m in MODALITIES for _ in range(2)]
    assert list(total.columns["modality"]) == ["location+satellite+environment"] * 2
    np.testing.assert_allclose(total.vectors, brute_sum([each.vectors[i : i + 2] for i in (0, 2, 4)]), atol=1e-6)
    from sdm.engine.points import embed_places

    exact = embed_places(bundled, np.array([-134.2, 12.0]), np.array([58.4, 47.0]))
    np.testing.assert_allclose(each.vectors[2:4], exact["satellite"], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "reason", "code"),
    [
        ([], "nothing to embed", 2),
        (["x.gif"], "neither that of a photo", 2),
        (["a.jpg"], "'a.jpg' does not exist", 2),
        (["--text", "a", "--out", "e.csv"], "call the output e.parquet", 2),
        (["--places", "p.csv"], "does not exist", 2),
        (["--places", "p.csv", "--modalities", "weather"], "'weather'", 2),
        (["--text", "a", "--batch", "0"], "batch", 2),
    ],
)
def test_embed_refuses(run, use_model, tmp_path, arguments, reason, code):
    use_model(Fake())
    found, _, err = run("embed", *arguments)
    assert found == code and reason in err
    assert not list(tmp_path.glob("*.parquet"))


def test_a_photo_needs_an_image_encoder(run, tmp_path, use_model):
    bundled = use_model(Fake("location", "satellite", "environment"))
    bundled.name = "mammals-trees"
    picture(tmp_path / "a.jpg", 1)
    (tmp_path / "l.txt").write_text("Ursus arctos\n")
    for command in (["embed", "a.jpg"], ["classify", "a.jpg", "--species", "l.txt"]):
        code, _, err = run(*command, "--model", "mammals-trees")
        assert code == 5
        assert err == "error: model 'mammals-trees' has no image encoder; use --model taxabind.\n"


def test_classify(run, tmp_path, use_model):
    model = use_model(Fake())
    photos = [picture(tmp_path / f"{n}.jpg", i) for i, n in enumerate("ab")]
    sound(tmp_path / "c.wav", 9)
    names = ["Ursus arctos", "Vulpes vulpes", "Bombus terrestris", "Puma concolor", "Aeshna cyanea", "Ursus maritimus"]
    (tmp_path / "l.csv").write_text("species\n" + "\n".join(names) + "\n")
    code, out, err = run(
        "classify",
        "a.jpg",
        "b.jpg",
        "--at",
        -134.9,
        58.6,
        "--audio",
        "c.wav",
        "--species",
        "l.csv",
        "--model",
        "fake",
        "--top",
        3,
        "--json",
    )
    assert code == 0, err
    report = json.loads(out)
    assert (report["model"], report["candidates"], report["without_higher_ranks"]) == ("fake", 6, 2)
    taxonomy = Taxonomy(tables=[m.taxa for m in sdm.models.registry.list_models()])
    texts = encode_items(model, "text", [taxonomy.text(n) or n for n in names])
    place = encode_items(model, "location", np.array([[-134.9, 58.6]]))
    heard = encode_items(model, "audio", [tmp_path / "c.wav"])
    image = encode_items(model, "image", photos)
    for i, result in enumerate(report["results"]):
        scores = (brute_sum([image[i : i + 1], heard, place]) @ texts.T)[0]
        order = np.argsort(-scores)[:3]
        assert [s["name"] for s in result["species"]] == [names[k] for k in order]
        np.testing.assert_allclose([s["cosine"] for s in result["species"]], scores[order], atol=2e-6)
        assert result["photos"] == [f"{'ab'[i]}.jpg"]
    code, out, err = run("classify", "a.jpg", "b.jpg", "--same", "--species", "l.csv", "--top", 2)
    assert code == 0 and out.startswith("a.jpg, b.jpg  (image)\n") and out.count("\n") == 3
    assert "2 of 6 names have no higher ranks" in err


def test_where_a_place_is_the_only_clue_with_the_bundled_model(run, tmp_path, use_model):
    """Names instead of texts: the species at home in Alaska before those of Africa."""
    bundled = sdm.models.registry.list_models()[0]
    if not hasattr(bundled, "modalities"):
        object.__setattr__(bundled, "modalities", MODALITIES)
    use_model(bundled)
    (tmp_path / "l.txt").write_text("Panthera leo\nOreamnos americanus\nLoxodonta africana\nNessiteras rhombopteryx\n")
    code, out, err = run("classify", "--at", -145.0, 60.5, "--species", "l.txt", "--model", "mammals-trees")
    assert code == 0, err
    assert out.splitlines()[1].endswith("Oreamnos americanus") and len(out.splitlines()) == 4
    assert "does not know 1 of the names" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.jpg"], "--species"),
        (["--species", "l.txt"], "nothing to classify"),
        (["a.jpg", "--species", "l.txt", "--at", "58.6", "-134.9"], "did you mean --at -134.9 58.6?"),
        (["a.jpg", "--species", "l.txt", "--at", "-134.9", "158.6"], "longitude first, then latitude, -180 to 180"),
        (["a.jpg", "--species", "l.txt", "--satellite", "x.tif"], "needs --at"),
        (["a.jpg", "--species", "none.txt"], "'none.txt' does not exist"),
        (["--at", "1", "2", "--same", "--species", "l.txt"], "--same needs at least one photo"),
    ],
)
def test_classify_refuses(run, use_model, tmp_path, arguments, reason):
    use_model(Fake())
    (tmp_path / "l.txt").write_text("Ursus arctos\n")
    code, out, err = run("classify", *arguments)
    assert code == 2 and reason in err and not out


def test_classify_with_imagery_around_the_place(run, tmp_path, use_model, write_raster):
    model = use_model(Fake())
    rng = np.random.default_rng(0)
    path = write_raster(rng.integers(0, 256, (3, 600, 600), np.uint8), "s2.tif", -135.1, 58.7, 0.0004)
    (tmp_path / "l.txt").write_text("Ursus arctos\nVulpes vulpes\n")
    code, out, err = run("classify", "--at", -134.98, 58.6, "--satellite", path, "--species", "l.txt", "--json")
    assert code == 0, err
    (result,) = json.loads(out)["results"]
    assert result["modalities"] == ["location", "satellite"]
    from sdm.layers.imagery import open_imagery

    crop = open_imagery(path).crops(np.array([-134.98]), np.array([58.6]))
    place = encode_items(model, "location", np.array([[-134.98, 58.6]]))
    summed = brute_sum([place, model.encode("satellite", crop).numpy()])
    texts = encode_items(model, "text", [s["text"] for s in result["species"]])
    np.testing.assert_allclose([s["cosine"] for s in result["species"]], (summed @ texts.T)[0], atol=2e-6)
    code, _, err = run("classify", "--at", 0, 0, "--satellite", path, "--species", "l.txt")
    assert code in (2, 4) and "imagery" in err


def test_retrieve(run, tmp_path):
    gallery, queries = unit(40, 16, 1), unit(3, 16, 2)
    columns = {"id": [f"t{i}" for i in range(40)], "modality": ["satellite"] * 40, "lon": list(np.arange(40.0))}
    write_embeddings(tmp_path / "t.parquet", gallery, columns, model="m", digest="d")
    np.save(tmp_path / "q.npy", queries)
    code, out, err = run("retrieve", "--query", "q.npy", "--targets", "t.parquet", "--top", 4)
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    order = np.argsort(-(queries @ gallery.T), axis=1)[:, :4]
    assert [r["target"] for r in rows] == [f"t{i}" for i in order.ravel()]
    assert [r["rank"] for r in rows] == list("1234") * 3 and [r["query"] for r in rows] == list("000011112222")
    assert float(rows[5]["lon"]) == order[1, 1] and rows[0]["modality"] == "satellite"
    code, out, err = run("retrieve", "--query", "q.npy", "--targets", "t.parquet", "--mean", "--out", "n.json")
    assert code == 0 and not out and "10 neighbours of 1 queries among 40" in err
    found = json.loads((tmp_path / "n.json").read_text())
    mean = queries.sum(0) / np.linalg.norm(queries.sum(0))
    assert found[0]["target"] == f"t{(gallery @ mean).argmax()}" and found[0]["query"] == "mean"
    assert run("retrieve", "--query", "q.npy", "--targets", "t.parquet", "--out", "n.json")[0] == 6


def test_retrieve_refuses_another_space(run, tmp_path):
    columns = {"id": ["a"], "modality": ["image"]}
    write_embeddings(tmp_path / "a.parquet", unit(1, 16), columns, model="one", digest="1")
    write_embeddings(tmp_path / "b.parquet", unit(1, 16), columns, model="two", digest="2")
    code, _, err = run("retrieve", "--query", "a.parquet", "--targets", "b.parquet")
    assert code == 2 and "'one' (1)" in err and "'two' (2)" in err
    np.save(tmp_path / "c.npy", unit(2, 8))
    code, _, err = run("retrieve", "--query", "c.npy", "--targets", "b.parquet")
    assert code == 2 and "vectors of 16 numbers, but the queries' model needs 8" in err
    code, _, err = run("retrieve", "--query", "c.npy", "--targets", "b.parquet", "--out", "x.txt")
    assert code == 2 and ".csv or .json" in err


def test_parquet_of_embed_is_plain(run, tmp_path, use_model):
    use_model(Fake())
    assert run("embed", "--text", "alpine meadow with grazing ungulates", "--out", "t.parquet", "-q")[0] == 0
    assert pq.read_table("t.parquet").column_names[-1] == "embedding"


def test_places_without_coordinates_are_left_out_and_counted(tmp_path):
    path = tmp_path / "occurrence.csv"
    path.write_text("gbifID,decimalLatitude,decimalLongitude\n1,46,7\n2,,\n3,NA,8\n4,47,8.5\n")
    names, lonlat, without = read_places(path)
    assert (names, lonlat.tolist(), without) == (["1", "4"], [[7, 46], [8.5, 47]], 2)
    path.write_text("lat,lon\n46,east\n")
    with pytest.raises(RequestError, match="line 2: 'east' is not a number"):
        read_places(path)
