"""Data adapters: every kind of source from files to places and labels, and what is refused."""

import geopandas
import numpy as np
import pandas
import pyproj
import pytest
import shapely

from sdm.errors import LayerError
from sdm.names import TaxonTable
from sdm.training.data.labels import NOT_KNOWN, PackedLabels, Places, SparseLabels
from sdm.training.data.sources import open_sources
from sdm.training.recipe.sources import (
    OccurrencesSettings,
    PolygonsSettings,
    ProbabilitiesSettings,
    RangesSettings,
    SurveysSettings,
)

TAXA = """species,kingdom,phylum,class,order,family,genus,common,synonyms,group
Abies alba,Plantae,Tracheophyta,Pinopsida,Pinales,Pinaceae,Abies,silver fir,Abies pectinata,tree
Fagus sylvatica,Plantae,Tracheophyta,Magnoliopsida,Fagales,Fagaceae,Fagus,beech,,tree
Quercus robur,Plantae,Tracheophyta,Magnoliopsida,Fagales,Fagaceae,Quercus,oak,,tree
Ursus arctos,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,brown bear,,mammal
"""


@pytest.fixture(scope="module")
def taxa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    (folder / "taxa.csv").write_text(TAXA)
    return TaxonTable.load(folder)


def only(data, taxa, seed=0):
    (source,) = open_sources([data], taxa, seed)
    return source


def opened(data, taxa):
    """(source, places, block) of one source that has places."""
    source = only(data, taxa)
    places = source.places(0)
    return source, places, source.block(places, 0)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_sparse_and_packed_labels_are_the_same():
    rng = np.random.default_rng(0)
    dense = (rng.random((30, 13)) < 0.2).astype(np.uint8)
    row, column = np.nonzero(dense)
    indptr = np.searchsorted(row, np.arange(31))
    rows = rng.integers(0, 30, 50)
    sparse = SparseLabels(indptr, column, 13).read(rows)
    assert (sparse == dense[rows]).all()
    assert (PackedLabels(np.packbits(dense, axis=1), 13).read(rows) == dense[rows]).all()
    value, rest = rng.integers(0, 255, row.size).astype(np.uint8), rng.integers(0, 3, 30).astype(np.uint8)
    expected = np.where(dense, 0, rest[:, None])
    expected[row, column] = value
    assert (SparseLabels(indptr, column, 13, value, rest).read(rows) == expected[rows]).all()


def test_places_without_some():
    lonlat = np.arange(14.0).reshape(7, 2)
    places = Places.grouped(lonlat, np.zeros(7, np.int8), np.array([2, 0, 2, 1, 0, 2, 3]))
    assert places.count.tolist() == [2, 1, 3, 1] and places.origin.tolist() == [1, 4, 3, 0, 2, 5, 6]
    left = places.without(np.isin(places.origin, [3, 0]))
    assert left.count.tolist() == [2, 2, 1] and left.start.tolist() == [0, 2, 4]
    assert left.origin.tolist() == [1, 4, 2, 5, 6] and (left.lonlat == lonlat[left.origin]).all()
    both = Places.join([(0, places), (3, left)])
    assert both.start.tolist() == [0, 2, 3, 6, 7, 9, 11] and both.group_source.tolist() == [0] * 4 + [3] * 3


def test_surveys_list_all_that_is_there(tmp_path, taxa):
    path = write(
        tmp_path / "plots.csv",
        "species,lat,lon\nAbies alba,47,10\nFagus sylvatica,47,10\nQuercus robur,48,11\nAbies pectinata,49.1,12\n"
        "Nothing known,50,13\nAbies alba,47,10\nAbies alba,,3\n",
    )
    source, places, block = opened(SurveysSettings(path=path), taxa)
    assert source.species == ("Abies alba", "Fagus sylvatica", "Quercus robur")
    found = {tuple(p): row.tolist() for p, row in zip(places.lonlat, block.labels(np.arange(4)), strict=True)}
    # The synonym counts as its species; a plot where only an unknown species stands has none of ours.
    assert found == {(10, 47): [1, 1, 0], (11, 48): [0, 0, 1], (12, 49.1): [1, 0, 0], (13, 50): [0, 0, 0]}
    assert source.extent == (10, 47, 13, 50)
    rarer, _, block = opened(SurveysSettings(path=path, min_records=2), taxa)
    assert rarer.species == ("Abies alba",) and block.labels(np.arange(4)).sum() == 2
    _, places, _ = opened(SurveysSettings(path=path, thin=10.0), taxa)
    assert places.count.tolist() == [3, 1]


def test_surveys_with_a_column_per_species(tmp_path, taxa):
    path = write(tmp_path / "wide.csv", "X_WGS84,Y_WGS84,AA,UA\n10,47,1,0\n11,48,0,0\n12,49,1,1\n")
    columns = {"AA": "Abies alba", "UA": "Ursus arctos"}
    source, places, block = opened(SurveysSettings(path=path, columns=columns), taxa)
    assert source.species == ("Abies alba", "Ursus arctos")
    assert block.labels(np.argsort(places.lonlat[:, 0])).tolist() == [[1, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("form", ["csv", "csv.gz", "gpkg", "parquet", "plain.parquet"])
def test_occurrences_in_any_format_and_crs(tmp_path, taxa, form):
    """The same records as text, GeoPackage or Parquet, in UTM, come to the same degrees."""
    lon, lat = np.array([14.0, 15.5, 16.0]), np.array([47.0, 48.0, 49.0])
    x, y = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(lon, lat)
    table = pandas.DataFrame({"name": ["Abies alba", "Fagus sylvatica", "Abies alba"], "east": x, "north": y})
    path = tmp_path / f"r.{form}"
    more = {}
    if form in ("gpkg", "parquet"):
        frame = geopandas.GeoDataFrame(table[["name"]], geometry=geopandas.points_from_xy(x, y), crs=32633)
        frame.to_parquet(path) if form == "parquet" else frame.to_file(path)
    else:
        table.to_parquet(path) if form == "plain.parquet" else table.to_csv(path, index=False)
        more = {"lon": "east", "lat": "north", "crs": "EPSG:32633"}
    data = OccurrencesSettings(path=str(path), species="name", background="target-group", **more)
    _, places, block = opened(data, taxa)
    order = np.argsort(places.origin)
    assert np.allclose(places.lonlat[order], np.stack([lon, lat], axis=1), atol=1e-7)
    assert block.labels(order).tolist() == [[1, 0], [0, 1], [1, 0]]  # others' records are its background


def test_background_of_random_land(tmp_path, taxa):
    path = write(tmp_path / "r.csv", "species,lon,lat\nAbies alba,10,47\nFagus sylvatica,12,48\n")
    data = OccurrencesSettings(path=path, background_places=400, background_share=0.25, margin=3.0)
    source, places, block = opened(data, taxa)
    labels = block.labels(np.arange(402))
    record = places.origin < 2
    assert sorted(labels[record].tolist()) == [[1, NOT_KNOWN], [NOT_KNOWN, 1]]
    assert (labels[~record] == 0).all() and (~record).sum() == 400
    west, south, east, north = source.extent
    assert west >= 7 and south >= 44 and east <= 15 and north <= 51
    first = places.origin[places.start] < 2
    assert places.weight[first].sum() == pytest.approx(0.75) and places.weight.sum() == pytest.approx(1.0)
    probability, known = block.probability(np.flatnonzero(record))
    assert known.sum() == 2 and probability[known].tolist() == [1, 1]


def test_background_of_the_file(tmp_path, taxa):
    path = write(tmp_path / "r.csv", "lon,lat,presence\n10,47,1\n12,48,0\n13,49,0\n")
    data = OccurrencesSettings(path=path, taxon="Abies alba", background="file", presence="presence")
    _, places, block = opened(data, taxa)
    assert block.labels(np.argsort(places.origin)).ravel().tolist() == [1, 0, 0]
    # An empty cell is not an absence.
    path = write(tmp_path / "e.csv", "lon,lat,presence\n10,47,1\n12,48,0\n13,49,\n")
    data = OccurrencesSettings(path=path, taxon="Abies alba", background="file", presence="presence")
    _, places, block = opened(data, taxa)
    assert block.labels(np.argsort(places.origin)).ravel().tolist() == [1, 0]
    # With names, an absence is of the species it names; the others are not known there.
    path = write(
        tmp_path / "n.csv",
        "species,lon,lat,seen\nAbies alba,10,47,1\nFagus sylvatica,11,47,1\nAbies alba,12,48,0\n,13,49,0\n",
    )
    data = OccurrencesSettings(path=path, background="file", presence="seen")
    _, places, block = opened(data, taxa)
    expected = [[1, NOT_KNOWN], [NOT_KNOWN, 1], [0, NOT_KNOWN], [0, 0]]
    assert block.labels(np.argsort(places.origin)).tolist() == expected


def test_what_is_left_out_or_read_otherwise_is_said(tmp_path, taxa):
    rows = "Abies alba,1,2\nABIES ALBA Mill.,1,2\nSphinx one,1,2\nAbies alba,,2\nFagus_sylvatica,3,2\n"
    source = only(SurveysSettings(path=write(tmp_path / "s.csv", "species,lon,lat\n" + rows)), taxa)
    assert source.species == ("Abies alba", "Fagus sylvatica")
    assert source.notes == [
        "1 row(s) without a position, a species or a presence are left out",
        "1 species that taxa.csv does not list are left out: 'Sphinx one'",
        "1 name(s) are read as others: 'ABIES ALBA Mill.' as Abies alba",
    ]


def test_months_of_records(tmp_path, taxa):
    path = write(
        tmp_path / "r.csv", "species,lon,lat,m\nAbies alba,10,47,1\nFagus sylvatica,12,48,7\nAbies alba,3,4,\n"
    )
    _, places, _ = opened(OccurrencesSettings(path=path, month="m", background="target-group"), taxa)
    assert places.month[np.argsort(places.origin)].tolist() == [1, 7, 0]


def teacher(path, **other):
    values = {
        "species": np.array(["Ursus arctos", "Sphinx unknown", "Abies alba"]),
        "lonlat": np.array([[10.0, 47], [10, 47], [20, 50]]),
        "place": np.array([0, 0, 1], np.int32),
        "month": np.array([1, 7, 0], np.int8),
        "indptr": np.array([0, 2, 3, 5], np.int64),
        "indices": np.array([0, 1, 2, 1, 0], np.int16),
        "value": np.array([51, 9, 255, 8, 102], np.uint8),
    }
    np.savez(path, **{**values, **other})
    return str(path)


def test_probabilities(tmp_path, taxa):
    source, places, block = opened(ProbabilitiesSettings(path=teacher(tmp_path / "t.npz")), taxa)
    assert source.species == ("Ursus arctos", "Abies alba") and block.soft
    probability, known = block.probability(np.argsort(places.origin))
    assert np.allclose(probability, [[0.2, 0], [0, 1], [0.4, 0]]) and known.all()
    assert places.count.tolist() == [2, 1]  # the months of a place are drawn together
    for other in (
        {"indptr": np.array([0, 2, 3, 9])},
        {"indices": np.array([0, 7, 2, 1, 0])},
        {"month": np.array([1, 13, 0])},
        {"lonlat": np.zeros((2, 2))},
        {"value": np.zeros(5)},
    ):
        with pytest.raises(LayerError, match="do not fit together"):
            only(ProbabilitiesSettings(path=teacher(tmp_path / "bad.npz", **other)), taxa)
    with pytest.raises(LayerError, match="not on the globe"):
        only(ProbabilitiesSettings(path=teacher(tmp_path / "bad.npz", lonlat=np.full((3, 2), 95.0))), taxa)
    with pytest.raises(LayerError, match="cannot be read"):  # a pickle is not run
        only(ProbabilitiesSettings(path=teacher(tmp_path / "bad.npz", species=np.array([None, 1, 2]))), taxa)
    np.savez(tmp_path / "half.npz", species=np.array(["a"]))
    with pytest.raises(LayerError, match="lacks lonlat, place"):
        only(ProbabilitiesSettings(path=str(tmp_path / "half.npz")), taxa)


def test_polygons_label_the_places_of_others(tmp_path, taxa):
    """In Mercator metres, two rows of one species, one of a synonym; the places are another source's plots."""
    boxes = [shapely.box(8, 45, 11, 48), shapely.box(14, 45, 16, 48), shapely.box(9, 46, 15, 47)]
    frame = geopandas.GeoDataFrame(
        {"taxon": ["Abies alba", "Abies pectinata", "Fagus sylvatica "]}, geometry=boxes, crs=4326
    )
    frame.to_crs(3857).to_file(tmp_path / "p.gpkg")
    path = write(
        tmp_path / "plots.csv",
        "species,lon,lat\nUrsus arctos,10,46.5\nUrsus arctos,13,46.5\nUrsus arctos,15.5,47.5\nUrsus arctos,30,60\n",
    )
    entries = [
        SurveysSettings(path=path, name="plots"),
        PolygonsSettings(path=str(tmp_path / "p.gpkg"), species="taxon", name="ranges"),
    ]
    surveys, polygons = open_sources(entries, taxa, 0)
    places = Places.join([(0, surveys.places(0))])
    block = polygons.block(places, 1)
    order = np.argsort(places.lonlat[:, 0])
    assert block.known(order).tolist() == [True, True, True, False]
    by_name = [block.species.index(n) for n in ("Abies alba", "Fagus sylvatica")]
    assert block.labels(order[:3])[:, by_name].tolist() == [[1, 1], [0, 1], [1, 0]]
    # A model of months: a range without season holds for the whole year alone, unless told otherwise.
    monthly = Places.join([(0, Places.grouped(places.lonlat, np.full(4, 6, np.int8), np.arange(4)))])
    assert not polygons.block(monthly, 1).known(np.arange(4)).any()
    always = only(PolygonsSettings(path=str(tmp_path / "p.gpkg"), species="taxon", every_month=True, points=50), taxa)
    assert always.block(monthly, 1).known(np.arange(4)).sum() == 3
    drawn = always.places(0).lonlat
    assert len(drawn) == 50 and ((drawn > [7.9, 44.9]) & (drawn < [16.1, 48.1])).all()


def test_ranges_label_the_places_of_others(tmp_path, taxa, write_raster):
    from affine import Affine

    present = np.zeros((6, 12), np.uint8)
    present[1, 6] = 1
    grid = Affine(2_000_000, 0, -12_000_000, 0, -2_000_000, 6_000_000)
    write_raster(present, name="r/Ursus_arctos.tif", transform=grid, crs="+proj=cea +lat_ts=30 +datum=WGS84")
    source = only(RangesSettings(path=str(tmp_path / "r"), points_per_cell=2, points_per_cell_sea=1), taxa)
    own = source.places(0)
    block = source.block(own, 0)
    inside = block.labels(np.arange(len(own.lonlat)))[:, 0] == 1
    assert inside.sum() == own.count[own.origin[own.start] == 18].sum() > 0
    elsewhere = Places.join(
        [
            (
                1,
                Places.grouped(
                    np.array([*own.lonlat[inside][:1], [0.5, 89.9], [0.0, -30.0]]), np.zeros(3, np.int8), np.arange(3)
                ),
            )
        ]
    )
    rows = source.block(elsewhere, 0).rows
    assert rows.tolist()[0] == 18 and rows[1] == -1 and rows[2] >= 0
    assert source.block(elsewhere, 0).labels(np.array([0, 2])).ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("name,lon,lat\nAbies alba,1,2\n", {}, "has no column 'species'; species = names it .there are name, lon, lat"),
        ("species,east,lat\nAbies alba,1,2\n", {}, "no column 'lon'; lon = names it"),
        ("species,lon,lat\nAbies alba,1,2\n", {"lat": "breite"}, "no column 'breite'; lat = names it"),
        ("species,lon,lat\nAbies alba,47,100\n", {}, "lon 47, lat 100, which is not on the globe"),
        ("species,lon,lat\nAbies alba,a,b\n", {}, "column 'lon' holds no number"),
        ("species,lon,lat\n", {}, "has no row"),
        ("species,lon,lat\nAbies alba,,\nx,1,\n", {}, "column 'lat' holds no number"),
        ("species,lon,lat\nSphinx one,1,2\nSphinx two,1,2\n", {}, "it has 'Sphinx one', 'Sphinx two'"),
        ("species,lon,lat\nAbies alba,1,2\n", {"crs": "EPSG:nonsense"}, "crs = 'EPSG:nonsense' is not known"),
        ("species,lon,lat,m\nAbies alba,1,2,13\n", {"month": "m"}, "column 'm' is not a month 1..12"),
        ("species,lon,lat\nAbies alba,1,2\n", {"background": "target-group"}, "a target group needs others"),
        ("species,lon,lat,p\nAbies alba,1,2,1\n", {"background": "file", "presence": "p"}, "no row has a 'p' of 0"),
        ("species,lon,lat\nAbies alba,-150,5\n", {"margin": 1.0}, "there is no land in its box"),
        ('species,lon,lat\nAbies alba,1,2\nAbies alba,"1,5",2\n', {}, "holds '1,5', which is not a number"),
        ("species,lon,lat\nAbies alba,1,2\n", {"taxon": "Fagus sylvatica"}, "would overrule in every row; leave taxon"),
        ("species,lon,lat\nAbies alba,1.5,2\n", {"presence": "lon"}, "column 'lon' must hold 1 .* for present and 0"),
        ("species,lon,lat,p\nAbies alba,1,2,1\nAbies alba,1,2,yes\n", {"presence": "p"}, "holds 'yes', which is not"),
        ("lon,lat,A\n1,2,1\n1,2,\n", {"columns": {"A": "Abies alba"}}, "'A' is empty in some rows"),
        ("lon,lat,A\n1,2,1\n1,2,-9999\n", {"columns": {"A": "Abies alba"}}, "'A' must hold 1"),
    ],
)
def test_records_that_are_refused(tmp_path, taxa, text, options, said):
    path = write(tmp_path / "r.csv", text)
    with pytest.raises(LayerError, match=said) as error:
        only(OccurrencesSettings(path=path, **options), taxa)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_refused(tmp_path, taxa):
    with pytest.raises(LayerError, match="does not exist"):
        only(SurveysSettings(path=str(tmp_path / "none.csv")), taxa)
    frame = geopandas.GeoDataFrame({"species": ["Abies alba"]}, geometry=[shapely.Point(1, 2)])
    frame.to_file(tmp_path / "no_crs.gpkg")
    with pytest.raises(LayerError, match="has no CRS"):
        only(SurveysSettings(path=str(tmp_path / "no_crs.gpkg")), taxa)
    frame.set_crs(4326).to_file(tmp_path / "points.gpkg")
    with pytest.raises(LayerError, match="hold no polygon; points are of kind 'occurrences'"):
        only(PolygonsSettings(path=str(tmp_path / "points.gpkg")), taxa)
    with pytest.raises(LayerError, match="have no column 'taxon'; species = names it"):
        only(PolygonsSettings(path=str(tmp_path / "points.gpkg"), species="taxon"), taxa)
    (tmp_path / "bad.gpkg").write_bytes(b"not a database")
    with pytest.raises(LayerError, match="cannot be read as vector data"):
        only(PolygonsSettings(path=str(tmp_path / "bad.gpkg")), taxa)
    with pytest.raises(LayerError, match="cannot be read as Parquet"):
        (tmp_path / "bad.parquet").write_bytes(b"PAR1")
        only(SurveysSettings(path=str(tmp_path / "bad.parquet")), taxa)
