"""The file of a fit: safetensors with weights, and a JSON text in its metadata. Nothing in it is executed.

A file may come from anywhere. Its size, keys, types, shapes and values are all checked before anything is computed
from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeGuard, get_type_hints

import numpy as np

from sdm.errors import RecordsError, quoted
from sdm.files.atomic import disk_errors
from sdm.records.calibration import PROBABILITY, RELATIVE, Calibration
from sdm.records.features import Covariates
from sdm.records.fitparts import FitInfo, FitParts
from sdm.records.forest import Forest
from sdm.records.guard import regular_file
from sdm.records.maxent import CATEGORY, HINGE, LINEAR, REVERSE, Terms
from sdm.records.members import KINDS, Ensemble, Maxent, RankScale, Ridge, Trees, to_arrays
from sdm.records.trust import LEVELS, Reference
from sdm.request.choices import MASKS, MODALITIES

FORMAT = "taxabind-map-fit/1"
SUFFIX = ".fit.safetensors"
MAX_BYTES = 64_000_000
MAX_TEXT = 1_000_000
MAX_MEMBERS = 16
MAX_DEPTH = 14
MAX_NUMBER = float(np.float32(1e30))
"""No weight of a fit comes near it; sums of larger ones would leave the range of float32."""


def write_parts(fitted: FitParts, path: Path) -> Path:
    """Write a fit. Raises OutputError."""
    from safetensors.numpy import save

    meta = {
        "info": fitted.info.to_dict(),
        "covariates": asdict(fitted.covariates),
        "calibration": asdict(fitted.calibration),
        "members": [_kind(m) for m in fitted.ensemble.members],
        "scales": len(fitted.ensemble.scales),
        "typical": fitted.typical,
    }
    arrays = {"weights": np.asarray(fitted.ensemble.weights, dtype=np.float32)}
    for k, member in enumerate(fitted.ensemble.members):
        arrays |= to_arrays(member, f"member{k}")
    for k, scale in enumerate(fitted.ensemble.scales):
        arrays |= to_arrays(scale, f"scale{k}")
    if fitted.ensemble.blend is not None:
        arrays |= to_arrays(fitted.ensemble.blend, "blend")
    arrays |= to_arrays(fitted.reference, "reference")
    text = json.dumps(meta, allow_nan=False, sort_keys=True)
    data = save(arrays, metadata={"format": FORMAT, "fit": text, "sha256": _digest(text, arrays)})
    with disk_errors(path):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def read_parts(path: Path) -> FitParts:
    """Read a fit. Raises RecordsError for whatever is not one."""
    regular_file(path, "fit file")
    try:
        reader = _Reader(path)
        parts = reader.parts()
        if reader.changed:
            raise RecordsError("it is damaged: its content is not what was saved; fit again.")
        return parts
    except RecordsError as error:
        raise RecordsError(f"fit file {str(path)!r}: {error}") from None
    except (TypeError, ValueError, LookupError, OverflowError, RecursionError) as error:
        # Whatever the checks did not foresee: a hostile file is refused, and never ends the program.
        raise RecordsError(f"fit file {str(path)!r}: it is not described as a fit ({str(error)[:200]}).") from None


def has_digest(path: Path) -> bool:
    """Whether a fit carries a hash of its content, which `read_parts` compares. Raises RecordsError."""
    return _Reader(path).digest is not None


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of the description of a fit and of its arrays, in hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _Reader:
    """One file while it is checked."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise RecordsError(f"it has {size:,} bytes; no fit is larger than {MAX_BYTES:,}.")
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
                self.meta = self._metadata(metadata)
                self.arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.digest = metadata.get("sha256")
            """The hash of the content when it was saved; None where none was kept."""
            self.changed = self.digest not in (None, _digest(metadata["fit"], self.arrays))
        except OSError as error:
            raise RecordsError(f"it cannot be read ({error.strerror or error}).") from None
        except (SafetensorError, TypeError, ValueError) as error:
            raise RecordsError(f"it is not a safetensors file of a fit ({str(error)[:200]}).") from None
        self.used: set[str] = set()

    @staticmethod
    def _metadata(metadata: dict[str, str] | None) -> dict[str, Any]:
        if not metadata or metadata.get("format") != FORMAT:
            raise RecordsError(f"its format is not {FORMAT!r}; give a file that a fit was saved to (*{SUFFIX}).")
        text = metadata.get("fit", "")
        if len(text) > MAX_TEXT:
            raise RecordsError("its description is longer than any fit's.")
        try:
            meta = json.loads(text)
            json.dumps(meta, ensure_ascii=False).encode()  # a lone surrogate could not be printed
        except (ValueError, RecursionError):
            raise RecordsError("its description is not JSON in Unicode.") from None
        if not isinstance(meta, dict):
            raise RecordsError("its description is not an object.")
        return meta

    def parts(self) -> FitParts:
        """All that the file holds."""
        covariates = _covariates(self.meta.get("covariates"))
        kinds = self.meta.get("members")
        if not _is_texts(kinds) or not 1 <= len(kinds) <= MAX_MEMBERS or not set(kinds) <= set(KINDS):
            raise RecordsError("its members are of an unknown kind.")
        width = len(covariates.names)
        members = tuple(self.member(f"member{k}", kind, width) for k, kind in enumerate(kinds))
        info = _info(self.meta.get("info"))
        dim = _embedding_length(members)
        if (dim > 0) != (info.features == "model"):
            raise RecordsError("its members do not fit what they are said to describe places by.")
        ensemble = self.ensemble(members)
        # Novelty is measured in the model's embedding of the environment, else in `sdm.records.fitted.covariate_space`.
        reference = self.reference(dim or width + 1, width)
        if left := sorted(self.arrays.keys() - self.used):
            raise RecordsError(f"it holds an array {quoted(left[0])} that no fit has.")
        return FitParts(
            info,
            covariates,
            ensemble,
            _calibration(self.meta.get("calibration")),
            reference,
            _numbers(self.meta.get("typical")),
        )

    def array(self, name: str, *shape: int | None, dtype: type = np.float32, finite: bool = True) -> np.ndarray:
        """An array of a shape, None for any length; by default its numbers must be finite."""
        if name not in self.arrays:
            raise RecordsError(f"array {quoted(name)} is missing.")
        value = self.arrays[name]
        self.used.add(name)
        fits = value.ndim == len(shape) and all(s is None or s == n for s, n in zip(shape, value.shape, strict=True))
        if not fits or value.dtype != np.dtype(dtype):
            raise RecordsError(f"array {quoted(name)} has the shape {value.shape} or type {value.dtype} of no fit.")
        if value.dtype.kind == "f" and not (np.isfinite(value).all() if finite else not np.isnan(value).any()):
            raise RecordsError(f"array {quoted(name)} holds numbers that are not finite.")
        if finite and value.dtype.kind == "f" and float(np.abs(value).max(initial=0.0)) > MAX_NUMBER:
            raise RecordsError(f"array {quoted(name)} holds numbers beyond {MAX_NUMBER:g}, which no fit has.")
        return value

    def member(self, name: str, kind: str, width: int) -> Ridge | Maxent | Trees:
        if kind == "ridge":
            return self.ridge(name, width)
        return self.maxent(name, width) if kind == "maxent" else self.trees(name, width)

    def ridge(self, name: str, width: int) -> Ridge:
        vector = self.array(f"{name}.vector", None)
        intercepts = self.array(f"{name}.intercepts", None)
        return Ridge(
            vector,
            self.array(f"{name}.center", width),
            self.positive(f"{name}.scale", width),
            self.array(f"{name}.weight", 2 * width),
            self.array(f"{name}.intercept", 1),
            self.array(f"{name}.vectors", intercepts.size, vector.size),
            self.array(f"{name}.weights", intercepts.size, 2 * width),
            intercepts,
        )

    def maxent(self, name: str, width: int) -> Maxent:
        kind = self.array(f"{name}.terms.kind", None, dtype=np.int32)
        n = kind.size
        first, second = (self.array(f"{name}.terms.{part}", n, dtype=np.int32) for part in ("first", "second"))
        low, high = (self.array(f"{name}.terms.{part}", n) for part in ("low", "high"))
        coefficient = self.array(f"{name}.terms.coefficient", n, dtype=np.float64)
        self.indices(kind, LINEAR, CATEGORY + 1, f"{name}.terms.kind")
        for numbers in (first, second):
            self.indices(numbers, 0, width, f"{name}.terms")
        hinge = (kind == HINGE) | (kind == REVERSE)
        if not (high[hinge] > low[hinge]).all():
            raise RecordsError(f"a hinge of {name!r} has no width.")
        intercepts = self.array(f"{name}.intercepts", None)
        return Maxent(
            self.array(f"{name}.center", width),
            self.positive(f"{name}.scale", width),
            Terms(kind, first, second, low, high, coefficient),
            self.array(f"{name}.intercept", 1),
            self.array(f"{name}.coefficients", intercepts.size, n),
            intercepts,
        )

    def trees(self, name: str, width: int) -> Trees:
        columns = self.array(f"{name}.columns", None, dtype=np.int32)
        self.indices(columns, 0, width, f"{name}.columns")
        projection = self.array(f"{name}.projection", None, None)
        leaf = self.array(f"{name}.forest.leaf", None, None)
        count, leaves = leaf.shape
        if count < 1 or leaves not in {2**d for d in range(1, MAX_DEPTH + 1)}:
            raise RecordsError(f"the trees of {name!r} have {leaves} leaves.")
        feature = self.array(f"{name}.forest.feature", count, leaves - 1, dtype=np.int32)
        projected = projection.shape[1] if projection.size else 0
        self.indices(feature, 0, columns.size + projected, f"{name}.forest.feature")
        threshold = self.array(f"{name}.forest.threshold", count, leaves - 1, finite=False)
        return Trees(columns, projection, Forest(feature, threshold, leaf))

    def ensemble(self, members: tuple[Ridge | Maxent | Trees, ...]) -> Ensemble:
        weights = self.array("weights", len(members))
        if isinstance(members[0], Trees) or (weights < 0).any() or not math.isclose(weights.sum(), 1.0, abs_tol=1e-3):
            raise RecordsError("its members cannot be joined.")
        if len(members) == 1:
            return Ensemble(members, weights)
        scales = tuple(self.rank_scale(f"scale{k}") for k in range(len(members)))
        return Ensemble(members, weights, scales, self.rank_scale("blend"))

    def rank_scale(self, name: str) -> RankScale:
        values = self.array(f"{name}.values", None)
        levels = self.array(f"{name}.levels", values.size)
        if values.size == 0 or not (np.diff(values) > 0).all() or not (np.diff(levels) >= 0).all():
            raise RecordsError(f"the ranks of {name!r} do not ascend.")
        return RankScale(values, levels)

    def reference(self, length: int, width: int) -> Reference:
        places = self.array("reference.places", None, length, dtype=np.float16)
        distances = self.array("reference.distances", LEVELS)
        if len(places) == 0 or not (np.diff(distances) > 0).all():
            raise RecordsError("its training places cannot be used.")
        return Reference(places, distances, self.array("reference.quantiles", LEVELS, width))

    def positive(self, name: str, size: int) -> np.ndarray:
        value = self.array(name, size)
        if not (value > 0).all():
            raise RecordsError(f"array {quoted(name)} must be positive.")
        return value

    def indices(self, value: np.ndarray, low: int, high: int, name: str) -> None:
        if value.size and not (low <= int(value.min()) and int(value.max()) < high):
            raise RecordsError(f"array {quoted(name)} points outside its table.")


def _kind(member: object) -> str:
    return next(name for name, kind in KINDS.items() if isinstance(member, kind))


def _embedding_length(members: tuple[Ridge | Maxent | Trees, ...]) -> int:
    """Length of the embeddings that all members expect, 0 without a model; the first member decides."""
    dim = members[0].vector.size if isinstance(members[0], Ridge) else 0
    others = [m.vector.size for m in members if isinstance(m, Ridge)]
    others += [m.projection.shape[0] for m in members if isinstance(m, Trees) and m.projection.size]
    if any(other != dim for other in others):
        raise RecordsError("its members expect embeddings of different lengths.")
    return dim


def _covariates(value: Any) -> Covariates:
    names = [f.name for f in fields(Covariates)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise RecordsError("its covariates are not described.")
    columns = [value[n] for n in names]
    if not all(isinstance(c, list) and 0 < len(c) == len(columns[0]) <= 10_000 for c in columns):
        raise RecordsError("its covariates are not described.")
    words = all(isinstance(w, str) and len(w) <= 500 for w in (*columns[0], *columns[1]))
    if not words or not all(isinstance(flag, bool) for flag in columns[2]):
        raise RecordsError("its covariates are not described.")
    return Covariates(*(tuple(c) for c in columns))


def _calibration(value: Any) -> Calibration:
    if not isinstance(value, dict) or set(value) != {f.name for f in fields(Calibration)}:
        raise RecordsError("it does not say what its values are.")
    prevalence = value["prevalence"]
    good = (
        value["meaning"] in (PROBABILITY, RELATIVE)
        and _is_number(value["shift"])
        and (prevalence is None or (_is_number(prevalence) and 0.0 <= prevalence <= 1.0))
        and (prevalence is not None or value["meaning"] == RELATIVE)
        and isinstance(value["source"], str)
    )
    if not good:
        raise RecordsError("it does not say what its values are.")
    return Calibration(value["meaning"], float(value["shift"]), prevalence, value["source"][:500])


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_number(v) for v in value.values()):
        raise RecordsError("its typical contributions are not numbers.")
    return {str(k): float(v) for k, v in value.items()}


def _info(value: Any) -> FitInfo:
    """Every field of the right type, and words that are known; other text is escaped where it is shown."""
    hints = get_type_hints(FitInfo)
    if isinstance(value, dict):
        value = {"thresholds": {}} | value  # earlier files have none
    if not isinstance(value, dict) or set(value) != set(hints):
        raise RecordsError("where it comes from is not described.")
    for name, hint in hints.items():
        if not _CHECKS[hint](value[name]) or (name in _WORDS and not _in(value[name], _WORDS[name])):
            raise RecordsError(f"{name.replace('_', ' ')} is not described as a fit does.")
    west, south, east, north = value["extent"]
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise RecordsError("its extent is not on the globe.")
    checked: dict[str, Any] = {n: tuple(item) if isinstance(item, list) else item for n, item in value.items()}
    return FitInfo(**checked)


def _in(value: Any, words: tuple[Any, ...]) -> bool:
    """Whether a value, or each entry of a list, is among the words."""
    return all(item in words for item in value) if isinstance(value, list) else value in words


def _is_number(value: Any) -> bool:
    # An integer of any length is a number in JSON; one beyond the range of a float is none here.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_CHECKS: dict[Any, Callable[[Any], bool]] = {
    str: lambda v: isinstance(v, str),
    bool: lambda v: isinstance(v, bool),
    int: _is_integer,
    int | None: lambda v: v is None or _is_integer(v),
    tuple[str, ...]: _is_texts,
    tuple[float, float, float, float]: lambda v: isinstance(v, list) and len(v) == 4 and all(map(_is_number, v)),
    dict[str, int]: lambda v: isinstance(v, dict) and all(map(_is_integer, v.values())),
    dict[str, float]: lambda v: isinstance(v, dict) and all(map(_is_number, v.values())),
    dict[str, str]: lambda v: isinstance(v, dict) and all(isinstance(item, str) for item in v.values()),
}
"""What JSON values a field of `FitInfo` of each type may have."""

_WORDS: dict[str, tuple[Any, ...]] = {
    "features": ("model", "covariates"),
    "modalities": MODALITIES,
    "month": (None, *range(1, 13)),
    "mask": MASKS,
    "background": ("random", "group", "mixed", "absences", ""),
}
"""The values that some fields of `FitInfo` may have, since maps depend on them."""
