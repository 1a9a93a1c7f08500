"""Embeddings from files of every kind, and back to Parquet."""

import io
import json
import pickle
import struct
import sys
import zipfile

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from sdm.errors import OutputError, RequestError, SdmError, TooLargeError
from sdm.files.embeddings import MAX_VALUES, mean_vector, read_embeddings, unit_vectors
from sdm.outputs.embeddings import write_embeddings


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32) * 3


def unit(x):
    return x / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)


WRITERS = {
    "npy": np.save,
    "npz": lambda path, x: np.savez(path, e=x),
    "packed.npz": lambda path, x: np.savez_compressed(path, e=x),
    "pt": lambda path, x: torch.save(torch.from_numpy(np.ascontiguousarray(x)), path),
    "safetensors": lambda path, x: save_file({"e": np.ascontiguousarray(x)}, path),
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_array_format_gives_the_same_unit_vectors(tmp_path, vectors, ending, dtype):
    x = vectors.astype(dtype)
    WRITERS[ending](tmp_path / f"bear.{ending}", x)
    read = read_embeddings(tmp_path / f"bear.{ending}", 16)
    assert read.vectors.dtype == np.float32 and read.labels == tuple("0123456")
    np.testing.assert_allclose(read.vectors, unit(x), atol=1e-7)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_single_vector_is_one_row(tmp_path, vectors, ending):
    WRITERS[ending](tmp_path / f"one.{ending}", vectors[0])
    np.testing.assert_allclose(read_embeddings(tmp_path / f"one.{ending}").vectors, unit(vectors[:1]), atol=1e-7)


def test_column_order_of_the_array_does_not_matter(tmp_path, vectors):
    np.save(tmp_path / "f.npy", np.asfortranarray(vectors))
    np.testing.assert_allclose(read_embeddings(tmp_path / "f.npy").vectors, unit(vectors), atol=1e-7)


def test_big_endian(tmp_path, vectors):
    np.save(tmp_path / "b.npy", vectors.astype(">f4"))
    np.testing.assert_allclose(read_embeddings(tmp_path / "b.npy").vectors, unit(vectors), atol=1e-7)


@pytest.mark.parametrize("ending", ["npz", "pt", "safetensors"])
def test_one_array_of_several_is_named(tmp_path, vectors, ending):
    path = tmp_path / f"many.{ending}"
    both = {"bear": vectors[:2], "wolf": vectors[2:5]}
    if ending == "npz":
        np.savez(path, **both)
    elif ending == "pt":
        torch.save({k: torch.from_numpy(v) for k, v in both.items()} | {"epoch": 3}, path)
    else:
        save_file(both, path)
    np.testing.assert_allclose(read_embeddings(f"{path}#wolf").vectors, unit(both["wolf"]), atol=1e-7)
    with pytest.raises(RequestError, match=r"several.*'bear', 'wolf'.*#KEY"):
        read_embeddings(path)
    with pytest.raises(RequestError, match=r"no .* 'lynx'"):
        read_embeddings(f"{path}#lynx")


def test_bfloat16_tensors(tmp_path, vectors):
    torch.save(torch.from_numpy(vectors).bfloat16(), tmp_path / "b.pt")
    np.testing.assert_allclose(read_embeddings(tmp_path / "b.pt").vectors, unit(vectors), atol=0.01)
    save_torch({"e": torch.from_numpy(vectors).bfloat16()}, tmp_path / "b.safetensors")
    with pytest.raises(RequestError, match="BF16; save them as float32"):
        read_embeddings(tmp_path / "b.safetensors")


def test_a_file_with_a_hash_in_its_name(tmp_path, vectors):
    np.save(tmp_path / "bear#2.npy", vectors)
    assert len(read_embeddings(tmp_path / "bear#2.npy")) == 7
    with pytest.raises(RequestError, match="single array"):
        read_embeddings(f"{tmp_path / 'bear#2.npy'}#e")


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "numbered"])
def test_parquet_of_other_programs(tmp_path, vectors, kind):
    path = tmp_path / "e.parquet"
    if kind == "numbered":
        # Out of order, from 1, and with a column of numbers that is none of theirs.
        order = np.random.default_rng(1).permutation(16)
        frame = pd.DataFrame({f"dim_{k + 1}": vectors[:, k] for k in order} | {"lat": np.arange(7.0)})
        frame.insert(0, "name", [f"n{i}" for i in range(7)])
        frame.to_parquet(path)
    else:
        types = {
            "list": pa.list_(pa.float32()),
            "large_list": pa.large_list(pa.float64()),
            "fixed": pa.list_(pa.float16(), 16),
        }
        dtype = {"large_list": np.float64, "fixed": np.float16}.get(kind, np.float32)
        rows = pa.array([list(r) for r in vectors.astype(dtype)], types[kind])
        pq.write_table(pa.table({"name": [f"n{i}" for i in range(7)], "vec": rows}), path, row_group_size=3)
    read = read_embeddings(path, 16)
    np.testing.assert_allclose(read.vectors, unit(vectors), atol=1e-3 if kind == "fixed" else 1e-7)
    assert read.labels == tuple(f"n{i}" for i in range(7))


def test_parquet_in_many_batches(tmp_path):
    x = np.random.default_rng(2).normal(size=(10_000, 4)).astype(np.float32)
    write_embeddings(
        tmp_path / "e.parquet",
        x,
        {"id": [str(i) for i in range(len(x))], "modality": ["image"] * len(x)},
        model="m",
        digest="d",
    )
    read = read_embeddings(tmp_path / "e.parquet")
    np.testing.assert_allclose(read.vectors, unit(x), atol=1e-7)
    assert read.labels[-1] == "9999" and len(read.columns["modality"]) == 10_000


def test_several_vector_columns_need_a_name(tmp_path, vectors):
    columns = {k: pa.array([list(r) for r in vectors]) for k in ("a", "b")}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(RequestError, match="'a', 'b'"):
        read_embeddings(tmp_path / "e.parquet")
    assert read_embeddings(f"{tmp_path / 'e.parquet'}#b").dim == 16


def test_round_trip_with_metadata_and_other_readers(tmp_path, vectors):
    columns = {
        "id": ["a", "b", "c", "d", "e", "f", "g"],
        "modality": ["location"] * 7,
        "path": [None] * 6 + ["x.jpg"],
        "lon": list(np.linspace(-170, 170, 7)),
        "lat": [None] + [10.0] * 6,
    }
    path = write_embeddings(tmp_path / "new" / "e.parquet", vectors, columns, model="taxabind", digest="0123")
    read = read_embeddings(path, 16)
    np.testing.assert_allclose(read.vectors, unit(vectors), atol=1e-7)
    assert read.metadata == {"model": "taxabind", "digest": "0123", "dim": "16"}
    assert read.labels == tuple("abcdefg")
    assert {k: list(v) for k, v in read.columns.items()} == columns
    schema = pq.read_schema(path)
    assert schema.names == ["id", "modality", "path", "lon", "lat", "embedding"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), 16)
    frame = pd.read_parquet(path)
    np.testing.assert_array_equal(np.stack(frame["embedding"]), read.vectors)
    assert list(frame["id"]) == list("abcdefg")
    places = frame.dropna(subset=["lon", "lat"])
    points = geopandas.GeoDataFrame(places, geometry=geopandas.points_from_xy(places.lon, places.lat), crs="EPSG:4326")
    assert len(points) == 6 and points.total_bounds[2] == 170


def test_existing_output_is_kept_and_nothing_is_half_written(tmp_path, vectors):
    path = tmp_path / "e.parquet"
    path.write_bytes(b"mine")
    columns = {"id": list("abcdefg"), "modality": ["image"] * 7}
    with pytest.raises(OutputError, match="exists already"):
        write_embeddings(path, vectors, columns, model="m", digest="d")
    assert path.read_bytes() == b"mine"
    bad = vectors.copy()
    bad[3, 2] = np.nan
    with pytest.raises(RequestError, match="row 3"):
        write_embeddings(tmp_path / "bad.parquet", bad, columns, model="m", digest="d")
    with pytest.raises(RequestError, match="'id' has 6 values for 7"):
        write_embeddings(tmp_path / "bad.parquet", vectors, columns | {"id": list("abcdef")}, model="m", digest="d")
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]
    write_embeddings(path, vectors, columns, model="m", digest="d", overwrite=True)
    assert len(read_embeddings(path)) == 7


def test_wrong_size_names_both(tmp_path, vectors):
    np.save(tmp_path / "bear.npy", vectors)
    with pytest.raises(RequestError) as error:
        read_embeddings(tmp_path / "bear.npy", 512, "model 'taxabind'")
    assert str(error.value) == ("embedding file 'bear.npy' has vectors of 16 numbers, but model 'taxabind' needs 512.")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(tmp_path, vectors, value):
    vectors[4, 3] = value
    np.save(tmp_path / "bear.npy", vectors)
    with pytest.raises(RequestError, match="row 4 holds a number that is not finite"):
        read_embeddings(tmp_path / "bear.npy")


def test_zero_vector_is_refused(tmp_path, vectors):
    vectors[5] = 0
    np.save(tmp_path / "bear.npy", vectors)
    with pytest.raises(RequestError, match="row 5 is all zeros"):
        read_embeddings(tmp_path / "bear.npy")


@given(arrays(np.float64, (3, 5), elements=st.floats(1e-3, 1.0) | st.floats(-1.0, -1e-3)), st.floats(-280, 280))
@settings(max_examples=60, deadline=None)
def test_scale_never_matters(x, exponent):
    np.testing.assert_allclose(unit_vectors(x * 10.0**exponent), unit_vectors(x), atol=2e-7)


class Evil:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return (open, ("/nonexistent/evil", "w"))


def test_nothing_is_unpickled(tmp_path):
    objects = np.empty(2, object)
    objects[:] = [Evil(), Evil()]
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "o.npz", o=objects)
    torch.save({"e": Evil()}, tmp_path / "o.pt")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, reason in [
        ("o.npy", "never unpickled"),
        ("o.npz", "never unpickled"),
        ("o.pt", "nothing else is unpickled"),
        ("raw.npy", "cannot be read"),
        ("old.pt", "zip format"),
    ]:
        with pytest.raises(RequestError, match=reason):
            read_embeddings(tmp_path / name)


def header_of(shape, dtype="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_bombs_are_refused_by_their_headers(tmp_path):
    huge = (1 << 40, 512)
    (tmp_path / "bomb.npy").write_bytes(header_of(huge) + b"\0" * 64)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e.npy", header_of(huge) + b"\0" * (1 << 20))
    torch.save(torch.ones(1).expand(1 << 30), tmp_path / "bomb.pt")
    head = json.dumps({"e": {"dtype": "F32", "shape": [1 << 40, 512], "data_offsets": [0, 64]}}).encode()
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 64)
    for name in ("bomb.npy", "bomb.npz", "bomb.pt", "bomb.safetensors"):
        with pytest.raises((TooLargeError, RequestError)):
            read_embeddings(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "bomb2.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e.npy", header_of((MAX_VALUES // 512 + 1, 512)) + b"\0" * (1 << 20))
    with pytest.raises(TooLargeError, match="at most"):
        read_embeddings(tmp_path / "bomb2.npz")


def test_a_parquet_bomb_is_refused_by_its_own_count(tmp_path, monkeypatch):
    rows = pa.array([[0.5] * 100] * 1000, pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": rows}), tmp_path / "e.parquet")
    monkeypatch.setattr("sdm.files.embeddings.MAX_VALUES", 99_999)
    with pytest.raises(TooLargeError, match="1e\\+05"):
        read_embeddings(tmp_path / "e.parquet")


@pytest.mark.parametrize("ending", [*WRITERS, "parquet"])
def test_any_cut_gives_one_sentence(tmp_path, vectors, ending):
    path = tmp_path / f"bear.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"embedding": [list(map(float, r)) for r in vectors]}), path)
    else:
        WRITERS[ending](path, vectors)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for cut in [0, 1, 7, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 12)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(SdmError) as error:
            read_embeddings(path)
        assert "bear" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [*WRITERS, "parquet"])
def test_random_damage_never_escapes(tmp_path, vectors, ending):
    path = tmp_path / f"bear.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"embedding": [list(map(float, r)) for r in vectors]}), path)
    else:
        WRITERS[ending](path, vectors)
    whole = path.read_bytes()
    rng = np.random.default_rng(4)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            read = read_embeddings(path)
        except SdmError:
            continue
        np.testing.assert_allclose(np.linalg.norm(read.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: np.save(p / "x.npy", np.ones((2, 3, 4))), "shape \\(2, 3, 4\\)"),
        (lambda p: np.save(p / "x.npy", np.float32(1)), "shape \\(\\)"),
        (lambda p: np.save(p / "x.npy", np.ones((0, 4))), "no vectors"),
        (lambda p: np.save(p / "x.npy", np.ones((4, 0))), "0 numbers"),
        (lambda p: np.save(p / "x.npy", np.ones((2, 4), np.int8)), "int8"),
        (lambda p: np.save(p / "x.npy", np.ones((2, 4), complex)), "complex128"),
        (lambda p: np.savez(p / "x.npz"), "no array"),
        (lambda p: torch.save([1, 2], p / "x.pt"), "a list"),
        (lambda p: torch.save(torch.ones(3, dtype=torch.int64), p / "x.pt"), "int64"),
        (lambda p: pq.write_table(pa.table({"a": ["x"]}), p / "x.parquet"), "no set of numbered column"),
        (lambda p: pq.write_table(pa.table({"e": [[1.0, 2.0], [1.0]]}), p / "x.parquet"), "different lengths"),
        (lambda p: pq.write_table(pa.table({"e": [[1.0, 2.0], None]}), p / "x.parquet"), "row 1 has no vector"),
        (lambda p: pq.write_table(pa.table({"e": [[1.0, None]]}), p / "x.parquet"), "lacks a number"),
        (lambda p: pq.write_table(pa.table({"e": pa.array([], pa.list_(pa.float32()))}), p / "x.parquet"), "no vec"),
        (
            lambda p: pq.write_table(
                pa.table({"e0": [1.0], "e1": [None]}).cast(pa.schema([("e0", pa.float64()), ("e1", pa.float64())])),
                p / "x.parquet",
            ),
            "lacks a number",
        ),
        (lambda p: (p / "x.csv").write_text("1,2"), "must end in one of"),
        (lambda p: (p / "x.npy").mkdir(), "does not exist or is not a file"),
    ],
)
def test_what_is_no_embedding(tmp_path, make, reason):
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(RequestError, match=reason):
        read_embeddings(path)


def test_missing_file_and_hostile_names(tmp_path):
    for name in ("none.npy", "x" * 5000 + ".npy", "a\0b.npy", "\x1b[31m.npy#\x1b[0m"):
        with pytest.raises(RequestError) as error:
            read_embeddings(name)
        assert str(error.value).isprintable()


def test_mean_of_unit_vectors_not_of_raw_ones():
    mean = mean_vector(np.array([[100.0, 0.0], [0.0, 0.01]]))
    np.testing.assert_allclose(mean, [np.sqrt(0.5)] * 2, atol=1e-7)
    assert mean.dtype == np.float32
    with pytest.raises(RequestError, match="cancel out"):
        mean_vector(np.array([[1.0, 0.0], [-5.0, 0.0]]))
    with pytest.raises(RequestError, match="no embeddings"):
        mean_vector(np.empty((0, 4)))


def test_reading_npy_needs_no_torch_nor_pyarrow():
    import subprocess

    code = (
        "import sys, numpy as np, tempfile, pathlib; from sdm.files.embeddings import read_embeddings\n"
        "p = pathlib.Path(tempfile.mkdtemp()) / 'a.npy'; np.save(p, np.ones(4)); read_embeddings(p)\n"
        "print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
