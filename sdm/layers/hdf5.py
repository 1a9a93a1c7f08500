"""HDF5 files, netCDF-4 among them: some lead a reader to any other file, or in circles, and GDAL follows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdm.errors import LayerError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_OBJECTS = 20_000
"""Groups and datasets of a raster that are looked at."""


def is_hdf5(path: Path) -> bool:
    """Whether a file is one of HDF5, which may begin at 0, 512, 1024, 2048, ... bytes."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            at = 2 * at or 512
    return False


def refuse_references(path: Path, name: str) -> None:
    """Raise LayerError, with `name` for the raster, where an HDF5 file is not safe to read, or cannot be.

    That is one with external links, external storage, virtual datasets, which are in other files, or groups that
    contain themselves. No link to another file is followed to find out.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            for k, found in enumerate(_references(file)):
                if found:
                    raise LayerError(
                        f"{name} is an HDF5 file (netCDF-4) with {found}, which could read other files or never end; "
                        "convert it to GeoTIFF (gdal_translate does it) where it comes from."
                    )
                if k >= MOST_OBJECTS:
                    raise LayerError(
                        f"{name} is an HDF5 file (netCDF-4) of more than {MOST_OBJECTS:,} objects; convert the "
                        "variable that you need to GeoTIFF (gdal_translate does it)."
                    )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise LayerError(f"{name} cannot be read as HDF5 (netCDF-4): {error}") from error


def _references(file) -> Iterator[str]:
    """For each object: what makes the file unsafe, or "" where nothing does."""
    import h5py

    groups, seen = [file["/"]], set()
    while groups:
        group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            yield "a group in two places"
        seen.add(address)
        for key in group:
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                yield "an external link"
            elif isinstance(link, h5py.HardLink):
                entry = group.get(key)
                if isinstance(entry, h5py.Group):
                    groups.append(entry)
                yield _of_dataset(entry) if isinstance(entry, h5py.Dataset) else ""
            else:
                yield ""


def _of_dataset(dataset) -> str:
    if dataset.external:
        return "external storage"
    return "a virtual dataset" if dataset.is_virtual else ""
