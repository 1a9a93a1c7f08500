"""Embeddings from files: vectors that another program, or `sdm embed`, has written.

    read_embeddings("bear.npy", dim=512).vectors          # (n, 512) float32, each of length 1
    read_embeddings("many.npz#bear", dim=512)             # one array of several, by its key

A file is hostile until read: nothing is unpickled (`allow_pickle=False`, `weights_only=True`), and sizes
are checked on the header, before the values are read.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sdm.errors import RequestError, TooLargeError, quoted
from sdm.files.parquet import refuse_large_parquet

FORMATS = (".npy", ".npz", ".pt", ".safetensors", ".parquet")
MAX_VALUES = 1 << 29
"""Numbers in one array: a million vectors of 512, 2 GiB as float32."""
MAX_BYTES = 8 * MAX_VALUES
MAX_DIM = 65_536
VECTOR = "embedding"
"""The column of vectors in Parquet files that `sdm embed` writes."""
LABELS = ("id", "label", "name", "species")
"""Columns of a Parquet file that name its rows; the first of them that it has is taken."""

_BLOCK = 1 << 14
_VECTOR_RATIO, _TEXT_RATIO = 16, 50
"""Times its own size that a Parquet file may unpack to, above 64 MiB."""
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Embeddings:
    """Vectors of one file, checked and of unit length."""

    vectors: np.ndarray
    """(n, dim) float32, each row of length 1."""
    labels: tuple[str, ...]
    """One per row: the `id` (or `label`, `name`, `species`) of a Parquet file, else "0", "1", ..."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The other columns of a Parquet file: text and numbers only, None where missing."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of a Parquet file written by `sdm embed`: model, digest, dim."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]


def read_embeddings(source: str | Path, dim: int | None = None, owner: str = "this model") -> Embeddings:
    """Read one or several vectors from a .npy, .npz, .pt, .safetensors or .parquet file.

    `source` is a path, with `#key` appended where the file holds several arrays (in Parquet: columns).
    Arrays are (dim,) or (n, dim), floating point. Parquet holds a column of lists, or one column per
    dimension numbered at the end of its name (e0, e1, ...). `dim`: the length that `owner` needs.

    Raises RequestError when the file is missing, of another format, damaged, holds several arrays
    without a key, vectors of another length, or numbers that are not finite or all zero; TooLargeError
    above 2^29 numbers.
    """
    path, key = _split(source)
    name = quoted(path.name)
    readers = {".npy": _npy, ".npz": _npz, ".pt": _pt, ".safetensors": _safetensors, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(f"embedding file {name} must end in one of {', '.join(FORMATS)}.")
    try:
        if not path.is_file():
            raise RequestError(f"embedding file {quoted(str(path), 200)} does not exist or is not a file.")
        if path.stat().st_size > MAX_BYTES:
            raise TooLargeError(f"embedding file {name} is larger than {MAX_BYTES >> 30} GiB; split it.")
        read = reader(path, key, name, dim)
    except (RequestError, TooLargeError):
        raise
    except ImportError as error:
        raise RequestError(f"embedding file {name} needs the library {error.name}, which is not installed.") from error
    except Exception as error:  # parsers meet hostile bytes with errors of every kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError(f"embedding file {name} cannot be read: {reason}.") from error
    _check_shape(read.vectors.shape, name, dim, owner)
    labels = read.labels or tuple(str(i) for i in range(len(read.vectors)))
    return Embeddings(unit_vectors(read.vectors, f"embedding file {name}"), labels, read.columns, read.metadata)


def unit_vectors(vectors: np.ndarray, owner: str = "the embeddings") -> np.ndarray:
    """(n, dim) of any float type -> (n, dim) float32, each row of length 1.

    Raises RequestError naming the first row that is all zero or holds a number that is not finite.
    """
    out = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK], np.float64)
        with np.errstate(invalid="ignore"):
            largest = np.abs(block).max(axis=1, keepdims=True)
        if not np.isfinite(largest).all():
            row = start + int(np.flatnonzero(~np.isfinite(largest[:, 0]))[0])
            raise RequestError(f"{owner}: row {row} holds a number that is not finite.")
        if not largest.all():
            row = start + int(np.flatnonzero(largest[:, 0] == 0)[0])
            raise RequestError(f"{owner}: row {row} is all zeros and has no direction.")
        # By the largest number first: squares of 1e300 or 1e-300 would be infinite or zero.
        block = block / largest
        out[start : start + _BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out


def mean_vector(vectors: np.ndarray) -> np.ndarray:
    """Several vectors as one: (n, dim) -> (dim,) float32, the normalised mean of the normalised vectors.

    Raises RequestError when there is none, one is unusable, or they cancel out.
    """
    if vectors.ndim != 2 or not vectors.size:
        raise RequestError("there are no embeddings to average.")
    mean = unit_vectors(vectors).astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise RequestError("the embeddings point in opposite directions and cancel out; give fewer or others.")
    return (mean / length).astype(np.float32)


def _split(source: str | Path) -> tuple[Path, str | None]:
    """("many.npz#bear") -> (Path("many.npz"), "bear"); a file that has a # in its own name stays whole."""
    text = str(source)
    if "\0" in text:
        raise RequestError("an embedding's path holds a null character.")
    file, mark, key = text.rpartition("#")
    try:
        whole = Path(text).exists()
    except OSError:  # a name too long
        whole = False
    if not mark or whole:
        return Path(text), None
    return Path(file), key


def _check_shape(shape: tuple[int, ...], name: str, dim: int | None, owner: str) -> None:
    if not shape[0]:
        raise RequestError(f"embedding file {name} holds no vectors.")
    if dim is not None and shape[1] != dim:
        raise RequestError(f"embedding file {name} has vectors of {shape[1]} numbers, but {owner} needs {dim}.")


def _check_size(shape: Sequence[int], name: str) -> tuple[int, int]:
    """(n, dim) of an array whose header has `shape`, before its values are read."""
    if len(shape) not in (1, 2):
        raise RequestError(
            f"embedding file {name} holds an array of shape {tuple(shape)}; one vector (dim,) or several (n, dim) "
            "are needed."
        )
    rows, dim = (1, *shape) if len(shape) == 1 else shape
    if not 0 < dim <= MAX_DIM:
        raise RequestError(f"embedding file {name} has vectors of {dim} numbers; 1 to {MAX_DIM} are possible.")
    if math.prod(shape) > MAX_VALUES:
        raise TooLargeError(f"embedding file {name} holds {math.prod(shape):.3g} numbers; at most {MAX_VALUES}.")
    return int(rows), int(dim)


def _choose(keys: Sequence[str], key: str | None, name: str, what: str = "array") -> str:
    """The key to read: the one asked for, or the only one there is."""
    if not keys:
        raise RequestError(f"embedding file {name} holds no {what} of numbers.")
    listed = ", ".join(quoted(k) for k in sorted(keys)[:12]) + (", ..." if len(keys) > 12 else "")
    if key is None:
        if len(keys) > 1:
            raise RequestError(f"embedding file {name} holds several {what}s ({listed}); name one, as in {name}#KEY.")
        return keys[0]
    if key not in keys:
        raise RequestError(f"embedding file {name} has no {what} {quoted(key)}; it has {listed}.")
    return key


def _no_key(key: str | None, name: str) -> None:
    if key is not None:
        raise RequestError(f"embedding file {name} holds a single array; leave out #{key[:40]}.")


def _array(stream: BinaryIO, size: int, name: str) -> np.ndarray:
    """The array of an opened .npy of `size` bytes -> (n, dim). Header first: a false shape costs nothing."""
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise RequestError(f"embedding file {name} is of npy version {version}; save it again with numpy.save.")
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if dtype.hasobject:
        raise RequestError(
            f"embedding file {name} holds Python objects, which are never unpickled; save it as float32."
        )
    if dtype.kind != "f":
        raise RequestError(f"embedding file {name} holds numbers of type {dtype}; floating point is needed.")
    rows, dim = _check_size(shape, name)
    wanted = rows * dim * dtype.itemsize
    if size - stream.tell() < wanted:
        raise RequestError(f"embedding file {name} is truncated: it has fewer values than its header states ({shape}).")
    flat = np.frombuffer(stream.read(wanted), dtype)
    return flat.reshape(dim, rows).T if fortran else flat.reshape(rows, dim)


def _npy(path: Path, key: str | None, name: str, dim: int | None) -> Embeddings:
    _no_key(key, name)
    with path.open("rb") as stream:
        return Embeddings(_array(stream, path.stat().st_size, name), ())


def _npz(path: Path, key: str | None, name: str, dim: int | None) -> Embeddings:
    with zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
        member = members[_choose(list(members), key, name)]
        if member.file_size > MAX_BYTES:
            raise TooLargeError(f"embedding file {name} unpacks to {member.file_size:.3g} bytes; split it.")
        with archive.open(member) as packed:
            # At most the size the archive states; the shape is checked on the first few hundred bytes.
            head = packed.read(1 << 16)
            _array_header_only(head, member.file_size, name)
            data = head + packed.read(member.file_size)
    return Embeddings(_array(io.BytesIO(data), len(data), name), ())


def _array_header_only(head: bytes, size: int, name: str) -> None:
    """Refuse by header what `_array` would refuse after everything has been unpacked."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version in _NPY_HEADERS:
        _check_size(_NPY_HEADERS[version](stream)[0], name)


def _pt(path: Path, key: str | None, name: str, dim: int | None) -> Embeddings:
    # The zip format only: in the older one, sizes are known to the pickle alone.
    if not zipfile.is_zipfile(path):
        raise RequestError(f"embedding file {name} is not in torch's zip format; save it again with torch.save.")
    with zipfile.ZipFile(path) as archive:
        if sum(m.file_size for m in archive.infolist()) > MAX_BYTES:
            raise TooLargeError(f"embedding file {name} unpacks to more than {MAX_BYTES >> 30} GiB; split it.")
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RequestError(
            f"embedding file {name} holds more than tensors, and nothing else is unpickled; save a plain tensor."
        ) from error
    if isinstance(loaded, torch.Tensor):
        _no_key(key, name)
        tensor = loaded
    elif isinstance(loaded, dict):
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
        tensor = tensors[_choose(list(tensors), key, name, "tensor")]
    else:
        raise RequestError(f"embedding file {name} holds a {type(loaded).__name__}, not a tensor; save a plain tensor.")
    if tensor.layout != torch.strided or not tensor.is_floating_point() or tensor.device.type != "cpu":
        raise RequestError(f"embedding file {name} holds a tensor of {tensor.dtype}; a dense float tensor is needed.")
    # A tensor can be larger than its file: strides of zero repeat one number forever.
    rows, columns = _check_size(tuple(tensor.shape), name)
    return Embeddings(tensor.detach().float().reshape(rows, columns).numpy(), ())


def _safetensors(path: Path, key: str | None, name: str, dim: int | None) -> Embeddings:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        chosen = _choose(list(file.keys()), key, name, "tensor")
        header = file.get_slice(chosen)
        if header.get_dtype() not in ("F16", "F32", "F64"):
            raise RequestError(
                f"embedding file {name} holds numbers of type {header.get_dtype()}; save them as float32."
            )
        rows, columns = _check_size(header.get_shape(), name)
        return Embeddings(file.get_tensor(chosen).reshape(rows, columns), ())


def _parquet(path: Path, key: str | None, name: str, dim: int | None) -> Embeddings:
    import pyarrow.parquet as pq

    # Memory-mapped reading would save little: the pages are compressed.
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise RequestError(f"embedding file {name} has a column twice.")
        lists = [f.name for f in schema if _is_vector(f.type)]
        numbered = {} if lists else _numbered(schema)
        if key is None and VECTOR in lists:
            key = VECTOR
        chosen = _choose(lists or list(numbered), key, name, "column" if lists else "set of numbered column")
        wanted = [chosen] if lists else numbered[chosen]
        _check_leaves(file.metadata, wanted, name)
        others = [f.name for f in schema if f.name not in wanted and _is_plain(f.type)]
        # Vectors hardly compress: what unpacks to many times its size is not one of them.
        refuse_large_parquet(file, path, wanted, f"embedding file {name}", RequestError, _VECTOR_RATIO)
        refuse_large_parquet(file, path, others, f"embedding file {name}", RequestError, _TEXT_RATIO)
        labels = _label_column(others)
        parts: list[np.ndarray] = []
        columns: dict[str, list[Any]] = {c: [] for c in others}
        for batch in file.iter_batches(batch_size=4096, columns=[*wanted, *others]):
            parts.append(
                _list_rows(batch.column(chosen), name, sum(len(part) for part in parts))
                if lists
                else _number_rows(batch, wanted, name)
            )
            if parts[-1].shape[1] != parts[0].shape[1]:
                raise RequestError(f"embedding file {name} has vectors of different lengths.")
            for column in others:
                columns[column] += batch.column(column).to_pylist()
    if not parts:
        raise RequestError(f"embedding file {name} holds no vectors.")
    names = tuple(str(i if v is None else v) for i, v in enumerate(columns[labels])) if labels else ()
    raw = schema.metadata or {}
    stated = {key: raw.get(f"sdm.{key}".encode()) for key in ("model", "digest", "dim", "month")}
    metadata = {key: value.decode("utf-8", "replace") for key, value in stated.items() if value is not None}
    return Embeddings(np.concatenate(parts), names, columns, metadata)


def _is_vector(kind: Any) -> bool:
    import pyarrow.types as types

    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return listed and types.is_floating(kind.value_type)


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_floating(kind)


def _label_column(columns: Sequence[str]) -> str | None:
    return next((c for c in LABELS if c in columns), None)


def _numbered(schema: Any) -> dict[str, list[str]]:
    """{"e": ["e0", "e1", ...]}: floating columns whose names differ in a number at the end, in its order."""
    import pyarrow.types as types

    groups: dict[str, dict[int, str]] = {}
    for column in schema:
        match = re.fullmatch(r"(.*?)(\d{1,6})", column.name)
        if match and types.is_floating(column.type):
            groups.setdefault(match[1], {})[int(match[2])] = column.name
    whole = {}
    for prefix, columns in groups.items():
        order = sorted(columns)
        if len(order) > 1 and order[0] in (0, 1) and order == list(range(order[0], order[0] + len(order))):
            whole[prefix] = [columns[i] for i in order]
    return whole


def _check_leaves(metadata: Any, wanted: Sequence[str], name: str) -> None:
    """Refuse by the file's own count of values, before a page is unpacked."""
    leaves = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for column in range(chunks.num_columns):
            chunk = chunks.column(column)
            if chunk.path_in_schema.split(".")[0] in wanted:
                leaves += chunk.num_values
    if leaves > MAX_VALUES:
        raise TooLargeError(f"embedding file {name} holds {leaves:.3g} numbers; at most {MAX_VALUES}.")


def _list_rows(column: Any, name: str, first: int) -> np.ndarray:
    """A batch of lists -> (n, dim)."""
    import pyarrow.types as types

    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise RequestError(f"embedding file {name}: row {row} has no vector.")
    values = column.flatten()
    if values.null_count:
        raise RequestError(f"embedding file {name}: a vector at or after row {first} lacks a number.")
    if types.is_fixed_size_list(column.type):
        dim = column.type.list_size
    else:
        lengths = np.diff(column.offsets.to_numpy())
        dim = int(lengths[0]) if len(lengths) else 0
        if (lengths != dim).any():
            raise RequestError(f"embedding file {name} has vectors of different lengths.")
    _check_size((len(column), dim), name)
    return values.to_numpy(zero_copy_only=False).reshape(len(column), dim)


def _number_rows(batch: Any, wanted: Sequence[str], name: str) -> np.ndarray:
    """A batch of numbered columns -> (n, dim)."""
    _check_size((batch.num_rows, len(wanted)), name)
    if any(batch.column(c).null_count for c in wanted):
        raise RequestError(f"embedding file {name}: a row lacks a number.")
    return np.stack([batch.column(c).to_numpy(zero_copy_only=False) for c in wanted], axis=1)
