"""The ODMAP protocol of a fit: how it was made, in the elements that reviewers ask for.

Elements as in ODMAP version 1.0 (Zurell et al. 2020, Ecography 43:1261), in the order and the columns of the
file that the ODMAP application (https://odmap.wsl.ch) exports and imports, plus one column that says who has
to fill in what. Only what is known is stated; the rest is left blank for the author.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdm._version import __version__
from sdm.files.atomic import disk_errors
from sdm.outputs.escape import table_text
from sdm.outputs.metadata import one_line
from sdm.records.evaluate import CONTRASTS, CrossValidation, Evaluation, Scores
from sdm.records.thresholds import RULES, Threshold

COLUMNS = ("section", "subsection", "element", "Value", "filled_by")
"""The application needs the first four, with this capital, and ignores the last."""
PROGRAM, AUTHOR, OPTIONAL = "program", "author", "author, if applicable"
"""Who fills in an element."""
EXTENT = "o_scale_1"
"""The spatial extent, by its identifier in the application."""


@dataclass(frozen=True)
class Protocol:
    """What is known of how a fit was made. Empty or None: not known, and so not stated."""

    species: str = ""
    target: str = ""
    """What a pixel of the map holds, such as "relative suitability, 0 to 1"."""
    bounds: tuple[float, float, float, float] | None = None
    """(west, south, east, north) of the map in degrees."""
    resolution: str = ""
    boundary: str = ""
    """"rectangle", or the name of a region."""
    years: tuple[int, int] | None = None
    """First and last year of the records kept."""
    records: Mapping[str, Any] = field(default_factory=dict)
    """`Audit.counts()`."""
    used: int | None = None
    """Presences that the fit was made with, after thinning; None: not known."""
    citations: Mapping[str, Any] = field(default_factory=dict)
    """`Citations.to_dict()`."""
    sources: Sequence[str] = ()
    """Names of the files or queries that the records come from."""
    thinning_degrees: float | None = None
    background: str = ""
    """How background places were chosen: how many, from where, with which weights."""
    techniques: Sequence[str] = ()
    """Names of the algorithms."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By algorithm its settings."""
    averaging: str = ""
    """How algorithms are joined; "" when there is only one."""
    complexity: str = ""
    predictors: Sequence[str] = ()
    """Names of the variables."""
    predictor_types: Sequence[str] = ()
    """Such as climatic, topographic, habitat."""
    predictor_sources: Sequence[str] = ()
    """A line for each source, with its citation."""
    predictor_resolution: str = ""
    predictor_processing: str = ""
    crs: str = ""
    transfer: Mapping[str, str] = field(default_factory=dict)
    """Of a map of another climate: "sources", "period", "scenario", "novelty"."""
    extrapolation: str = ""
    """What happens beyond the range of the training values."""
    validation: CrossValidation | None = None
    test: Evaluation | None = None
    """With records that were not trained on."""
    threshold: Threshold | None = None
    refits: int = 0
    """Bootstrap refits."""
    importance: bool = False
    """Whether the report has permutation importance."""
    responses: bool = False
    """Whether the report has response curves."""
    novelty: str = ""
    """How novel environments are treated or shown."""
    software: Sequence[str] = ()
    """Packages with versions, besides this one."""


def elements() -> list[dict[str, str]]:
    """The elements of the protocol in order: id, section, subsection, element, optional ("0" or "1")."""
    text = (files("sdm.records") / "assets" / "odmap.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def write_odmap(path: Path, protocol: Protocol) -> None:
    """Write the protocol as CSV. Raises OutputError if the disk refuses.

    An element that the program cannot know is blank, and its last column names the author.
    """
    values = odmap_values(protocol)
    with disk_errors(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in elements():
            value = values.get(one["id"], "")
            # A negative longitude begins the extent, and the application reads it as it is.
            value = one_line(value) if one["id"] == EXTENT else table_text(value)
            by = PROGRAM if value else OPTIONAL if one["optional"] == "1" else AUTHOR
            writer.writerow([one["section"], one["subsection"], one["element"], value, by])


def odmap_values(protocol: Protocol) -> dict[str, str]:
    """Text of each element that is known, by its identifier in the application."""
    values = _overview(protocol) | _data(protocol) | _model(protocol) | _assessment(protocol)
    return {name: text for name, text in values.items() if text}


def _overview(p: Protocol) -> dict[str, str]:
    extent = ""
    if p.bounds is not None:
        west, south, east, north = p.bounds
        extent = f"{west:g}, {east:g}, {south:g}, {north:g} (xmin, xmax, ymin, ymax)"
    absences = int(p.records.get("absences", 0))
    return {
        "o_objective_1": "Forecast and transfer" if p.transfer else "Mapping and interpolation",
        "o_objective_2": p.target,
        "o_taxon_1": p.species,
        EXTENT: extent,
        "o_scale_2": p.resolution,
        "o_scale_3": f"{p.years[0]} to {p.years[1]} (records)" if p.years else "",
        "o_scale_5": p.boundary,
        "o_bio_2": ("presence/absence" if absences else "presence-only") if p.records else "",
        "o_predictors_1": "; ".join(p.predictor_types),
        "o_algorithms_1": "; ".join(p.techniques),
        "o_algorithms_2": p.complexity,
        "o_algorithms_3": p.averaging or ("None: a single algorithm." if len(p.techniques) == 1 else ""),
        "o_software_1": "; ".join([f"taxabind-map {__version__}", *p.software]),
        "o_software_2": "taxabind-map is open source (Apache-2.0)",
        "o_software_3": "; ".join(f"https://doi.org/{doi}" for doi in p.citations.get("doi", ())),
    }


def _data(p: Protocol) -> dict[str, str]:
    absences = int(p.records.get("absences", 0))
    cleaning = p.records.get("dropped", {}) | p.records.get("repaired", {})
    unknown = int(p.records.get("unknown_uncertainty", 0))
    biases = f"{unknown:,} records do not state a coordinate uncertainty." if unknown else ""
    return {
        "d_bio_1": p.species,
        "d_bio_3": "species" if p.species else "",
        "d_bio_4": "; ".join([*p.sources, *p.citations.get("citations", ())]),
        "d_bio_6": _sample_size(p),
        "d_bio_8": f"Thinned to one record per cell of {p.thinning_degrees:g} degrees." if p.thinning_degrees else "",
        "d_bio_9": _cleaning(p, cleaning),
        "d_bio_10": f"{absences:,} absences from the records." if absences else _none_used(p, "absences"),
        "d_bio_11": p.background,
        "d_bio_12": biases,
        "d_part_1": "All records that were kept." if p.records else "",
        "d_part_2": " ".join(folds.describe() for folds in p.validation.folds.values()) if p.validation else "",
        "d_part_3": f"{p.test.presences:,} presences that were not trained on." if p.test else "",
        "d_pred_1": "; ".join(p.predictors),
        "d_pred_2": "; ".join(p.predictor_sources),
        "d_pred_4": p.predictor_resolution,
        "d_pred_5": p.crs,
        "d_pred_8": p.predictor_processing,
        "d_proj_1": p.transfer.get("sources", ""),
        "d_proj_4": p.transfer.get("period", ""),
        "d_proj_6": p.transfer.get("scenario", ""),
        "d_proj_8": p.transfer.get("novelty", ""),
    }


def _none_used(p: Protocol, what: str) -> str:
    return f"No {what} were used." if p.records else ""


def _sample_size(p: Protocol) -> str:
    if not p.records:
        return ""
    presences, absences = int(p.records.get("presences", 0)), int(p.records.get("absences", 0))
    used = f" ({p.used:,} used after thinning)" if p.used is not None and p.used != presences else ""
    if not absences:
        return f"{presences:,} presences{used}"
    prevalence = presences / (presences + absences)
    return f"{presences:,} presences{used}, {absences:,} absences (prevalence {prevalence:.3g})"


def _cleaning(p: Protocol, changes: Mapping[str, int]) -> str:
    if not p.records:
        return ""
    listed = "; ".join(f"{reason} ({count:,})" for reason, count in changes.items())
    return f"{p.records['rows']:,} rows read, {p.records['kept']:,} kept. {listed}".strip()


def _model(p: Protocol) -> dict[str, str]:
    settings = "; ".join(
        f"{name}: " + ", ".join(f"{key} ({value})" for key, value in options.items())
        for name, options in p.settings.items()
    )
    return {
        "m_settings_1": settings,
        "m_settings_2": p.extrapolation,
        "m_estim_2": f"{p.refits} bootstrap refits" if p.refits else "",
        "m_estim_3": "Fall of the AUC when a variable is shuffled between places" if p.importance else "",
        "m_selection_3": p.averaging,
        "m_depend_1": _autocorrelation(p),
        "m_threshold_1": _threshold(p.threshold),
    }


def _autocorrelation(p: Protocol) -> str:
    blocks = [folds for folds in p.validation.folds.values() if folds.kind == "blocks"] if p.validation else []
    return f"Not modelled; allowed for in the validation: {blocks[0].describe()}" if blocks else ""


def _threshold(chosen: Threshold | None) -> str:
    if chosen is None:
        return ""
    return f"{RULES[chosen.rule]}: {chosen.value:.4g}"


def _assessment(p: Protocol) -> dict[str, str]:
    return {
        "a_perform_2": _validated(p.validation) if p.validation else "",
        "a_perform_3": "; ".join(_measures(name, scores) for name, scores in p.test.scores.items()) if p.test else "",
        "a_plausibility_1": "Partial dependence curves, in the report" if p.responses else "",
        "p_output_1": p.target,
        "p_uncertainty_3": (
            f"Standard deviation of the score over {p.refits} bootstrap refits, mapped" if p.refits else ""
        ),
        "p_uncertainty_5": p.novelty,
    }


def _validated(validation: CrossValidation) -> str:
    """The mean measures of the method itself, for all folds and comparisons."""
    method = validation.methods[0]
    texts = []
    for result in validation.results:
        if result.method == method:
            values = {name: result.mean(name) for name in ("auc", "auc_prg", "tss", "boyce")}
            texts.append(f"{result.scheme}, {_measures(result.contrast, values)}")
    return "; ".join(texts)


def _measures(contrast: str, scores: Scores | Mapping[str, float | None]) -> str:
    values = scores.to_dict() if isinstance(scores, Scores) else scores
    names = {"auc": "AUC", "auc_prg": "AUC-PRG", "tss": "TSS", "boyce": "Boyce"}
    listed = ", ".join(f"{label} {values[name]:.3f}" for name, label in names.items() if values.get(name) is not None)
    return f"against {CONTRASTS[contrast]}: {listed or 'no measure'}"
