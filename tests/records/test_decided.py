"""What decides the score of a fit: shares of modalities and groups of variables at its own places."""

from __future__ import annotations

import numpy as np
import pytest

from sdm.models.registry import list_models
from sdm.records.decided import Decided, decided
from sdm.records.features import ModelFeatures
from sdm.records.fit import fit_prepared, prepare, prior_for
from sdm.records.report import Report, report_dict, write_report
from sdm.records.table import Records
from sdm.request.records import FitOptions

MODEL = list_models()[0]


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    records = Records.from_points(rng.uniform(-114, -110, 40), rng.uniform(42, 46, 40), species="Testus novus")
    options = FitOptions(background_places=300, refits=0, gate=False)
    source = ModelFeatures(MODEL)
    prior = prior_for(MODEL, source, records.species, options)
    training, info = prepare(records, source, None, options)
    return fit_prepared(training, info, source, prior, options), training, source


def test_shares_sum_to_one_and_name_the_modalities(fitted):
    rows = decided(*fitted)
    names = {row.name for row in rows}
    assert {f"{m} (embedding)" for m in MODEL.place_modalities} < names and {"climate", "terrain"} < names
    for kind in ("presences", "others"):
        assert sum(getattr(row, kind) for row in rows) == pytest.approx(1.0, abs=1e-4)
    assert [row.presences for row in rows] == sorted((row.presences for row in rows), reverse=True)


def test_the_parts_of_the_modalities_add_up_to_the_embedding(fitted):
    from sdm.records.decided import _modalities

    _, training, source = fitted
    some = training.select(np.arange(12))
    total = sum(_modalities(source, some).values())
    np.testing.assert_allclose(total, some.features.embedding, atol=1e-4)


def test_a_report_has_them_as_table_figure_and_json(tmp_path):
    rows = (Decided("location (embedding)", 0.6, 0.2), Decided("climate <b>", 0.4, 0.8))
    report = Report(title="Testus novus", decided=rows)
    assert report_dict(report)["shares"][0] == {"name": "location (embedding)", "presences": 0.6, "others": 0.2}
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert "What decides" in page and "60%" in page and "climate &lt;b&gt;" in page and "climate <b>" not in page
