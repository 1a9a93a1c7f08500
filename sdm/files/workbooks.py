"""Workbooks of Excel from anywhere, looked through before openpyxl reads them."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from functools import partial
from pathlib import Path

from sdm.errors import RequestError, TooLargeError, quoted
from sdm.files.xml import PIECE, BrokenXML, RefusedXML, refuse_costly

MAX_BYTES = 64 << 20
"""Of a workbook, unpacked."""
MAX_PARTS = 2_000
"""Files in a workbook."""
_ELEMENTS = {"worksheet": 1_000_000, "sst": 1_000_000, "": 50_000}
"""Elements of a part of a workbook, by its kind: openpyxl takes microseconds for a cell, and keeps whole the small
ones."""


def check_workbook(path: str | Path) -> None:
    """Raise RequestError or TooLargeError for a workbook that openpyxl could not read in seconds; other files pass."""
    path = Path(path)
    if path.suffix.lower() != ".xlsx" or not path.is_file():
        return
    # What is no zip file, its reader refuses.
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_PARTS or sum(member.file_size for member in members) > MAX_BYTES:
            raise TooLargeError(
                f"{path} unpacks to more than {MAX_BYTES:,} bytes or {MAX_PARTS:,} files; keep the column of names."
            )
        for member in members:
            try:
                # Parts that are no XML are pictures; openpyxl sees for itself.
                with contextlib.suppress(BrokenXML), archive.open(member) as file:
                    refuse_costly(iter(partial(file.read, PIECE), b""), _ELEMENTS)
            except (RefusedXML, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise RequestError(
                    f"species list {quoted(str(path), 120)}: {quoted(member.filename)} {error}; save the column of "
                    "names as CSV."
                ) from None
