"""Errors that a user can cause, each with the exit code of the command line.

A message is one sentence (or two) that names the value, the rule it breaks and the remedy.

Exit codes: 0 done, 1 unexpected failure, 2 bad request, 3 unknown or ambiguous species, 4 unusable layer, region index
or occurrence records, 5 unusable model, 6 output exists or cannot be written, 7 request too large, 8 cluster
unreachable or its workers lost, 130 interrupted (SIGINT), 143 terminated (SIGTERM).
"""


class SdmError(Exception):
    """Base class of the errors in this module."""

    exit_code = 1


class RequestError(SdmError):
    """An option or argument is invalid: resolution, CRS, region, modality, device."""

    exit_code = 2


class BoxError(RequestError):
    """A bounding box or region is reversed, empty, not finite or outside the globe."""


class SpeciesNameError(SdmError):
    """A species name is unknown, malformed or ambiguous."""

    exit_code = 3


class LayerError(SdmError):
    """A raster or vector layer cannot be read, has no usable georeference, or does not overlap the map."""

    exit_code = 4


class RecordsError(SdmError):
    """Occurrence records cannot be read, or their columns or species are ambiguous."""

    exit_code = 4


class ModelError(SdmError):
    """A model is missing, incomplete or corrupt, or cannot answer the request."""

    exit_code = 5


class OutputError(SdmError):
    """An output already exists, cannot be written, or failed the check after writing."""

    exit_code = 6


class TooLargeError(SdmError):
    """The request exceeds a size limit. Raised before anything is allocated."""

    exit_code = 7


class ClusterError(SdmError):
    """A Dask cluster does not answer, cannot run the tasks, or lost its workers."""

    exit_code = 8


class ClusterWarning(UserWarning):
    """A problem with a cluster that does not stop the run."""


class RegionIndexError(SdmError):
    """A region index cannot be read, was made with another model or other layers, or does not cover the request."""

    exit_code = 4


def quoted(value: object, limit: int = 60) -> str:
    """Return the shortened `repr` of a value, with control characters escaped so that it is safe on a terminal."""
    if isinstance(value, str):
        text = repr(value[:limit] + "…" if len(value) > limit else value)
    else:
        text = repr(value)[: limit + 2]
    # Printable characters of all scripts stay as they are; stderr escapes those it cannot encode.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
