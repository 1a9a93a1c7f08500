"""From a fit to its report and its ODMAP protocol: cross-validation, thresholds, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.encode import one_thread
from sdm.records.calibration import PROBABILITY
from sdm.records.decided import Decided, decided
from sdm.records.evaluate import CrossValidation
from sdm.records.explain import Importance, Response
from sdm.records.fit import JOINED_FROM
from sdm.records.forest import DEPTH, TREES
from sdm.records.maxent import classes_for
from sdm.records.measures import omission
from sdm.records.members import CLIP, Maxent, Ridge, Trees
from sdm.records.odmap import Protocol
from sdm.records.report import MapPicture, Report
from sdm.records.table import Records
from sdm.records.thresholds import RangeArea, Threshold
from sdm.records.validation import METHOD, Case, cross_validate_fit, importances, response_curves, thresholds

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_CLASSES = ("linear", "quadratic", "product", "hinge")
"""Maxent's kinds of feature by their numbers in `sdm.records.maxent`; reverse hinges count as hinges."""
_NOVELTY = (
    "Distance to the nearest training places, as a percentile of their own distances to each other, mapped as a band"
)


@dataclass(frozen=True)
class Review:
    """What is known of the quality of a fit."""

    case: Case
    validation: CrossValidation | None
    """None where the records do not allow any."""
    thresholds: tuple[Threshold, ...]
    importance: tuple[Importance, ...]
    decided: tuple[Decided, ...]
    responses: tuple[Response, ...]

    def light(self) -> Review:
        """The same without the features of places, which take most of the memory."""
        return replace(self, case=self.case.light())

    def report(
        self,
        picture: MapPicture | None = None,
        *,
        area: RangeArea | None = None,
        links: Mapping[str, str] | None = None,
    ) -> Report:
        """The report.

        Parameters
        ----------
        picture : the map to show.
        area : of the predicted range, where it was computed.
        links : labels, and names of files beside the page.
        """
        return assemble_report(self, picture, area, links or {})

    def protocol(self, geobox: GeoBox | None = None, *, boundary: str = "", rule: str = "") -> Protocol:
        """The ODMAP protocol.

        Parameters
        ----------
        geobox : of the map.
        boundary : "rectangle", or the name of a region.
        rule : of the threshold that the map was cut at; "" where it was not.
        """
        return assemble_protocol(self, geobox, boundary, rule)


def review_case(case: Case, *, elapid: bool = False) -> Review:
    """Cross-validate a fit, and find its thresholds, response curves and the importance of its variables.

    Parameters
    ----------
    case : the fit, with all that it was made from.
    elapid : also cross-validate elapid's Maxent, where it is installed; it takes up to half a minute a fold.
    """
    with one_thread():
        validated = cross_validate_fit(case, elapid=elapid)
        return Review(
            case=case,
            validation=validated.result,
            thresholds=thresholds(case, validated.pool),
            importance=importances(case, validated),
            responses=response_curves(case),
            decided=() if case.fitted.info.zero_shot else decided(case.fitted, case.training, case.source),
        )


def assemble_report(
    review: Review, picture: MapPicture | None, area: RangeArea | None, links: Mapping[str, str]
) -> Report:
    """See `Review.report`."""
    case, audit = review.case, review.case.records.audit
    info = case.fitted.info
    return Report(
        title=info.species or "Species without a name",
        lead=_lead(case),
        picture=picture,
        records=case.records,
        counts=audit.counts(),
        used=int(info.counts["presences"]),
        sentences=audit.sentences(),
        validation=review.validation,
        responses=review.responses,
        importance=review.importance,
        decided=review.decided,
        thresholds=review.thresholds,
        area=area,
        limits=_limits(review),
        probability=case.fitted.meaning == PROBABILITY,
        provenance=_provenance(case),
        citations=info.citations,
        links=links,
    )


def _lead(case: Case) -> str:
    info = case.fitted.info
    start = f"Fitted to {info.counts['presences']:,} presences"
    if info.counts["absences"]:
        start += f" and {info.counts['absences']:,} absences"
    if info.zero_shot:
        start = f"Compared with {info.counts['presences']:,} presences"
    return f"{start} by {info.method}." if not info.zero_shot else f"{start}, which do not improve {info.method}."


def _limits(review: Review) -> list[str]:
    """What follows from how the fit was made; the report adds what follows from the measures."""
    case, info = review.case, review.case.fitted.info
    texts = list(info.notes)
    if case.fitted.meaning == PROBABILITY:
        texts.append(
            "Values are probabilities if the prevalence (share of places that the species occupies) is right: "
            f"{case.fitted.calibration.prevalence:.3g}, {case.fitted.calibration.source}."
        )
    if info.counts["not_covered"]:
        texts.append(f"{info.counts['not_covered']:,} records lie where a layer has no value and were not used.")
    if review.validation is None:
        texts.append("All presences are at one location, so nothing can be left out to test the map with.")
    elif info.gate:
        texts.append(
            "Whether the fit or the zero-shot map is used was decided once, with all records; the folds test what "
            "was chosen."
        )
    if review.responses and case.prior is not None:
        texts.append(
            "The embedding of a place depends on climate, terrain and land cover too. Response curves and importance "
            "show what a variable adds to it, and the embedding as one variable."
        )
    return [*texts, *_omission(review)]


def _omission(review: Review) -> list[str]:
    """How many new presences fall below a threshold that was found at the records of the fit."""
    chosen = next((one for one in review.thresholds if one.rule == "p10"), None)
    if chosen is None or review.validation is None:
        return []
    predicted = review.validation.predictions[METHOD, next(iter(review.validation.folds))]
    left_out = predicted[review.validation.places.present & np.isfinite(predicted)]
    if not left_out.size:
        return []
    return [
        "Thresholds follow from values at the records of the fit, which are higher than at records it has not seen: "
        f"{1 - chosen.sensitivity:.0%} of the former lie below the threshold p10, and "
        f"{float(omission(left_out, chosen.value)):.0%} of the presences left out of the folds."
    ]


def _provenance(case: Case) -> dict[str, str]:
    info, calibration = case.fitted.info, case.fitted.calibration
    rows = {
        "Records": case.records.audit.source,
        "Presences": _used(case),
        "Compared with": _background(case),
        "Method": info.method,
        "Decision": info.gate,
        "Values": f"{calibration.meaning} ({calibration.source})",
        "Model": f"{info.model} ({', '.join(info.modalities)})" if info.model else "",
        "Month": str(info.month or ""),
        "Baselines": _baselines(case),
        "Licences of the records": "; ".join(f"{name}: {count:,}" for name, count in info.licences.items()),
        "Layers": "; ".join(f"{name} {digest}" for name, digest in info.layers.items()),
        "Seed": str(info.seed),
        "Software": info.software,
    }
    return {name: text for name, text in rows.items() if text}


def _used(case: Case) -> str:
    counts, thin = case.fitted.info.counts, case.options.thin
    text = f"{counts['presences']:,} of {counts['presences_given']:,}"
    return f"{text}; one per cell of {thin:g} degrees" if thin else text


def _baselines(case: Case) -> str:
    on = "climate and terrain" if case.prior is not None else "the same covariates"
    return f"Maxent (features and penalties of maxnet) and random forest, down-sampled, on {on}; in the same folds"


def _background(case: Case) -> str:
    """What presences were compared with, and why."""
    info, reach = case.fitted.info, f"within {case.options.reach_km:,.0f} km of the records"
    where = {"land": "on land ", "sea": "at sea "}.get(info.mask, "")
    random = f"{info.counts['random']:,} random places {where}{reach}"
    group = f"{info.counts['group']:,} places where other species of the group were recorded {reach}"
    words = {
        "random": random,
        "group": group,
        "mixed": f"{random} and {group}, half of the weight each",
        "absences": f"{info.counts['absences']:,} recorded absences",
    }
    return f"{words[info.background]}: {info.background_rule}"


_TECHNIQUES = {
    Ridge: "Penalised point-process regression (ridge)",
    Maxent: "Maximum entropy (Maxent)",
    Trees: "Down-sampled random forest",
}


def assemble_protocol(review: Review, geobox: GeoBox | None, boundary: str, rule: str) -> Protocol:
    """See `Review.protocol`."""
    case, info, audit = review.case, review.case.fitted.info, review.case.records.audit
    members = case.fitted.ensemble.members
    chosen = next((one for one in review.thresholds if one.rule == rule), None)
    return Protocol(
        species=info.species,
        target=f"{case.fitted.meaning}, 0 to 1",
        bounds=None if geobox is None else _bounds(geobox),
        resolution="" if geobox is None else _resolution(geobox),
        boundary=boundary,
        years=_years(case.records),
        records=audit.counts(),
        used=int(info.counts["presences"]),
        citations=audit.citations.to_dict(),
        sources=[audit.source],
        thinning_degrees=case.options.thin or None,
        background=_background(case),
        techniques=["Zero-shot map"] if info.zero_shot else [_TECHNIQUES[type(member)] for member in members],
        settings={} if info.zero_shot else {_TECHNIQUES[type(m)]: _settings(case, m) for m in members},
        averaging=_averaging(case),
        complexity=_complexity(case),
        predictors=case.fitted.covariates.names,
        predictor_types=tuple(dict.fromkeys(case.fitted.covariates.groups)) if info.model else (),
        predictor_sources=_sources(case),
        predictor_processing="Standardised by mean and standard deviation over the background",
        crs="" if geobox is None or geobox.crs is None else str(geobox.crs),
        extrapolation=_extrapolation(case),
        validation=review.validation,
        threshold=chosen,
        refits=case.options.refits if case.options.trust and not info.zero_shot else 0,
        importance=bool(review.importance),
        responses=bool(review.responses),
        novelty=_NOVELTY if case.options.trust else "",
    )


def _settings(case: Case, member: Ridge | Maxent | Trees) -> dict[str, Any]:
    presences = case.fitted.info.counts["presences"]
    if isinstance(member, Trees):
        return {"trees": TREES, "largest depth": DEPTH, "variables tried at a node": "square root of their number"}
    if isinstance(member, Maxent):
        classes = ", ".join(_CLASSES[kind] for kind in classes_for(presences))
        return {"features": classes, "regularisation": "defaults of maxnet"}
    prior = "of the species' vector and all species' covariance" if member.vector.size else "none on an embedding"
    return {"prior": prior, "environment": f"linear and squared, clipped at {CLIP:g} standard deviations"}


def _averaging(case: Case) -> str:
    ensemble = case.fitted.ensemble
    if len(ensemble.members) == 1:
        return ""
    weights = ", ".join(f"{w:.2f}" for w in ensemble.weights)
    return f"Mean of the ranks over the background, weights {weights}"


def _complexity(case: Case) -> str:
    if case.fitted.info.zero_shot:
        return "Nothing was fitted: the zero-shot map of the model was kept"
    if case.prior is None:
        return "Maxent's classes of features follow the number of presences, by the rule of maxnet"
    return f"A prior learnt from the species of the model holds the fit; a forest joins it at {JOINED_FROM} presences"


def _sources(case: Case) -> list[str]:
    info = case.fitted.info
    start = [f"Layers of the model {info.model} ({', '.join(info.modalities)})"] if info.model else []
    return [*start, *(f"{name}: {digest}" for name, digest in info.layers.items())]


def _extrapolation(case: Case) -> str:
    if any(isinstance(member, Ridge) for member in case.fitted.ensemble.members):
        return f"The ridge's variables are clipped at {CLIP:g} standard deviations of the background"
    return ""


def _bounds(geobox: GeoBox) -> tuple[float, float, float, float]:
    box = geobox.extent.to_crs("EPSG:4326").boundingbox
    return float(box.left), float(box.bottom), float(box.right), float(box.top)


def _resolution(geobox: GeoBox) -> str:
    side = abs(float(geobox.resolution.x))
    unit = "degrees" if geobox.crs is not None and geobox.crs.geographic else "m"
    return f"{side:g} {unit}"


def _years(records: Records) -> tuple[int, int] | None:
    years = records.year[records.year > 0]
    return (int(np.min(years)), int(np.max(years))) if years.size else None
