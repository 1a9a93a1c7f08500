"""Cleaning: every row kept, repaired or dropped, with one reason."""

import csv

import numpy as np
import pytest
import shapely

from sdm.errors import OutputError, RecordsError, RequestError
from sdm.records.audit import REASONS, REPAIRS
from sdm.records.reference import capitals, centroids, country_area, country_code, near
from sdm.records.sphere import distance_km
from sdm.records.table import Records
from sdm.request.records import CleanOptions

HEADER = (
    "species,decimalLongitude,decimalLatitude,countryCode,basisOfRecord,establishmentMeans,year,"
    "coordinateUncertaintyInMeters,occurrenceStatus\n"
)
HERE = ("11.25", "47.75", "DE")


@pytest.fixture
def read(tmp_path):
    """Function: clean records of rows (lon, lat, country, basis, establishment, year, uncertainty, status)."""

    def read_(*rows, **options):
        lines = [",".join(["Ursus arctos", *row, *[""] * (8 - len(row))]) for row in rows]
        (tmp_path / "records.csv").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
        return Records.read(tmp_path / "records.csv", clean=CleanOptions(**options))

    return read_


def reasons(records):
    return [REASONS[i] for i in records.audit.reason]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("", ""), "no coordinates"),
        (("NA", "47.75"), "no coordinates"),
        (("11.25", "47°45'E"), "not a number"),
        (("inf", "47.75"), "not a number"),
        (("0", "0"), "zero coordinates"),
        (("0.1", "-0.2"), "zero coordinates"),
        (("47.75", "47.75"), "equal longitude and latitude"),
        (("-47.75", "47.75"), "equal longitude and latitude"),
        (("11.25", "147.75"), "out of range"),
        (("191.25", "47.75"), "out of range"),
        (("80.25", "30.25", "DE"), "not in its country"),
        ((*HERE, "FOSSIL_SPECIMEN"), "fossil"),
        ((*HERE, "FossilSpecimen"), "fossil"),
        ((*HERE, "LIVING_SPECIMEN"), "captive or cultivated"),
        ((*HERE, "", "managed"), "captive or cultivated"),
        ((*HERE, "", "", "1899"), "before the first year"),
        ((*HERE, "", "", "1900", "1001"), "uncertain location"),
        (("13.41", "52.52", "DE"), "capital"),
        (("-21.94", "64.14", "Iceland"), "capital"),
        (("5.25", "54.75"), "at sea"),
        (HERE, ""),
        ((*HERE, "HUMAN_OBSERVATION", "introduced", "1900", "1000"), ""),
        (("11.25", "47.75", "no such country"), ""),
    ],
)
def test_each_reason(read, row, reason):
    records = read(row, first_year=1900, max_uncertainty_m=1000, habitat="land")
    assert reasons(records) == [reason]
    assert len(records) == (not reason)
    assert np.isnan(records.audit.lon[0]) == bool(reason)


@pytest.mark.parametrize(
    ("row", "off"),
    [
        (("0.1", "-0.2"), {"drop_zero": False}),
        (("80.25", "30.25", "DE"), {"check_country": False}),
        ((*HERE, "FOSSIL_SPECIMEN"), {"drop_fossils": False}),
        ((*HERE, "LIVING_SPECIMEN"), {"drop_captive": False}),
        ((*HERE, "", "", "1899"), {"first_year": None}),
        ((*HERE, "", "", "1900", "1001"), {"max_uncertainty_m": None}),
        ((*HERE, "", "", "1900", "1001"), {"max_uncertainty_m": 0}),
        (("13.41", "52.52", "DE"), {"capital_km": None}),
        (("5.25", "54.75"), {"habitat": "none"}),
    ],
)
def test_each_check_can_be_switched_off(read, row, off):
    on = {"first_year": 1900, "max_uncertainty_m": 1000, "habitat": "land"}
    if "drop_zero" in off:  # the point is also at sea
        on["habitat"] = "none"
    assert len(read(row, **on)) == 0
    assert len(read(row, **(on | off))) == 1


def test_the_first_reason_counts(read):
    """A fossil without coordinates, an old fossil, an old record of a capital; the order is that of REASONS."""
    records = read(
        ("", "", "DE", "FOSSIL_SPECIMEN"),
        (*HERE, "FOSSIL_SPECIMEN", "managed", "1800"),
        ("13.41", "52.52", "DE", "", "", "1800"),
        first_year=1900,
    )
    assert reasons(records) == ["no coordinates", "fossil", "before the first year"]


@pytest.mark.parametrize(
    ("lon", "lat", "country", "repair"),
    [
        ("47.75", "11.25", "DE", "longitude and latitude exchanged"),
        ("-33.875", "151.125", "AU", "longitude and latitude exchanged"),
        ("122.5", "45.5", "United States of America", "sign of longitude changed"),
        ("151.125", "33.875", "AUS", "sign of latitude changed"),
        ("237.5", "45.5", "US", "360 subtracted from longitude"),
    ],
)
def test_repairs(read, lon, lat, country, repair):
    records = read((lon, lat, country))
    assert [REPAIRS[i] for i in records.audit.repair] == [repair]
    assert shape_contains(country, records.lon[0], records.lat[0])
    assert records.audit.counts()["repaired"] == {repair: 1}


def shape_contains(country, lon, lat):
    area = country_area(country_code(country))
    west, south, east, north = area.bounds
    return west <= lon <= east and south <= lat <= north


@pytest.mark.parametrize(("both", "left"), [(True, 0), (False, 1)])
def test_no_repair_where_two_would_do(read, monkeypatch, both, left):
    """No real country is so placed: a made-up one that has (11.25, 47.75), and another part with (-47.75, 11.25)."""
    area = shapely.union_all([shapely.box(11, 47, 12, 48), shapely.box(-48, 11, -47, 12)][: 1 + both])
    monkeypatch.setattr("sdm.records.clean.country_area", lambda code: area)
    assert len(read(("11.25", "-47.75", "DE"))) == left


def test_a_repaired_record_is_checked_further(read):
    records = read(("52.52", "13.41", "DE"))
    assert reasons(records) == ["capital"]
    assert records.audit.counts()["repaired"] == {}


@pytest.mark.parametrize(
    ("lon", "lat", "country"),
    [
        ("8.05", "54.18", "DE"),  # an island of the North Sea beyond the generalised outline
        ("34.1", "45.05", "UA"),  # Crimea
        ("17.05", "-22.0", "NA"),  # Namibia, whose code looks like a missing value
        ("-52.65", "4.05", "GF"),  # no outline of its own
        ("-149.5", "-17.65", "FR"),  # Polynesia
        ("-66.5", "18.25", "US"),  # Puerto Rico
        ("20.75", "42.4", "RS"),  # Kosovo
    ],
)
def test_places_that_are_in_their_country(read, lon, lat, country):
    assert reasons(read((lon, lat, country))) == [""]


def test_namibia_is_not_a_missing_value(read):
    assert reasons(read(("11.25", "47.75", "NA"))) == ["not in its country"]


def test_waters_of_a_country(read):
    """At sea, 100 km off Portugal, and 2,000 km off the Azores; a land animal is in neither place."""
    near_by, far = ("-10.75", "39.5", "PT"), ("-60.5", "29.5", "PT")
    assert reasons(read(near_by, far)) == ["", "not in its country"]
    assert reasons(read(near_by, far, habitat="land")) == ["not in its country"] * 2


def test_centroids():
    assert near(np.array([2.0]), np.array([47.0]), np.array([[2.0, 47.005]]), 1.0)[0]
    middle = country_area("PL").centroid
    assert near(np.array([middle.x]), np.array([middle.y]), centroids(), 1.0)[0]
    assert not near(np.array([middle.x + 0.05]), np.array([middle.y]), centroids(), 1.0)[0]


def test_a_record_at_the_centroid_of_a_country(read):
    middle = country_area("PL").centroid
    row = (f"{middle.x:.4f}", f"{middle.y:.4f}", "PL")
    assert reasons(read(row)) == ["country centroid"]
    # Nobody was absent from a country as a whole.
    assert reasons(read((*row, "", "", "", "", "ABSENT"))) == [""]
    assert reasons(read(row, centroid_km=None)) == [""]


def test_near_is_the_distance_to_the_nearest():
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(-180, 180, 3000), rng.uniform(-90, 90, 3000)
    places = capitals()
    expected = distance_km(lon[:, None], lat[:, None], places[:, 0], places[:, 1]).min(axis=1) <= 100
    assert expected.any()
    assert (near(lon, lat, places, 100) == expected).all()


def test_distances():
    """A degree of the meridian; the antimeridian; from pole to pole."""
    np.testing.assert_allclose(
        distance_km(
            np.array([10.0, 179.5, 0.0]),
            np.array([45.0, 0.0, 90.0]),
            np.array([10.0, -179.5, 77.0]),
            np.array([46.0, 0.0, -90.0]),
        ),
        [111.195, 111.195, 20015.115],
        atol=1e-3,
    )


def test_habitats(read):
    """Off and on the shore of Lisbon; 5 km are near the shore, 0 km are not."""
    sea, land, coast = ("-12.5", "38.5"), ("-7.5", "38.5"), ("-9.44", "39.0")
    assert reasons(read(sea, land, coast, habitat="land")) == ["at sea", "", ""]
    assert reasons(read(sea, land, coast, habitat="sea", shore_km=50)) == ["", "on land", ""]
    assert reasons(read(sea, land, coast, habitat="land", shore_km=0)) == ["at sea", "", "at sea"]
    assert reasons(read(sea, land, habitat="none")) == ["", ""]


def test_duplicates(read):
    absent = ("", "", "", "", "ABSENT")
    records = read(
        HERE, HERE, ("11.250001", "47.750002", "DE"), ("11.2501", "47.75", "DE"), (*HERE, *absent), (*HERE, *absent)
    )
    assert reasons(records) == ["", "duplicate", "duplicate", "", "", "duplicate"]
    assert records.present.tolist() == [True, True, False]
    assert len(read(HERE, HERE, drop_duplicates=False)) == 2


def test_uncertainty_that_is_unknown_stays_and_is_counted(read):
    records = read(
        HERE,
        ("11.5", "47.75", "DE", "", "", "", "500"),
        ("11.6", "47.75", "DE", "", "", "", "0"),
        max_uncertainty_m=1000,
    )
    assert len(records) == 3
    assert records.audit.counts()["unknown_uncertainty"] == 2
    assert "2 kept records do not state a coordinate uncertainty." in records.audit.sentences()


def test_counts_and_sentences(read):
    records = read(HERE, ("", ""), ("47.75", "11.25", "DE"), ("11.5", "47.75", "DE", "", "", "", "", "ABSENT"))
    counts = records.audit.counts()
    assert counts == {
        "rows": 4,
        "kept": 2,
        "presences": 1,
        "absences": 1,
        "dropped": {"no coordinates": 1, "duplicate": 1},
        "repaired": {},
        "unknown_uncertainty": 2,
        "other_species": 0,
    }
    assert records.audit.sentences()[:2] == [
        "'records.csv': 4 rows, 2 kept (1 presences and 1 absences).",
        "Dropped: 1 no coordinates, 1 duplicate.",
    ]
    assert sum(counts["dropped"].values()) + counts["kept"] == counts["rows"]


def test_the_list_of_rows(tmp_path):
    text = "species;lon;lat;country\n=HYPERLINK(1);11,25;47,75;DE\n=HYPERLINK(1);-;@SUM(1);DE\n"
    text += "=HYPERLINK(1);47,75;11,5;DE\n=HYPERLINK(1);-122,5;45,5;US\n=HYPERLINK(1)\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    records = Records.read(tmp_path / "a.csv")
    records.audit.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    name = "'=HYPERLINK(1)"
    assert rows == [
        [
            "row",
            "species",
            "occurrence",
            "longitude",
            "latitude",
            "result",
            "reason",
            "used_longitude",
            "used_latitude",
        ],
        ["1", name, "presence", "11,25", "47,75", "kept", "", "11.25", "47.75"],
        ["2", name, "presence", "'-", "'@SUM(1)", "dropped", "not a number", "", ""],
        ["3", name, "presence", "47,75", "11,5", "repaired", "longitude and latitude exchanged", "11.5", "47.75"],
        ["4", name, "presence", "-122,5", "45,5", "kept", "", "-122.5", "45.5"],
        ["5", name, "presence", "", "", "dropped", "unreadable row", "", ""],
    ]
    with pytest.raises(OutputError, match="cannot be written"):
        records.audit.write_csv(tmp_path / "none" / "out.csv")


def test_nothing_is_left(read):
    records = read(("", ""))
    assert len(records) == 0
    assert len(records.presences) == 0
    assert len(records.thinned(1.0)) == 0


def test_thinning():
    lon = np.array([10.1, 10.2, 10.9, 11.5, -179.9, 180.0])
    lat = np.array([50.1, 50.2, 50.9, 50.5, 0.5, 0.5])
    present = np.array([False, True, True, False, True, True])
    records = Records.from_points(lon, lat, present)
    thin = records.thinned(1.0)
    assert thin.row.tolist() == [2, 4, 5, 6]
    assert thin.audit is records.audit
    assert records.thinned(0.01).row.tolist() == [1, 2, 3, 4, 5, 6]
    for wrong in (0, -1, np.nan, np.inf):
        with pytest.raises(RecordsError, match="give a number above 0"):
            records.thinned(wrong)


def test_selection():
    records = Records.from_points(np.arange(5.0), np.arange(5.0), np.arange(5) % 2 == 0, species="A b")
    assert records.presences.lon.tolist() == [0, 2, 4]
    assert records.absences.row.tolist() == [2, 4]
    assert records.select(np.array([3, 1])).lon.tolist() == [3, 1]
    assert records.species == records.absences.species == "A b"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("de", "DE"),
        ("DEU", "DE"),
        ("Germany", "DE"),
        ("UK", "GB"),
        ("United States", "US"),
        ("Côte d'Ivoire", "CI"),
        ("Viet Nam", "VN"),
        ("NA", "NA"),
        ("Kosovo", "XK"),
        ("ZZ", ""),
        ("Atlantis", ""),
        ("", ""),
    ],
)
def test_codes_of_countries(text, code):
    assert country_code(text) == code


@pytest.mark.parametrize(
    "options",
    [
        {"habitat": "lake"},
        {"first_year": "old"},
        {"max_uncertainty_m": -1},
        {"centroid_km": 1e9},
        {"shore_km": np.nan},
        {"shore_km": None},
        {"max_uncertainty_m": "far"},
        {"max_uncertainty_m": [1]},
        {"centroid_km": "near"},
        {"capital_km": {}},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(RequestError):
        CleanOptions(**options)
