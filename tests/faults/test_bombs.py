"""Small files that would take all memory or time: refused in seconds, with a sentence."""

import json
import shutil
import sqlite3
import zipfile

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely

from sdm.errors import LayerError, RequestError
from sdm.files.toml import read_toml
from sdm.grid import Region
from sdm.layers.raster import RasterLayer
from sdm.records.read import read_raw

SECONDS, MEGABYTES = 10, 1000


def region(path):
    return f"from sdm.grid import Region; Region.from_file({str(path)!r})"


def embeddings(path):
    return f"from sdm.files.embeddings import read_embeddings; read_embeddings({str(path)!r})"


def names(path):
    return f"from sdm.names.lists import read_names; read_names({str(path)!r})"


def table(path):
    return f"from sdm.training.data.records import read_records; read_records({str(path)!r})"


def check(measure, code, says):
    cost = measure(code)
    assert cost.seconds < SECONDS
    assert cost.megabytes < MEGABYTES
    assert says in cost.answer
    assert len(cost.answer.splitlines()) == 1
    return cost


def write_polygons(path, polygons):
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(p)} for p in polygons]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def scribble(points, seed=1):
    return shapely.Polygon(np.random.default_rng(seed).uniform(0, 40, (points, 2)))


def needles(number):
    ends = np.random.default_rng(1).uniform(0, 40, (number, 2, 2))
    return [shapely.Polygon([a, b, b + 0.001]) for a, b in ends]


def combs(teeth):
    """Two valid polygons whose teeth cross each other."""
    x = np.linspace(0, 40, teeth)
    teeth_up = [(a, y) for k, a in enumerate(x) for y in ((0, 40) if k % 2 else (40, 0))]
    outline = [(0, -1), *teeth_up, (40, -1)]
    return [shapely.make_valid(shapely.Polygon(o)) for o in (outline, [(b, a) for a, b in outline])]


@pytest.mark.parametrize(
    "polygons",
    [
        [scribble(3000)],
        [scribble(100_000)],
        [scribble(200, seed) for seed in range(500)],
        needles(900),
        needles(20_000),
        [shapely.Point(x / 500, 0).buffer(20, 100) for x in range(500)],
    ],
    ids=["scribble", "large scribble", "scribbles", "needles", "many needles", "discs"],
)
def test_polygons_that_cross_too_often(tmp_path, measure, polygons):
    check(measure, region(write_polygons(tmp_path / "a.geojson", polygons)), "cross each other more than 50,000 times")


def test_polygons_that_end_elsewhere(tmp_path, measure):
    square = shapely.box(0, 0, 1, 1)
    rings = shapely.Polygon(np.column_stack([np.cos(t := np.linspace(0, 6.28, 1_200_000)), np.sin(t)]))
    cost = measure(region(write_polygons(tmp_path / "a.geojson", [square, rings])))
    assert cost.seconds < SECONDS and cost.megabytes < MEGABYTES
    assert "is larger than 32 MiB" in cost.answer
    geopandas.GeoDataFrame(geometry=[rings], crs=4326).to_file(tmp_path / "a.gpkg")
    check(measure, region(tmp_path / "a.gpkg"), "vertices, more than 1,000,000")


def small_squares(number):
    k = np.arange(number)
    x, y = -120 + k % 400 * 0.1, 20 + k // 400 * 0.1
    return shapely.box(x, y, x + 0.05, y + 0.05)


def test_a_hundred_thousand_squares(tmp_path, measure):
    path = write_polygons(tmp_path / "a.geojson", small_squares(100_000))
    check(measure, region(path), "done")
    assert shapely.get_num_geometries(Region.from_file(path).geometry) == 100_000


def test_a_chequerboard(tmp_path, measure):
    k = np.arange(80_000)
    k = k[(k % 400 + k // 400) % 2 == 0]
    x, y = -120 + k % 400 * 0.1, 20 + k // 400 * 0.1
    check(measure, region(write_polygons(tmp_path / "a.geojson", shapely.box(x, y, x + 0.1, y + 0.1))), "")


def test_an_honest_union_keeps_its_bits():
    from sdm.files.union import union

    shapes = np.array([shapely.Point(x, y).buffer(0.8) for x in range(15) for y in range(15)])
    assert shapely.equals_exact(union(shapes), shapely.union_all(shapely.make_valid(shapes)))
    bowtie = np.array([shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])])
    assert union(bowtie).area == pytest.approx(2)
    squares = small_squares(3000)
    assert union(squares).area == pytest.approx(shapely.area(squares).sum())


@pytest.mark.parametrize("blanks", [True, False])
def test_a_zip_of_two_gigabytes(tmp_path, measure, blanks):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("a.geojson", "w", force_zip64=True) as member,
    ):
        member.write(b'{"type": "FeatureCollection", "features": [')
        piece = (b" " if blanks else b"[],") * (1 << 20)
        for _ in range(2000 if blanks else 100):
            member.write(piece)
    check(measure, region(tmp_path / "a.zip"), "LayerError")


@pytest.mark.parametrize("piece", [b"[],", b"[0],", b"{},", b'{"a":[]},', b'"",', b"[["])
def test_json_of_many_values(tmp_path, measure, piece):
    """The largest text that is read, of what takes most memory for its size."""
    with (tmp_path / "a.geojson").open("wb") as file:
        file.write(b'{"type":"FeatureCollection","features":[{"type":"Feature","x":[')
        file.write(piece * (31 * (1 << 20) // len(piece)))
    check(measure, region(tmp_path / "a.geojson"), "LayerError")


def records(path):
    return f"from sdm.records.read import read_raw; read_raw({str(path)!r})"


RING = b'"geometry":{"type":"Polygon","coordinates":[[' + b"[1,2]," * 2_000_000 + b"[1,2]]]}}"


@pytest.mark.parametrize(
    "begin",
    [
        b'{"type":"Feature","properties":{},',
        b'{"type":"FeatureCollection","type":"Feature","properties":{},',
        b'{"type":"FeatureCollection","features":[],"a\\"":1,"type":"Feature","properties":{},',
        b'{"type":"FeatureCollection","features":[{"b":"]}"}],"typ\\u0065":"Feature","properties":{},',
    ],
    ids=["plain", "twice", "last", "escaped"],
)
def test_json_that_is_read_as_a_whole(tmp_path, measure, begin):
    (tmp_path / "a.geojson").write_bytes(begin + RING)
    cost = check(measure, records(tmp_path / "a.geojson"), "no plain collection")
    assert cost.megabytes < 400


def test_a_large_collection_is_read(tmp_path):
    """With what looks like the end of it, or its type, inside features and strings."""
    feature = (
        b'{"type":"Feature","geometry":{"type":"Point","coordinates":[7.25,46.5]},"properties":{"species":"Vipera"'
        b',"type":"Feature","a\\"b":"\\\\","c":"]}{\\"type\\":"}}'
    )
    name = b'"name":"x","crs":{"type":"name","properties":{"name":"urn:ogc:def:crs:OGC:1.3:CRS84"}},'
    path = tmp_path / "a.geojson"
    path.write_bytes(
        b'{"type":"FeatureCollection",'
        + name
        + b'"features":['
        + b",".join([feature] * 60_000)
        + b'],"bbox":[7,46,8,47]}'
    )
    assert path.stat().st_size > 8 << 20
    raw = read_raw(path)
    assert len(raw) == 60_000
    assert (raw.rows["lon"] == 7.25).all()


@pytest.mark.parametrize("kind", ["one feature", "many features", "few of each"])
def test_json_of_many_properties(tmp_path, measure, kind):
    point = '{"type":"Feature","geometry":{"type":"Point","coordinates":[7,46]},"properties":{%s}}'
    match kind:
        case "one feature":
            features = [point % ",".join(f'"p{i}":1' for i in range(1_000_000))]
        case "many features":
            features = [point % f'"p{i}":1' for i in range(90_000)]
        case _:
            features = [point % f'"p{i % 900}":1' for i in range(90_000)]
    path = tmp_path / "a.geojson"
    path.write_text('{"type":"FeatureCollection","features":[' + ",".join(features) + "]}")
    check(measure, region(path), "different properties")


@pytest.mark.parametrize("name", ["meta.xml", "eml.xml"])
def test_deep_xml_in_an_archive(tmp_path, measure, name):
    terms = "http://rs.tdwg.org/dwc/terms"
    meta = (
        f'<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="eml.xml"><core encoding="UTF-8"'
        f' rowType="{terms}/Occurrence" fieldsTerminatedBy=","><files><location>a.csv</location></files><id index="0"/>'
        f'<field index="1" term="{terms}/decimalLongitude"/><field index="2" term="{terms}/decimalLatitude"/>'
        "</core></archive>"
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        files = {"a.csv": "1,7,46\n", "meta.xml": meta} | {name: "<a>" * 1_300_000}
        for member, text in files.items():
            archive.writestr(member, text)
    check(measure, records(tmp_path / "a.zip"), "200 deep")


@pytest.mark.parametrize("kind", ["attribute", "elements"])
def test_kml_that_takes_long(tmp_path, measure, kind):
    inside = f'<a b="{"c" * (30 << 20)}"/>' if kind == "attribute" else "<a/>" * 7_000_000
    text = f'<kml xmlns="http://www.opengis.net/kml/2.2"><Document>{inside}</Document></kml>'
    (tmp_path / "a.kml").write_text(text)
    check(measure, records(tmp_path / "a.kml"), "save it as a GeoPackage")


@pytest.mark.parametrize("kind", ["nested", "attributes", "elements"])
def test_a_workbook_that_takes_long(tmp_path, measure, kind):
    inside = {
        "nested": "<c>" * 1_000_000,
        "attributes": "<c " + " ".join(f'a{i}=""' for i in range(1_000_000)) + "/>",
        "elements": "<c/>" * 3_000_000,
    }[kind]
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        for name in ("[Content_Types].xml", "xl/workbook.xml"):
            book.writestr(name, "<a/>")
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet>{inside}</worksheet>")
    code = f"from sdm.maps.batch.plan import plan_batch; plan_batch({str(tmp_path / 'a.xlsx')!r}, bbox=(6, 45, 8, 47))"
    check(measure, code, "save the column of names as CSV")


def test_a_table_of_open_quotation_marks(tmp_path, measure):
    (tmp_path / "a.csv").write_bytes(b"species,lon,lat\n" + b'"a\n' * 20_000_000)
    check(measure, records(tmp_path / "a.csv"), "it is no table")


def test_a_default_of_an_archive_is_cut_as_any_cell(tmp_path, measure):
    terms = "http://rs.tdwg.org/dwc/terms"
    meta = (
        '<archive xmlns="http://rs.tdwg.org/dwc/text/"><core encoding="UTF-8" fieldsTerminatedBy=","'
        f' rowType="{terms}/Occurrence"><files><location>a.csv</location></files><id index="0"/>'
        f'<field index="1" term="{terms}/decimalLongitude"/><field index="2" term="{terms}/decimalLatitude"/>'
        f'<field default="{"b" * 900_000}" term="{terms}/country"/></core></archive>'
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("meta.xml", meta)
        archive.writestr("a.csv", "1,7,46\n" * 200_000)
    cost = measure(f"from sdm.records.read import read_raw; read_raw({str(tmp_path / 'a.zip')!r})")
    assert cost.seconds < SECONDS and cost.megabytes < MEGABYTES


def test_a_placemark_of_many_places(tmp_path, measure):
    kml = '<kml xmlns="http://www.opengis.net/kml/2.2"><Placemark><Point><coordinates>{}</coordinates></Point></Placemark></kml>'
    (tmp_path / "a.kml").write_text(kml.format("7,46 " * 8_000_000))
    assert check(measure, records(tmp_path / "a.kml"), "coordinates").megabytes < 500


def test_views_and_counts_of_a_geopackage(tmp_path, measure):
    path = tmp_path / "a.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326).to_file(path)
    shutil.copy(path, tmp_path / "b.gpkg")
    for name, sql in (
        ("a.gpkg", "UPDATE gpkg_ogr_contents SET feature_count = 2000000000"),
        (
            "b.gpkg",
            "CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
            "SELECT x AS fid, zeroblob(100000) AS geom FROM c",
        ),
    ):
        connection = sqlite3.connect(tmp_path / name)
        connection.execute(sql)
        connection.commit()
        connection.close()
    check(measure, region(tmp_path / "a.gpkg"), "2,000,000,000 features, more than 100,000")
    check(measure, region(tmp_path / "b.gpkg"), "holds the view 'v'")


# Parquet -------------------------------------------------------------------------------------------


def write_constant(path, kind):
    """A file of some kilobytes at most that holds gigabytes of the same value."""
    rows = 1_000_000 if kind == "vectors" else 100_000
    if kind == "vectors":
        values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([0.5], pa.float32()))
        columns = {f"e{k}": values for k in range(500)}
    elif kind == "lists":
        values = pa.array(np.full(100_000_000, 0.5, np.float32))
        columns = {"embedding": pa.FixedSizeListArray.from_arrays(values, 1000)}
    else:
        text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 1_000_000]))
        columns = {"species": text, "lon": pa.array(np.zeros(rows)), "lat": pa.array(np.zeros(rows))}
        columns["embedding"] = pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 4 << 20
    return path


@pytest.mark.parametrize(
    ("kind", "read", "says"),
    [
        ("vectors", embeddings, "RequestError"),
        ("lists", embeddings, "RequestError"),
        ("texts", embeddings, "RequestError"),
        ("texts", table, "LayerError"),
        ("texts", names, "TooLargeError"),
        ("texts", region, "LayerError"),
    ],
)
def test_parquet_of_gigabytes(tmp_path, measure, kind, read, says):
    check(measure, read(write_constant(tmp_path / "a.parquet", kind)), says)


def test_geoparquet_of_gigabytes(tmp_path, measure):
    outline = shapely.to_wkb(shapely.Point(0, 0).buffer(10, 20_000))
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    frame.to_parquet(tmp_path / "small.parquet")
    metadata = pq.read_schema(tmp_path / "small.parquet").metadata
    shapes = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array([outline], pa.binary()))
    pq.write_table(
        pa.table({"geometry": shapes}).replace_schema_metadata({b"geo": metadata[b"geo"]}),
        tmp_path / "a.parquet",
        compression="zstd",
        store_schema=False,
    )
    check(measure, region(tmp_path / "a.parquet"), "unpacks to more than 250 times its size")


# TOML ----------------------------------------------------------------------------------------------

TOML = {
    "dotted": "a." * 60_000 + "a = 1",
    "spaced": "a . " * 60_000 + "a = 1",
    "quoted": '"a".' * 60_000 + "a = 1",
    "header": "[" + "a." * 60_000 + "a]",
    "deep": "a = " + "[" * 100_000,
    "inline": "a = " + "{a = " * 50_000,
    "digits": "a = " + "9" * 200_000,
    "one word": "a" * 200_000,
    "null": 'out = "a\\u0000b"',
    "null inside": 'out = [{a = "a\\u0000b"}]',
    "large": "# " + "x" * 300_000,
}


@pytest.mark.parametrize("kind", TOML)
def test_toml(tmp_path, measure, kind):
    path = tmp_path / "a.toml"
    path.write_text(TOML[kind])
    with pytest.raises(RequestError, match=r"config '.*a\.toml'"):
        read_toml(path, "config")
    code = f"from sdm.files.toml import read_toml; from pathlib import Path; read_toml(Path({str(path)!r}), 'config')"
    assert check(measure, code, "RequestError").seconds < 2


def test_toml_of_text_with_dots(tmp_path):
    (tmp_path / "a.toml").write_text('a = "' + "1.5, " * 500 + '"\r\nb = [' + "1.5, " * 500 + "]\r\n")
    assert len(read_toml(tmp_path / "a.toml", "config")["b"]) == 500


# Rasters -------------------------------------------------------------------------------------------


def test_a_raster_of_one_block(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=32_768,
        height=32_768,
        count=1,
        dtype="uint8",
        tiled=True,
        blockxsize=32_768,
        blockysize=32_768,
        sparse_ok=True,
        crs="EPSG:4326",
        transform=rasterio.Affine(0.01, 0, -180, 0, -0.005, 80),
    ):
        pass
    with pytest.raises(LayerError, match="blocks of 32768 x 32768 cells"):
        RasterLayer(path)
