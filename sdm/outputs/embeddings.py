"""Embeddings to Parquet, for pandas, DuckDB, GeoPandas and `--embedding`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm.errors import RequestError
from sdm.files.atomic import Staging, disk_errors
from sdm.files.embeddings import VECTOR, unit_vectors

COLUMNS = ("id", "modality", "path", "text", "lon", "lat")
"""Before the vectors; lon and lat are WGS84 degrees. All but id and modality may be missing."""


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
    """Write (n, dim) vectors as a Parquet file, complete or not at all, and return its path.

    `columns`: lists of n, among `COLUMNS`; id and modality are needed. The vectors are stored with length
    1 in the column `embedding` (fixed-size list of float32), the model in the schema's metadata as
    `sdm.model`, `sdm.digest` and `sdm.dim`; `sdm.month`, 1 to 12, where the places were encoded for one.

    Raises RequestError for vectors or columns that do not fit, OutputError when the file exists (without
    `overwrite`) or cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RequestError("writing embeddings needs the library pyarrow, which is not installed.") from error

    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise RequestError(f"embeddings are written as Parquet: call them {path.stem}.parquet, not {path.name!r}.")
    n, dim = vectors.shape
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown or not {"id", "modality"} <= set(columns):
        raise RequestError(f"columns must be id, modality and any of {', '.join(COLUMNS[2:])}; got {sorted(columns)}.")
    if wrong := [c for c, values in columns.items() if len(values) != n]:
        raise RequestError(f"column {wrong[0]!r} has {len(columns[wrong[0]])} values for {n} vectors.")
    kinds = dict.fromkeys(COLUMNS, pa.string()) | {"lon": pa.float64(), "lat": pa.float64()}
    arrays = {c: pa.array(list(columns[c]), kinds[c]) for c in COLUMNS if c in columns}
    flat = pa.array(np.ascontiguousarray(unit_vectors(vectors)).reshape(-1))
    arrays[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, dim)
    metadata = {"sdm.model": model, "sdm.digest": digest, "sdm.dim": str(dim)}
    metadata |= {"sdm.month": str(month)} if month else {}
    table = pa.table(arrays).replace_schema_metadata(metadata)
    with Staging(path.parent, [path.name], overwrite=overwrite) as staging:
        with disk_errors(path):
            # Random directions do not compress; pages of plain floats are what other readers map fastest.
            pq.write_table(table, staging.path(path.name), use_dictionary=["modality"], compression="zstd")
        staging.publish()
    return path
