"""The shipped table of names, read once."""

import pytest

from sdm.names import TaxonTable
from tests.names.tables import MODEL


@pytest.fixture(scope="session")
def table() -> TaxonTable:
    return TaxonTable.load(MODEL)
