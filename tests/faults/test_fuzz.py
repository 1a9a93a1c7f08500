"""Every parser of ours on damaged files: it reads them, or refuses them in a sentence."""

import io
import json
import shutil
import tempfile
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdm.engine.cluster import _target
from sdm.errors import SdmError
from sdm.files import checksums, publication, workspace
from sdm.files.embeddings import read_embeddings
from sdm.files.toml import read_toml
from sdm.files.vectors import read_polygons
from sdm.index import Index
from sdm.layers.fetch import Fetcher
from sdm.layers.stac import read_items
from sdm.models.folder import read_folder
from sdm.models.taxabind.photo import open_photo
from sdm.models.taxabind.sound import read_sound
from sdm.names.lists import read_names
from sdm.records.fitfile import SUFFIX, read_parts
from sdm.records.read import read_raw
from tests.records.test_fit_parts import saved_fit

KML = (
    b'<kml xmlns="http://www.opengis.net/kml/2.2"><Document><Placemark><name>Ursus arctos</name><Polygon>'
    b"<outerBoundaryIs><LinearRing><coordinates>0,0 1,0 1,1 0,0</coordinates></LinearRing></outerBoundaryIs></Polygon>"
    b"<Point><coordinates>1,2</coordinates></Point></Placemark></Document></kml>"
)
GEOJSON = (
    b'{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"species": "Ursus arctos"}, '
    b'"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}}]}'
)
STAC = (
    b'{"type": "Feature", "id": "a", "bbox": [0, 0, 1, 1], "properties": {"license": "x"}, '
    b'"assets": {"visual": {"href": "a.tif"}}}'
)


def _npy():
    file = io.BytesIO()
    np.save(file, np.eye(4, dtype=np.float32))
    return file.getvalue()


def _parquet(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def _geoparquet():
    file = io.BytesIO()
    geopandas.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326).to_parquet(file)
    return file.getvalue()


def _png():
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, "PNG")
    return file.getvalue()


def _wav():
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.linspace(-0.5, 0.5, 500), 48_000, format="WAV")
    return file.getvalue()


def _fit():
    with tempfile.TemporaryDirectory() as folder:
        return saved_fit(Path(folder) / f"a{SUFFIX}").read_bytes()


def _recover(path):
    for name in ("new", "old"):
        (path.parent / name).mkdir(exist_ok=True)
    publication.recover(path.parent, path.parent)


def _report(path):
    workspace.read_report(path.parent)


PARSERS = {
    "toml": ("a.toml", lambda: b'crs = "EPSG:4326"\n[a.b]\nc = [1, {d = 2}]\n', lambda p: read_toml(p, "config")),
    "names": ("a.csv", lambda: b"species,common\nUrsus arctos,bear\n\xc3\xa9,x\n", read_names),
    "records": ("r.csv", lambda: b"species,lon,lat,eventDate\nUrsus arctos,1.5,2,2020-01-02\n", read_raw),
    "records in KML": ("r.kml", lambda: KML, read_raw),
    "records in GeoJSON": ("r.geojson", lambda: GEOJSON, read_raw),
    "records in Parquet": (
        "r.parquet",
        lambda: _parquet(species=["Ursus arctos"] * 9, lon=[1.5] * 9, lat=[2.0] * 9),
        read_raw,
    ),
    "embeddings in Parquet": (
        "e.parquet",
        lambda: _parquet(name=["a", "b"], embedding=[[1.0, 0.0], [0.0, 1.0]]),
        read_embeddings,
    ),
    "region in GeoParquet": ("a.parquet", _geoparquet, read_polygons),
    "region in KML": ("a.kml", lambda: KML, read_polygons),
    "region in GeoJSON": ("a.geojson", lambda: GEOJSON, read_polygons),
    "embeddings": ("a.npy", _npy, read_embeddings),
    "fit": (f"a{SUFFIX}", _fit, read_parts),
    "stac": ("a.json", lambda: STAC, lambda p: read_items(str(p), None, Fetcher(None, offline=True))),
    "journal": ("publish.json", lambda: b'{"names": ["a.tif"], "stale": ["b"]}', _recover),
    "checksums": ("a.json", lambda: b'{"checksums": {"a.json": "0", "b.tif": "1"}}', checksums.damage),
    "report": (
        workspace.REPORT,
        lambda: b'{"outputs": ["a"], "configuration": {}}',
        lambda p: workspace.read_report(p.parent),
    ),
    "photo": ("a.png", _png, open_photo),
    "sound": ("a.wav", _wav, read_sound),
    "scheduler file": ("s.json", lambda: b'{"address": "tcp://127.0.0.1:8786", "id": 3}', _target),
}
"""Of each: a file name, a whole file, and what reads it."""

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(max_size=6), st.integers(1, 400)
    ),
    min_size=1,
    max_size=4,
)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def changed(content, changes):
    """A file with some of its bytes replaced, cut, inserted or repeated."""
    for kind, where, piece, count in changes:
        at = int(where * len(content))
        if kind == "set":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "cut":
            content = content[:at] + content[at + count :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        else:
            content = content[:at] + content[at : at + 8] * count + content[at:]
    return content


def read(parser, path):
    try:
        parser(path)
    except SdmError as error:
        assert str(error).strip() and "\n" not in str(error).strip()


@pytest.fixture(scope="module")
def wholes():
    return {name: make() for name, (_, make, _) in PARSERS.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARSERS)
@given(changes=CHANGES)
@QUICK
def test_a_damaged_file_is_read_or_refused(wholes, name, changes):
    file, _, parser = PARSERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_bytes(changed(wholes[name], changes))
        read(parser, path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARSERS)
def test_the_whole_file_and_what_is_none(wholes, name):
    file, _, parser = PARSERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        for content in (wholes[name], b"", b"\0", b"[" * 50_000, b"\xff\xfe" * 99, b'{"a":' * 20_000, b"<a>" * 20_000):
            path.write_bytes(content)
            read(parser, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def replaced(value, path, new):
    """A JSON value with the part that `path` leads to replaced: k takes the k-th entry at each level."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    if isinstance(value, list):
        at = path[0] % len(value)
        return [*value[:at], replaced(value[at], path[1:], new), *value[at + 1 :]]
    key = list(value)[path[0] % len(value)]
    return {**value, key: replaced(value[key], path[1:], new)}


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_model):
    species = [("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal")]
    return write_model(tmp_path_factory.mktemp("models") / "bears", species)


@given(path=st.lists(st.integers(0, 40), min_size=1, max_size=4), new=JSON)
@example(path=[9], new={"": 0})
@QUICK
def test_any_config_of_a_model(model, path, new):
    whole = (model / "config.json").read_text()
    try:
        (model / "config.json").write_text(json.dumps(replaced(json.loads(whole), path, new)))
        read(read_folder, model)
    finally:
        (model / "config.json").write_text(whole)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    from sdm.index import build_index, plan_index

    path = tmp_path_factory.mktemp("index") / "a.zarr"
    build_index(plan_index((-120, 40, -119, 41), resolution=0.5, modalities="location", tile_size=16), path, threads=1)
    return path


@given(path=st.lists(st.integers(0, 40), min_size=1, max_size=6), new=JSON)
@settings(QUICK, max_examples=15)
def test_any_metadata_of_an_index(index, path, new):
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(index, Path(folder) / "a.zarr")
        metadata = json.loads((copy / ".zmetadata").read_text())
        (copy / ".zmetadata").write_text(json.dumps(replaced(metadata, path, new)))
        read(lambda p: Index.open(p).query(np.ones(256, np.float32)), copy)
