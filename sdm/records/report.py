"""The report of a fit or an evaluation: one HTML page that opens offline, and the same numbers as JSON.

The page has no scripts, and a content security policy that allows none and no request. Every text from outside
goes through `html_text`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm._version import __version__
from sdm.files.atomic import disk_errors
from sdm.outputs.escape import html_text, relative_link
from sdm.outputs.metadata import one_line
from sdm.records import figures
from sdm.records.decided import Decided
from sdm.records.evaluate import (
    CONTRASTS,
    FEWEST_POOLED,
    LABELS,
    PRESENCE,
    CrossValidation,
    Evaluation,
    Result,
    Scores,
)
from sdm.records.explain import Importance, Response
from sdm.records.figures import CONTRAST_COLOURS, METHOD, Figure, Line
from sdm.records.thresholds import RULES, RangeArea, Threshold

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from sdm.outputs.blocks import Source

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_LOW_IS_GOOD = {"log_loss", "brier", "calibration_error"}
_FEW = 30
_MOST_RESPONSES = 12


@dataclass(frozen=True)
class MapPicture:
    """The map to show."""

    source: Source
    """Values of shape (y, x)."""
    geobox: GeoBox
    quantity: str
    """What a pixel holds."""
    valid_range: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Report:
    """What a report tells. Parts that are None or empty are left out of it."""

    title: str
    """The species, or the name of the map."""
    lead: str = ""
    """One or two sentences under the title: what was made of what."""
    picture: MapPicture | None = None
    records: Any = None
    """The `Records` that were used, for the map."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """`Audit.counts()`."""
    used: int | None = None
    """Presences that the fit was made with, at most `counts["presences"]`; None: not known."""
    sentences: Sequence[str] = ()
    """`Audit.sentences()`."""
    validation: CrossValidation | None = None
    evaluation: Evaluation | None = None
    responses: Sequence[Response] = ()
    importance: Sequence[Importance] = ()
    decided: Sequence[Decided] = ()
    thresholds: Sequence[Threshold] = ()
    area: RangeArea | None = None
    limits: Sequence[str] = ()
    """Sentences besides those that follow from the numbers."""
    probability: bool = False
    """Whether the map holds calibrated probabilities of presence."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    citations: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """A label and the name of a file beside the page."""


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path` (.html). Raises OutputError if the disk refuses."""
    page = _page(report)
    with disk_errors(path):
        path.write_text(page, encoding="utf-8")


def write_json(path: Path, report: Report) -> None:
    """Write the numbers of the page to `path` (.json). Raises OutputError if the disk refuses."""
    with disk_errors(path):
        path.write_text(json_text(report) + "\n", encoding="utf-8")


def json_text(report: Report) -> str:
    """The numbers of the page as JSON."""
    return json.dumps(_valid(report_dict(report)), indent=1, ensure_ascii=False, allow_nan=False)


def report_dict(report: Report) -> dict[str, Any]:
    """Everything the page says, as JSON values."""
    return {
        "title": one_line(report.title),
        "version": __version__,
        "quantity": one_line(report.picture.quantity) if report.picture else None,
        "probability": report.probability,
        "records": dict(report.counts) | ({} if _used(report) is None else {"presences_used": _used(report)}),
        "cross_validation": report.validation.to_dict() if report.validation else None,
        "evaluation": report.evaluation.to_dict() if report.evaluation else None,
        "thresholds": [one.to_dict() for one in report.thresholds],
        "range": report.area.to_dict() if report.area else None,
        "importance": [one.to_dict() for one in report.importance],
        "shares": [one.to_dict() for one in report.decided],
        "responses": [one.to_dict() for one in report.responses],
        "limits": limits(report),
        "provenance": {str(key): one_line(value) for key, value in report.provenance.items()},
        "citations": [one_line(text) for text in report.citations],
    }


def _valid(value: Any) -> Any:
    """Made fit for JSON in UTF-8: NaN and infinity become null, control characters and lone surrogates go."""
    if isinstance(value, Mapping):
        return {one_line(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def limits(report: Report) -> list[str]:
    """How far to trust the map, in sentences: what follows from the numbers, then what the caller added."""
    texts = []
    if not report.probability:
        texts.append(
            "Values are relative suitability: 0.8 is better than 0.4, but it does not mean that the species is "
            "present in 8 of 10 such places."
        )
    presences = _used(report)
    if presences is not None and presences < _FEW:
        number = "one presence" if presences == 1 else f"{presences:,} presences"
        texts.append(f"With {number} all measures are uncertain; look at their standard errors.")
    if report.validation:
        texts += _validation_limits(report.validation)
    if report.evaluation:
        texts += list(report.evaluation.notes)
        if report.evaluation.off_map:
            texts.append(f"{report.evaluation.off_map:,} presences lie where the map has no value and were not used.")
    return [*texts, *map(one_line, report.limits)]


def _used(report: Report) -> int | None:
    """Presences behind the fit or the evaluation; without either, those kept."""
    if report.used is not None:
        return report.used
    if report.evaluation is not None:
        return report.evaluation.presences
    kept = report.counts.get("presences")
    return None if kept is None else int(kept)


def _used_text(report: Report) -> str:
    """What the number of presences used was taken from: "presences used (after thinning), 60 kept, of 90 rows"."""
    kept, rows = int(report.counts.get("presences", 0)), int(report.counts.get("rows", 0))
    if _used(report) == kept:
        return f"presences used, of {rows:,} rows"
    how = "on the map, one per pixel" if report.evaluation is not None else "after thinning"
    return f"presences used ({how}), {kept:,} kept, of {rows:,} rows"


def _validation_limits(validation: CrossValidation) -> list[str]:
    texts = []
    method, contrasts = validation.methods[0], validation.places.contrasts
    schemes = {folds.kind: name for name, folds in validation.folds.items()}
    if any(folds.limited for folds in validation.folds.values()):
        texts.append("The spatial blocks are smaller than the range of autocorrelation: the results are too good.")
    if "blocks" in schemes and "random" in schemes:
        blocked, at_random = (
            validation.result(method, schemes[kind], contrasts[0]).mean("auc") for kind in ("blocks", "random")
        )
        if blocked is not None and at_random is not None and at_random - blocked > 0.05:
            texts.append(
                f"The AUC against {CONTRASTS[contrasts[0]]} is {at_random:.2f} in random folds and {blocked:.2f} in "
                "spatial blocks: the map is worse far from its records than near them."
            )
    if "land" in contrasts and "group" not in contrasts and "absences" not in contrasts:
        texts.append(
            "The presences are compared with random land only. If observers went to some places more than to "
            "others, a map of where they went scores well too; records of other species of the group would tell."
        )
    return texts + _beaten(validation)


def _beaten(validation: CrossValidation) -> list[str]:
    """For each comparison a sentence with the baselines that are at least as good as the method."""
    return [text for contrast in validation.places.contrasts for text in _beaten_against(validation, contrast)]


def _beaten_against(validation: CrossValidation, contrast: str) -> list[str]:
    """The sentence of one comparison, in the first scheme of folds; AUCs are compared to three decimals."""
    method, scheme = validation.methods[0], next(iter(validation.folds))
    own = validation.result(method, scheme, contrast).mean("auc")
    rivals = {
        name: auc
        for name in validation.methods[1:]
        if (auc := validation.result(name, scheme, contrast).mean("auc")) is not None
    }
    if own is None or not rivals:
        return []
    ranked = sorted(rivals.items(), key=lambda rival: -rival[1])
    better = [(name, auc) for name, auc in ranked if round(auc, 3) > round(own, 3)]
    equal = [(name, auc) for name, auc in ranked if round(auc, 3) == round(own, 3)]
    said = [f"{_named(better)} {'is' if len(better) == 1 else 'are'} better than this map"] if better else []
    said += [f"{_named(equal)} {'is' if len(equal) == 1 else 'are'} as good as this map"] if equal else []
    if not said:
        return []
    return [f"Against {CONTRASTS[contrast]}, {'; '.join(said)} (AUC {own:.3f})."]


def _named(rivals: Sequence[tuple[str, float]]) -> str:
    """Names of methods with their AUC: "“Maxent” (AUC 0.853) and “Random forest” (AUC 0.840)"."""
    texts = [f"“{one_line(name)}” (AUC {auc:.3f})" for name, auc in rivals]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _page(report: Report) -> str:
    style = (files("sdm.records") / "assets" / "report.css").read_text(encoding="utf-8")
    sections = [
        ("map", "Map", _map(report)),
        ("records", "Records", _records(report)),
        ("measures", "How good is it?", _measures(report)),
        ("curves", "Curves", _curves(report)),
        ("folds", "Folds", _folds(report)),
        ("variables", "Variables", _variables(report)),
        ("thresholds", "Thresholds and range" if report.area else "Thresholds", _thresholds(report)),
        ("limits", "How far to trust it", _list(limits(report))),
        ("made", "How it was made", _provenance(report)),
    ]
    sections = [one for one in sections if one[2]]
    navigation = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{text}</section>' for name, title, text in sections)
    title = html_text(report.title)
    lead = f'<p class="lead">{html_text(report.lead)}</p>' if report.lead else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: report</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{title}</h1>{lead}</header>\n{_cards(report)}<nav>{navigation}</nav>\n{body}"
        f"{_footer(report)}\n</main>\n</body>\n</html>\n"
    )


def _cards(report: Report) -> str:
    cards = []
    if report.counts:
        cards.append((f"{_used(report) or 0:,}", _used_text(report)))
    for contrast, scores, error, scheme in _headline(report):
        if scores is not None:
            spread = f" <small>± {error:.2f}</small>" if error is not None else ""
            cards.append((f"{scores:.2f}{spread}", f"AUC against {_counted(report, contrast)}{scheme}"))
    if report.area:
        span = ""
        if report.area.low_km2 is not None and report.area.high_km2 is not None:
            span = f" ({_km2(report.area.low_km2)} to {_km2(report.area.high_km2)})"
        cards.append((f"{_km2(report.area.km2)} <small>km²</small>", f"predicted range{span}"))
    if not cards:
        return ""
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
        + "</div>"
        + "".join(
            f'<p class="beaten">{html_text(text)}</p>'
            for text in (_beaten(report.validation) if report.validation else ())
        )
    )


def _counted(report: Report, contrast: str) -> str:
    """The places of a comparison with their number: "1,000 random places within reach"."""
    if report.validation:
        number = int((report.validation.places.kind == contrast).sum())
    else:
        number = report.evaluation.scores[contrast].places if report.evaluation else 0
    return f"{number:,} {CONTRASTS[contrast]}"


def _headline(report: Report) -> list[tuple[str, float | None, float | None, str]]:
    """The AUC of each comparison: of the first scheme of folds, else of the evaluation."""
    if report.validation:
        method, scheme = report.validation.methods[0], next(iter(report.validation.folds))
        name = {"blocks": "spatial blocks", "locations": "locations left out", "random": "random folds"}
        label = f", {name[report.validation.folds[scheme].kind]}"
        results = [report.validation.result(method, scheme, one) for one in report.validation.places.contrasts]
        return [(one.contrast, one.mean("auc"), one.standard_error("auc"), label) for one in results]
    if report.evaluation:
        return [(name, scores.auc, None, "") for name, scores in report.evaluation.scores.items()]
    return []


def _km2(value: float) -> str:
    """An area to three digits."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _figure(figure: Figure, kind: str = "", caption: str = "") -> str:
    svg = figure.svg.replace("<svg", f'<svg role="img" aria-label="{html_text(figure.text)}"', 1)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}" style="max-width:{110 * figure.width:.0f}px">{svg}{below}</figure>'


def _map(report: Report) -> str:
    if report.picture is None:
        return ""
    from sdm.outputs.overlay import warp

    picture = report.picture
    overlay = warp(picture.source, picture.geobox, picture.valid_range, max_size=900)
    if overlay is None:
        return ""
    lon, lat, present = np.zeros(0), np.zeros(0), np.zeros(0, bool)
    if report.records is not None:
        lon, lat, present = report.records.lon, report.records.lat, report.records.present
    figure = figures.map_picture(overlay, lon, lat, present, picture.valid_range)
    return _figure(figure, "map", html_text(picture.quantity))


def _records(report: Report) -> str:
    counts = report.counts
    if not counts:
        return ""
    rows = max(1, int(counts.get("rows", 0)))
    changes = [("Kept", int(counts.get("kept", 0)))]
    changes += [(f"Dropped: {reason}", int(number)) for reason, number in counts.get("dropped", {}).items()]
    table = "".join(
        f'<tr><td>{html_text(label)}</td><td class="number">{number:,}</td>'
        f'<td><span class="bar" style="width:{max(1, round(180 * number / rows))}px"></span></td></tr>'
        for label, number in changes
    )
    repaired = counts.get("repaired", {})
    told = list(report.sentences)
    if repaired and not told:
        told.append("Repaired: " + ", ".join(f"{number:,} {reason}" for reason, number in repaired.items()) + ".")
    return f'<div class="two"><table class="plain">{table}</table><div>{_list(told)}</div></div>'


def _measures(report: Report) -> str:
    parts = []
    if report.validation:
        counted = {name: _counted(report, name) for name in report.validation.places.contrasts}
        for scheme, folds in report.validation.folds.items():
            parts.append(
                f'<h3>{html_text(_scheme_title(folds.kind))}</h3><p class="note">{html_text(folds.describe())}</p>'
            )
            parts.append(_table(report.validation, scheme, counted))
        parts.append(
            '<p class="note">Means over the folds ± standard error; the best of each column in bold. AUC: chance '
            "that a presence scores above a comparison place. AUC-PRG and Boyce: 0 is chance, 1 is best; AUC-PRG is of "
            f"all folds together, and not given with fewer than {FEWEST_POOLED} presences. TSS: the "
            "largest over all thresholds. COR: correlation of score and presence.</p>"
        )
    if report.evaluation:
        parts.append(
            f"<h3>{html_text(report.evaluation.source)}, judged by records</h3>{_evaluation(report.evaluation)}"
        )
    return "".join(parts)


def _scheme_title(kind: str) -> str:
    return {
        "blocks": "Spatial blocks: how it does away from its records",
        "locations": "One location left out at a time",
        "random": "Random folds: for comparison only",
    }[kind]


def _shown(results: Sequence[Result]) -> list[str]:
    """The measures that apply in any of the results."""
    return [name for name in LABELS if any(one.mean(name) is not None for one in results)]


def _table(validation: CrossValidation, scheme: str, counted: Mapping[str, str]) -> str:
    """The measures of all methods, in one group of rows for each comparison; `counted`: its places in words."""
    contrasts = validation.places.contrasts
    results = {
        (method, contrast): validation.result(method, scheme, contrast)
        for method in validation.methods
        for contrast in contrasts
    }
    shown = {name: _shown([results[method, name] for method in validation.methods]) for name in contrasts}
    shown = {name: listed for name, listed in shown.items() if listed}
    if not shown:
        return '<p class="note">No fold has presences and comparison places.</p>'
    columns = [measure for measure in LABELS if any(measure in listed for listed in shown.values())]
    names = "".join(f"<th>{LABELS[measure]}</th>" for measure in columns)
    bodies = []
    for contrast in shown:
        compared = [results[method, contrast] for method in validation.methods]
        rows = [f'<tr><th colspan="{1 + len(columns)}">Against {counted[contrast]}</th></tr>']
        for number, method in enumerate(validation.methods):
            cells = "".join(_cell(compared, number, measure) for measure in columns)
            own = ' class="own"' if number == 0 else ""
            rows.append(f"<tr{own}><td>{html_text(method)}</td>{cells}</tr>")
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    return f'<div class="scroll"><table><thead><tr><th>Method</th>{names}</tr></thead>{"".join(bodies)}</table></div>'


def _cell(results: Sequence[Result], number: int, measure: str) -> str:
    value, error = results[number].mean(measure), results[number].standard_error(measure)
    classes = []
    if value is None:
        return "<td>–</td>"
    everyone = [mean for one in results if (mean := one.mean(measure)) is not None]
    best = min(everyone) if measure in _LOW_IS_GOOD else max(everyone)
    if len(everyone) > 1 and f"{value:.3f}" == f"{best:.3f}":
        classes.append("best")
    spread = f" <small>± {error:.3f}</small>" if error is not None and measure == "auc" else ""
    return f'<td class="{" ".join(classes)}">{value:.3f}{spread}</td>'


def _evaluation(evaluation: Evaluation) -> str:
    names = [name for name in LABELS if any(getattr(one, name) is not None for one in evaluation.scores.values())]
    head = "".join(f"<th>{LABELS[name]}</th>" for name in names)
    rows = "".join(
        f"<tr><td>Against {scores.places:,} {CONTRASTS[contrast]}</td>"
        + "".join(f"<td>{_number(scores, name)}</td>" for name in names)
        + "</tr>"
        for contrast, scores in evaluation.scores.items()
    )
    told = f"{evaluation.presences:,} presences"
    if evaluation.same_pixel:
        told += f"; {evaluation.same_pixel:,} more share a pixel with one of them"
    told += f". Random places lie within {evaluation.within_km:,.0f} km of a presence."
    return (
        f'<p class="note">{told}</p><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _number(scores: Scores, name: str) -> str:
    value = getattr(scores, name)
    return "–" if value is None else f"{value:.3f}"


def _lines(report: Report) -> tuple[dict[str, Line], list[Line]]:
    """Lines of the map itself by their comparison, and those of its baselines against the first comparison."""
    if report.validation:
        validation, scheme = report.validation, next(iter(report.validation.folds))
        own = {name: _line(validation, validation.methods[0], scheme, name) for name in validation.places.contrasts}
        rivals = [
            _line(validation, method, scheme, validation.places.contrasts[0], number)
            for number, method in enumerate(validation.methods[1:])
        ]
        return {name: one for name, one in own.items() if one}, [one for one in rivals if one]
    if report.evaluation:
        values = report.evaluation.values
        own_lines = {
            name: Line(f"Against {CONTRASTS[name]}", values[PRESENCE], values[name], CONTRAST_COLOURS[name], 1.9)
            for name in CONTRASTS
            if name in values
        }
        return own_lines, []
    return {}, []


def _line(
    validation: CrossValidation, method: str, scheme: str, contrast: str, baseline: int | None = None
) -> Line | None:
    places, scores = validation.places, validation.predictions[method, scheme]
    known = np.isfinite(scores)
    presence, others = scores[places.present & known], scores[(places.kind == contrast) & known]
    if not presence.size or not others.size:
        return None
    if baseline is not None:
        return Line(method, presence, others, figures.other_colour(baseline), 1.1)
    return Line(f"{_short_contrast(contrast)}", presence, others, CONTRAST_COLOURS[contrast], 2.0)


def _short_contrast(contrast: str) -> str:
    return {"land": "This map, random places", "group": "This map, group", "absences": "This map, absences"}[contrast]


def _curves(report: Report) -> str:
    by_contrast, rivals = _lines(report)
    if not by_contrast:
        return ""
    own = list(by_contrast.values())
    panels = [
        ("ROC", figures.roc([*rivals, *own]), "Farther to the upper left is better; the diagonal is chance."),
        (
            "Precision and recall as gains",
            figures.prg([*rivals, *own]),
            "Higher is better; 0 is no better than to predict presence everywhere.",
        ),
        (
            "Boyce",
            figures.boyce(own),
            "Should rise with the score: the higher the score, the more presences than at random.",
        ),
        (
            "Omission and area",
            figures.omission(by_contrast.get("land", own[0]), report.thresholds),
            "What a threshold costs, and what it gains.",
        ),
    ]
    judged = _calibration_line(report)
    if judged is not None:
        panels.append(("Calibration", figures.calibration(judged), "On the diagonal probabilities are right."))
    source = "Scores of all folds together, each from a fit that did not see the place." if report.validation else ""
    note = f'<p class="note">{source}</p>' if source else ""
    return (
        note
        + '<div class="curves">'
        + "".join(f"<div><h3>{title}</h3>{_figure(figure, '', caption)}</div>" for title, figure, caption in panels)
        + "</div>"
    )


def _calibration_line(report: Report) -> Line | None:
    """Where the scores are probabilities and there are absences."""
    if report.validation and report.probability and "absences" in report.validation.places.contrasts:
        scheme = next(iter(report.validation.folds))
        line = _line(report.validation, report.validation.methods[0], scheme, "absences")
    elif report.evaluation and report.evaluation.probability and "absences" in report.evaluation.values:
        values = report.evaluation.values
        line = Line("This map", values[PRESENCE], values["absences"], METHOD, 1.9)
    else:
        return None
    if line is None or min(line.presence.min(), line.others.min()) < 0:
        return None
    return line if max(line.presence.max(), line.others.max()) <= 1 else None


def _folds(report: Report) -> str:
    if report.validation is None:
        return ""
    folds = next(iter(report.validation.folds.values()))
    places = report.validation.places
    figure = figures.folds_map(folds, places.lon, places.lat, places.present)
    caption = "Each colour is left out once: large dots are presences, small ones comparison places."
    return f"<p>{html_text(folds.describe())}</p>{_figure(figure, 'folds', caption)}"


def _variables(report: Report) -> str:
    parts = []
    if report.importance:
        parts.append(
            "<h3>Importance</h3>"
            + _figure(
                figures.importance(report.importance),
                "bars",
                "How much worse the map tells presences from other places when the values of a variable are shuffled. "
                "Variables that resemble each other stand in for one another, and each then looks unimportant.",
            )
        )
    if report.decided:
        rows = "".join(
            f'<tr><td class="name">{html_text(one.name)}</td><td class="number">{one.presences:.0%}</td>'
            f'<td class="number">{one.others:.0%}</td></tr>'
            for one in report.decided
        )
        parts.append(
            "<h3>What decides</h3>"
            + _figure(
                figures.decided(report.decided),
                "bars",
                "How much of the difference of the score from its typical value each part of a place causes, by the "
                "linear member of the fit: the embeddings of the modalities, and groups of variables.",
            )
            + '<table><thead><tr><th>Part</th><th class="number">at presences</th><th class="number">at comparison '
            f"places</th></tr></thead><tbody>{rows}</tbody></table>"
        )
    if report.responses:
        drawn = [figures.response(number, one) for number, one in enumerate(report.responses[:_MOST_RESPONSES])]
        parts.append(
            '<h3>Response curves</h3><p class="note">Mean score when one variable is changed everywhere and the others '
            "stay; shaded: the middle 80&nbsp;% of places; ticks: deciles of the presences.</p>"
            f'<div class="responses">{"".join(_figure(one) for one in drawn)}</div>'
        )
    return "".join(parts)


def _thresholds(report: Report) -> str:
    rows = "".join(
        f'<tr><td class="name">{html_text(one.rule)}</td><td>{html_text(RULES[one.rule])}</td>'
        f'<td class="number">{one.value:.4g}</td><td class="number">{one.sensitivity:.1%}</td>'
        f'<td class="number">{one.specificity:.1%}</td><td class="number">{one.area_share:.1%}</td></tr>'
        for one in report.thresholds
    )
    parts = []
    if rows:
        parts.append(
            '<div class="scroll"><table class="plain"><thead><tr><th>Rule</th><th>Meaning</th>'
            '<th class="number">Value</th>'
            '<th class="number">Presences kept</th><th class="number">Specificity</th>'
            '<th class="number">Area predicted</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    if report.area:
        rule = f" by the rule {html_text(report.area.rule)}" if report.area.rule else ""
        text = f"The range{rule} covers {_km2(report.area.km2)} km² on the WGS 84 ellipsoid"
        if report.area.low_km2 is not None and report.area.high_km2 is not None:
            text += (
                f"; low and high: {_km2(report.area.low_km2)} and {_km2(report.area.high_km2)} km², "
                f"{html_text(report.area.bounds)}"
            )
        parts.append(f"<p>{text}.</p>")
    return "".join(parts)


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html_text(one)}</li>" for one in sentences) + "</ul>" if sentences else ""


def _provenance(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{html_text(key)}</td><td>{html_text(value)}</td></tr>" for key, value in report.provenance.items()
    )
    parts = [f'<table class="plain">{rows}</table>'] if rows else []
    if report.citations:
        parts.append(f"<h3>To be cited</h3>{_list(report.citations)}")
    return "".join(parts)


def _footer(report: Report) -> str:
    links = " · ".join(
        f'<a href="{html_text(relative_link(name))}">{html_text(label)}</a>' for label, name in report.links.items()
    )
    return f"<footer><p>{links}</p><p>Made with taxabind-map {html_text(__version__)}.</p></footer>"
