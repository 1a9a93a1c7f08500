"""A table from its folder: what must be there, and what it costs."""

import subprocess
import sys
import time

import pytest

from sdm.errors import ModelError, SpeciesNameError
from sdm.names import TaxonTable
from tests.names.tables import BEAR, HEADER, MODEL, write_folder


def test_smallest_table(tmp_path):
    table = TaxonTable.load(write_folder(tmp_path, HEADER + BEAR))
    taxon = table.resolve("brown bear").taxon
    assert (taxon.name, taxon.cells, taxon.marine, taxon.synonyms) == ("Ursus arctos", 10, 0.5, ())
    assert len(table) == 1
    assert table.resolve("Ursidae").taxon.marine == 0.5
    with pytest.raises(SpeciesNameError):
        table.resolve("Mammuthus primigenius")  # no genera.csv here


def test_byte_order_mark_and_windows_lines(tmp_path):
    text = "\ufeff" + (HEADER + BEAR).replace("\n", "\r\n")
    assert len(TaxonTable.load(write_folder(tmp_path, text))) == 1


def test_missing_table(tmp_path):
    with pytest.raises(ModelError, match=r"taxa\.csv"):
        TaxonTable.load(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        TaxonTable.load(tmp_path / "nowhere")


def test_import_pulls_in_nothing_heavy():
    code = "import sys, sdm.names; print([m for m in ('numpy','pandas','torch','rasterio') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=MODEL.parent.parent
    )
    assert out.stdout.strip() == "[]"


def test_loading_is_quick():
    best = min(_timed(lambda: TaxonTable.load(MODEL)) for _ in range(5))
    assert best < 0.3  # 0.1 s is the aim


def _timed(call) -> float:
    start = time.process_time()  # others may be using the machine
    call()
    return time.process_time() - start
