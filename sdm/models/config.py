"""`config.json` of a model folder, checked."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from sdm.errors import ModelError
from sdm.request.choices import MODALITIES

FORMAT = "taxabind-map/1"
KNOWN_RANGES = "known_ranges.safetensors"
"""A table that a model folder may contain: see `sdm.models.known_ranges`."""


TRANSFORMS = ("identity", "log1p", "land_km", "sea_km", "symlog", "class")
"""Transforms of an environment input: see `sdm.layers.environment.Input`."""


def calibration_key(modalities: tuple[str, ...]) -> str:
    """ "location+satellite+environment": how a set of modalities is named in `config.json`."""
    return "+".join(modalities)


def all_subsets() -> list[tuple[str, ...]]:
    """Every non-empty subset of the modalities, single ones first."""
    return [c for n in range(1, len(MODALITIES) + 1) for c in combinations(MODALITIES, n)]


def check_config(path: Path, config: dict) -> None:
    """Raise ModelError for a config that lacks an entry, or has one that no model can have."""
    try:
        location, satellite, environment = (config[m] for m in MODALITIES)
        inputs = environment["inputs"]
        sizes = [config["dim"], satellite["size"], location["features"]]
        sizes += [config[m][size] for m in MODALITIES for size in ("width", "depth")]
        extents = [g["extent"] for g in config.get("groups", {}).values() if g.get("extent")]
        own = [g["calibration"] for g in config.get("groups", {}).values() if "calibration" in g]
        entries = [e for group in (config["calibration"], *own) for e in group.values()]
        calibration = [v for e in entries for v in (e["scale"], e["bias"])]
        positive = [*location["sigmas"], satellite["pixel"], *(config[m]["pitch"] for m in MODALITIES)]
        positive += [i["std"] for i in inputs]
        numbers = [
            *calibration,
            *config["domain"],
            *(i["mean"] for i in inputs),
            *(v for e in extents for v in e),
        ]
        names = [config["name"], *(i["layer"] for i in inputs)]
        well_formed = len(config["domain"]) == 2 and all(len(e) == 4 for e in extents)
        transforms = [i["transform"] for i in inputs]
        season = location.get("season", False)
    except KeyError as error:
        raise ModelError(f"model {str(path)!r}: config.json lacks {error}.") from error
    except (TypeError, AttributeError) as error:
        raise ModelError(f"model {str(path)!r}: config.json has a part of the wrong type: {error}.") from error
    if not all(_is_number(n, int) and 0 < n <= 16384 for n in sizes):
        raise ModelError(f"model {str(path)!r}: config.json has a size that is not a whole number in 1..16384.")
    if not all(_is_number(n) and -1e300 < n < 1e300 for n in (*numbers, *positive)):
        raise ModelError(f"model {str(path)!r}: config.json has a number that is missing or not finite.")
    if not all(n > 0 for n in positive):
        raise ModelError(f"model {str(path)!r}: config.json has a sigma, pixel, pitch or std that is not positive.")
    if not all(isinstance(n, str) for n in names):
        raise ModelError(f"model {str(path)!r}: config.json has a name that is not text.")
    if not isinstance(season, bool):
        raise ModelError(f"model {str(path)!r}: config.json has a location.season that is neither true nor false.")
    if unknown := [t for t in transforms if t not in TRANSFORMS]:
        raise ModelError(f"model {str(path)!r}: config.json names the unknown transform {str(unknown[0])[:40]!r}.")
    if not inputs or not well_formed or not -90.0 <= config["domain"][0] < config["domain"][1] <= 90.0:
        raise ModelError(
            f"model {str(path)!r}: config.json needs some environment inputs, "
            "four numbers per extent, and a domain of two latitudes, south first."
        )


def _is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    """True for a number; a JSON true is an int to Python, but no number."""
    return isinstance(value, kind) and not isinstance(value, bool)
