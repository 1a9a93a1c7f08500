"""Parquet files from anywhere: a few bytes of a compressed column can stand for gigabytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdm.errors import SdmError, TooLargeError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_BYTES = 16 << 30
"""Bytes of the columns that are read, unpacked."""
BOMB_BYTES, BOMB_RATIO = 64 << 20, 250
"""As in `sdm.files.archives`, but higher: a column of equal values takes nothing in an honest table too."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 12}
_AT_ONCE, _NESTED_AT_ONCE = 1024, 16


def refuse_large_parquet(
    file: pq.ParquetFile,
    path: Path,
    columns: Sequence[str] | None,
    source: str,
    error: type[SdmError],
    ratio: int = BOMB_RATIO,
) -> None:
    """Refuse a file whose columns would take far more memory than the file takes on the disk.

    Parameters
    ----------
    file, path
        The opened file, and where it is.
    columns
        Names of the top-level columns that will be read; None: all.
    source
        Name of the file, for messages.
    error
        Raised for a file that unpacks to more than `ratio` times its size, and more than 64 MiB.
    ratio
        See `error`.

    Raises
    ------
    TooLargeError
        The columns take more than MAX_BYTES.
    """
    limit = min(MAX_BYTES, max(BOMB_BYTES, ratio * path.stat().st_size))
    size, texts = _sizes(file, columns)
    if size <= limit and texts:
        size += _text_bytes(path, sorted(texts), limit - size)
    if size > MAX_BYTES:
        raise TooLargeError(f"{source} unpacks to more than {MAX_BYTES >> 30} GiB; split it.")
    if size > limit:
        raise error(f"{source} unpacks to more than {ratio} times its size; it is not read.")


def _sizes(file: pq.ParquetFile, columns: Sequence[str] | None) -> tuple[int, set[str]]:
    """(Bytes of the numbers in columns and of packed texts, paths of the columns of text)."""
    total, texts = 0, set()
    for group in range(file.metadata.num_row_groups):
        chunks = file.metadata.row_group(group)
        for i in range(chunks.num_columns):
            chunk = chunks.column(i)
            if columns is not None and chunk.path_in_schema.partition(".")[0] not in columns:
                continue
            width = _WIDTHS.get(chunk.physical_type, file.schema.column(i).length)
            if chunk.physical_type == "BYTE_ARRAY":
                width = 4
                texts.add(chunk.path_in_schema)
            total += max(chunk.num_values * width, chunk.total_uncompressed_size)
    return total, texts


def _text_bytes(path: Path, texts: list[str], limit: int) -> int:
    """Bytes of the texts at these paths, written out; counting ends above `limit`.

    Dictionaries stay dictionaries: one long text, repeated in every row, is not written out to count it.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import pyarrow.types as types

    plain = [text for text in texts if "." not in text]
    total = 0
    with pq.ParquetFile(path, read_dictionary=plain) as file:
        names = sorted({text.partition(".")[0] for text in texts} & set(file.schema_arrow.names))
        rows = _AT_ONCE if len(plain) == len(texts) else _NESTED_AT_ONCE
        for batch in file.iter_batches(batch_size=rows, columns=names):
            for column in batch.columns:
                if types.is_dictionary(column.type):
                    lengths = pc.binary_length(column.dictionary)
                    total += pc.sum(lengths.take(column.indices), min_count=0).as_py() or 0
                else:
                    total += column.nbytes
                if total > limit:
                    return total
    return total
