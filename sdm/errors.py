"""Every error a user can cause, each with the exit code the command line ends with.

A message is one sentence (or two) that names the value, the rule it breaks and the remedy.
Exit codes: 0 done, 1 unexpected failure, 2 bad request, 3 unknown species or name, 4 unusable
input layer or occurrence records, 5 unusable model, 6 output cannot be written, 7 request too large, 8 cluster
not reachable or its workers lost, 130 interrupted (SIGINT), 143 terminated (SIGTERM).
"""


class SdmError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 1


class RequestError(SdmError):
    """An argument is not usable: box, resolution, CRS, region, modality, device, option."""

    exit_code = 2


class BoxError(RequestError):
    """The bounding box or region is reversed, empty, not finite or outside the globe."""


class SpeciesNameError(SdmError):
    """A species name is unknown, malformed or ambiguous."""

    exit_code = 3


class LayerError(SdmError):
    """An input raster or vector layer cannot be read, placed on the globe, or does not overlap."""

    exit_code = 4


class RecordsError(SdmError):
    """Occurrence records cannot be read, or it is not clear which columns or which species are meant."""

    exit_code = 4


class ModelError(SdmError):
    """A model folder is missing, incomplete, corrupt or does not fit the request."""

    exit_code = 5


class OutputError(SdmError):
    """An output exists already, cannot be written, or failed its check after writing."""

    exit_code = 6


class TooLargeError(SdmError):
    """The request is larger than the stated limit; raised before anything is allocated."""

    exit_code = 7


class ClusterError(SdmError):
    """A Dask cluster does not answer, cannot do the work, or lost the workers that tried."""

    exit_code = 8


class ClusterWarning(UserWarning):
    """Something about a cluster that the user should know and that does not stop the work."""


class RegionIndexError(SdmError):
    """A region index cannot be read, was made with another model or other layers, or lacks what is asked."""

    exit_code = 4


def quoted(value: object, limit: int = 60) -> str:
    """Return `value` as Python would write it, shortened; terminal escapes never come out raw."""
    if isinstance(value, str):
        text = repr(value[:limit] + "…" if len(value) > limit else value)
    else:
        text = repr(value)[: limit + 2]
    # repr leaves printable characters of all scripts; a terminal that cannot encode them copes on its own.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
