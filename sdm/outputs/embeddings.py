"""Embeddings to Parquet, for pandas, DuckDB, GeoPandas and `--embedding`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import RequestError
from sdm.files.atomic import Staging, disk_errors
from sdm.files.embeddings import VECTOR, unit_vectors

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "modality", "path", "text", "lon", "lat")
"""Columns before the vectors; lon and lat are WGS84 degrees. All but id and modality are optional."""


def write_embeddings(
    path: str | Path,
    vectors: np.ndarray,
    columns: Mapping[str, Sequence[Any]],
    *,
    model: str,
    digest: str,
    overwrite: bool = False,
    month: int = 0,
) -> Path:
    """Write embeddings as a Parquet file, complete or not at all.

    The vectors are stored with length 1 in the column `embedding` (fixed-size list of float32), and the
    model in the schema's metadata as `sdm.model`, `sdm.digest`, `sdm.dim` and, where given, `sdm.month`.

    Parameters
    ----------
    path
        The file, named *.parquet.
    vectors
        (n, dim) numbers.
    columns
        Lists of n values, named as in `COLUMNS`; id and modality are required.
    model, digest
        Name and hash of the model.
    overwrite
        Replace an existing file.
    month
        Month the places were encoded for, 1 to 12; 0 for the whole year.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RequestError
        For a path, vectors or columns that do not fit.
    OutputError
        When the file exists, without `overwrite`, or cannot be written.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RequestError("writing embeddings needs the library pyarrow, which is not installed.") from error

    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise RequestError(f"embeddings are written as Parquet: call them {path.stem}.parquet, not {path.name!r}.")
    metadata = {"sdm.model": model, "sdm.digest": digest, "sdm.dim": str(vectors.shape[1])}
    metadata |= {"sdm.month": str(month)} if month else {}
    table = _table(vectors, columns).replace_schema_metadata(metadata)
    with Staging(path.parent, [path.name], overwrite=overwrite) as staging:
        with disk_errors(path):
            # Embeddings do not compress; plain pages of floats are the fastest to read.
            pq.write_table(table, staging.path(path.name), use_dictionary=["modality"], compression="zstd")
        staging.publish()
    return path


def _table(vectors: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The vectors and their columns. Raises RequestError where they do not fit."""
    import pyarrow as pa

    n, dim = vectors.shape
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown or not {"id", "modality"} <= set(columns):
        raise RequestError(f"columns must be id, modality and any of {', '.join(COLUMNS[2:])}; got {sorted(columns)}.")
    if wrong := [c for c, values in columns.items() if len(values) != n]:
        raise RequestError(f"column {wrong[0]!r} has {len(columns[wrong[0]])} values for {n} vectors.")
    types = dict.fromkeys(COLUMNS, pa.string()) | {"lon": pa.float64(), "lat": pa.float64()}
    arrays = {c: pa.array(list(columns[c]), types[c]) for c in COLUMNS if c in columns}
    flat = pa.array(np.ascontiguousarray(unit_vectors(vectors)).reshape(-1))
    arrays[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, dim)
    return pa.table(arrays)
