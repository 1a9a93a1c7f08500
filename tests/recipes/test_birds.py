"""The recipes of the model `birds`: the teacher's file, names, and where birds are at home."""

import csv
import importlib
import sys

import numpy as np
import pandas as pd
import pytest

from sdm.errors import SpeciesNameError
from sdm.files.paths import folder
from sdm.names import TaxonTable
from sdm.names.habitat import mask_for
from sdm.names.taxa import RANKS


@pytest.fixture(scope="module")
def recipe():
    """Function: import a script of recipes/."""
    sys.path.insert(0, str(folder("recipes")))
    yield importlib.import_module
    sys.path.pop(0)


@pytest.fixture(scope="module")
def table():
    return TaxonTable.load(folder("models") / "birds")


class FakeTeacher:
    """Scores that are known functions of place, week and label."""

    labels = ("Corvus corax", "Sula sula", "Rana rana", "Turdus merula")

    def score(self, lon, lat, week):
        lon, week = np.broadcast_arrays(np.asarray(lon, float), week)
        bird = np.where(week < 0, 0.5, week / 48)
        sea = np.full(lon.size, 0.3)
        blackbird = np.where(lon > 0, 0.03, 0.001)
        return np.stack([bird, sea, np.full(lon.size, 0.02), blackbird], axis=1).astype(np.float32)


def nothing_known(known, labels, half):
    """What is known of birds of which nothing is known."""
    n = len(labels)
    far = np.full(n, np.inf)
    return known.Ranges(np.full(n, half), np.zeros((n, 3)), far, -far, far), known.Cold(-far)


def test_teacher_file_holds_the_targets_and_only_seabirds_at_sea(recipe, monkeypatch, tmp_path):
    teacher, known = recipe("birds_teacher"), recipe("birds_known")
    monkeypatch.setattr(teacher, "BATCH", 4)  # so that places fall into several batches
    monkeypatch.setattr(FakeTeacher, "month", teacher.Teacher.month, raising=False)
    lonlat = np.array([[-10.0, 0], [10, 0], [20, 5], [30, 5], [-40, 9], [50, 9]])
    open_sea = np.array([False, False, True, False, False, False])
    seabirds = np.array([False, True, False, False])
    np.savez(
        tmp_path / "known.npz", **teacher.Targets(None, *nothing_known(known, FakeTeacher.labels, 0.0299)).arrays()
    )
    targets = teacher.Targets.load(FakeTeacher(), tmp_path / "known.npz")
    z = teacher.ask(targets, lonlat, open_sea, seabirds, np.random.default_rng(0))

    assert list(z["species"]) == ["Corvus corax", "Sula sula", "Turdus merula"]  # the frog reaches one half nowhere
    rows = 1 + teacher.MONTHS
    assert z["month"].shape == (6 * rows,) and (z["month"][::rows] == 0).all()
    by_place = z["month"].reshape(6, rows)[:, 1:]
    assert ((by_place >= 1) & (by_place <= 12)).all() and all(len(set(m)) == teacher.MONTHS for m in by_place)
    assert (z["place"] == np.repeat(np.arange(6), rows)).all() and (z["lonlat"] == lonlat[z["place"]]).all()

    dense = np.zeros((6 * rows, 3), int)
    for row, (a, b) in enumerate(zip(z["indptr"][:-1], z["indptr"][1:], strict=True)):
        dense[row, z["indices"][a:b]] = z["value"][a:b]
    month = z["month"].astype(float)
    # The mean of the weeks 4m-3..4m of week / 48 is (4m - 1.5) / 48.
    raven = np.where(month == 0, 0.5, (4 * month - 1.5) / 48)
    expected = np.stack([raven, np.full(raven.size, 0.3), np.where(z["lonlat"][:, 0] > 0, 0.03, 0.001)], axis=1)
    expected = np.round(255 * expected / (expected + 0.0299)).astype(int)
    expected[expected < teacher.LOWEST] = 0
    expected[np.ix_(open_sea[z["place"]], [True, False, True])] = 0
    assert np.abs(dense - expected).max() <= 1  # float32 may round the other way
    assert (dense[::rows][1:2, 2] == 128).all() and dense[0, 2] == 0


def test_moves_and_shores(recipe):
    teacher = recipe("birds_teacher")
    lon, lat = teacher.move(np.array([179.9, 0.0]), np.array([60.0, 0.0]), 55.6, np.pi / 2)
    assert lon[0] == pytest.approx(-179.1, abs=0.01) and lat == pytest.approx([60, 0], abs=1e-6)
    assert lon[1] == pytest.approx(0.5, abs=0.01)
    mask = teacher.LandMask()
    places = np.array([[-4.15, 50.37], [-25.0, 40.0], [2.0, 47.0]])  # Plymouth, the Atlantic, France
    assert list(teacher.near_shore(mask, *places.T)) == [True, False, False]


def avonet(**columns):
    """Rows of AVONET as `read_avonet` gives them."""
    n = len(next(iter(columns.values())))
    places = ("Min.Latitude", "Max.Latitude", "Centroid.Latitude", "Centroid.Longitude")
    rows = {"Migration": [1.0] * n, "Habitat": ["Forest"] * n} | {column: [np.nan] * n for column in places}
    return pd.DataFrame(rows | columns)


def test_half_is_the_score_that_gives_the_size_of_the_range(recipe):
    known = recipe("birds_known")
    lon, lat = np.linspace(-50, 50, 1000), np.zeros(1000)
    score = np.linspace(1, 0.001, 1000)  # of every bird, falling to the east
    kinds = avonet(
        **{"Range.Size": [9e4, 3e3, 9e4, 9e4, 5e6, np.nan, 9.9e5], "Migration": [1.0, 2, 3, 1, 1, 1, np.nan]},
        Habitat=["Forest"] * 3 + ["Marine"] + ["Forest"] * 3,
    )
    ranges = known.Ranges.fit(kinds, lon, lat, np.repeat(score[:, None], 7, axis=1), km2=100.0)
    target = score[:, None] / (score[:, None] + ranges.half)
    assert (target[:, 0] >= 0.5).sum() == pytest.approx(900, abs=1)  # 90,000 km2
    # Bounds, migrants, seabirds, large ranges (below any score), ranges and migration not known.
    expected = [0.3, known.HALF, known.HALF, 0.03, known.HALF, known.HALF]
    assert ranges.half[1:] == pytest.approx(expected)


def test_small_ranges_end_at_their_latitudes_and_near_their_centroid(recipe):
    known = recipe("birds_known")
    where = dict(
        zip(
            ("Min.Latitude", "Max.Latitude", "Centroid.Latitude", "Centroid.Longitude"),
            ([-2.0] * 4, [8.0] * 4, [3.0] * 4, [100.0] * 4),
            strict=True,
        )
    )
    kinds = avonet(**where, **{"Range.Size": [5e5, 5e6, 5e5, 5e5], "Migration": [1.0, 1, 3, 1]})
    lon, lat = np.array([100.0, 100, 100, 100, -30, 179]), np.array([3.0, 9.5, 12.0, -8.1, 3.0, 3.0])
    scores = np.full((6, 4), 0.2)
    scores[5, 3] = 0.9  # sure of a place half an ocean away
    keep = known.Ranges.fit(kinds, lon, lat, scores, 1.0).keep(lon, lat)
    assert keep[:, 0] == pytest.approx([1, 1, 0.5, 0, 0, 0], abs=0.01)
    assert (keep[:, 1:3] == 1).all()  # large, migrant
    assert keep[:, 3] == pytest.approx([1, 1, 0.5, 0, 1, 1], abs=0.01)


def test_birds_that_leave_the_cold_where_they_are_watched_are_in_no_cold_month(recipe):
    known = recipe("birds_known")
    # Trusted: Minnesota and the Carolinas, whose winters are cold and mild; not: northern Canada, where all stay.
    lon = np.repeat([-95.0, -80.0, -115.0], 5)
    lat = np.repeat([47.0, 34.5, 60.0], 5) + np.tile(np.linspace(-0.4, 0.4, 5), 3)
    change = np.repeat([0.8, 1.0, 0.25], 5)
    temperature = known.monthly_temperature(lon, lat)
    assert temperature[0, 0] < -8 and temperature[0, 5] > 3 and temperature[0, 10] < -15
    assert (temperature.argmax(axis=0) == 6).all() and 17 < temperature[6, 0] < 25  # Minnesota's July

    def month(x, y, m):
        swallow = np.where((y < 55) & (known.monthly_temperature(x, y)[m - 1] < 8), 0.0, 0.6)
        never = np.zeros(x.size)
        return np.stack([swallow, np.full(x.size, 0.6), never], axis=1)

    cold = known.Cold.fit(month, lon, lat, change, batch=4)
    assert 7 < cold.limit[0] <= 12 and (cold.limit[1:] == -np.inf).all()
    keep = cold.keep(lon, lat, np.full(15, 1))
    assert (keep[:5, 0] == 0).all() and (keep[10:, 0] == 0).all() and (keep[:, 1:] == 1).all()
    assert (cold.keep(lon, lat, np.full(15, 7)) == 1).all()


def test_rows_of_avonet_by_any_name_but_not_of_a_bird_split_since(recipe, tmp_path):
    known = recipe("birds_known")
    (tmp_path / "a.csv").write_text("Species1,Range.Size\nParus major,5\nCorvus corone,6\nSaxicola torquatus,7\n")
    names = {
        "Parus major": [],
        "Corvus x": ["Corvus corone"],
        "Rana rana": [],
        "Saxicola torquatus": [],
        "Saxicola rubicola": ["Saxicola torquatus"],
    }
    rows = known.read_avonet(tmp_path / "a.csv", names)
    assert list(rows.index) == list(names)
    assert rows["Range.Size"].tolist()[:2] == [5, 6] and rows["Range.Size"].isna().tolist()[2:] == [True] * 3


def test_every_bird_answers_to_its_names(table):
    assert len(table) > 6000
    wrong = []
    for taxon in table:
        for name in (taxon.name, *taxon.synonyms):
            found = table.resolve(name)
            if not found.known or found.taxon != taxon:
                wrong.append((name, taxon.name, found.taxon.name))
    assert not wrong
    # A species may bear the name of its genus ('Anhinga'), which then means the genus.
    firsts = [t.common[0] for t in table if t.common[0] != t.genus]
    assert all(table.resolve(c).taxon.rank == "species" for c in firsts)
    assert {t.class_ for t in table} == {"Aves"} and {t.group for t in table} == {"bird"}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Parus caeruleus", "Cyanistes caeruleus"),
        ("Larus ridibundus", "Chroicocephalus ridibundus"),
        ("Astur gentilis", "Accipiter gentilis"),
        ("Anarhynchus alexandrinus", "Charadrius alexandrinus"),
        ("Tyto furcata", "Tyto alba"),
        ("ouzel", "Turdus merula"),
        ("grey heron", "Ardea cinerea"),
        ("Cactus Wren", "Campylorhynchus brunneicapillus"),
        ("penguin", "Sphenisciformes"),
        ("owls", "Strigiformes"),
    ],
)
def test_names_of_birds(table, query, name):
    found = table.resolve(query)
    assert found.taxon.name == name and found.known


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("blackbird", ["Turdus merula", "Agelaius phoeniceus"]),
        ("antbird", ["family Formicariidae", "Cercomacra cinerascens"]),
        ("screech owls", ["Megascops asio", "Megascops kennicottii"]),
        ("manakins", ["genus Pipra", "Manacus manacus"]),
    ],
)
def test_a_kind_that_many_birds_belong_to_asks(table, query, meant):
    with pytest.raises(SpeciesNameError, match="part of the names of several species") as error:
        table.resolve(query)
    assert all(name in str([t.label for t in error.value.taxa]) for name in meant)


@pytest.mark.parametrize("query", ["Prunella vulgaris", "Linaria vulgaris", "Gypsophila repens", "Oenanthe crocata"])
def test_a_herb_with_the_genus_of_a_bird_is_not_known(table, query):
    genus = query.split()[0]
    with pytest.raises(SpeciesNameError, match=rf"Magnoliopsida.*'genus {genus}'"):
        table.resolve(query)
    for other in (genus, f"{genus} sp.", f"genus {genus}", f"Aves {query}"):
        assert table.resolve(other).taxon.name == genus
    assert "Magnoliopsida" in table.resolve(genus).notes[0]
    assert "Magnoliopsida" in table.resolve(f"{genus} sp.").notes[-1]


def test_robin_is_two_birds(table):
    with pytest.raises(SpeciesNameError, match=r"Erithacus rubecula .* Turdus migratorius"):
        table.resolve("robin")


def test_no_other_bird_of_the_list_is_a_synonym(table):
    """A name that is a species of its own in the tables never stands for another."""
    own = {t.name for t in table}
    assert not own & {s for t in table for s in t.synonyms}
    genera = {r["genus"]: r for r in csv.DictReader((folder("models") / "birds" / "genera.csv").open(encoding="utf-8"))}
    assert all(tuple(genera[t.genus][r] for r in RANKS[:6]) == t.lineage[:6] for t in table)


@pytest.mark.parametrize(
    ("query", "mask"),
    [
        ("Morus bassanus", "none"),
        ("Larus argentatus", "none"),
        ("Somateria mollissima", "none"),
        ("Phalaropus lobatus", "none"),
        ("Aptenodytes patagonicus", "none"),
        ("Anas platyrhynchos", "land"),
        ("Calidris alpina", "land"),
        ("Turdus merula", "land"),
        ("Phalaropus", "none"),
        ("Calidris", "land"),
        ("Scolopacidae", "none"),
        ("Anatidae", "none"),
        ("Turdidae", "land"),
        ("Charadriiformes", "none"),
        ("Aves", "none"),
        ("Passeriformes", "land"),
    ],
)
def test_seabirds_keep_the_sea(table, query, mask):
    assert mask_for(table.resolve(query).taxon) == mask
