"""Names of species and groups: read a model's table, resolve what a user typed, name files after it.

    table = TaxonTable.load("models/mammals-trees")
    table.resolve("grizzly").taxon.name          # 'Ursus arctos'

Only the standard library is imported here, so that a wrong name is reported before anything heavy loads; rapidfuzz,
which is small, when a name is not known.
"""

from sdm.names.among import binomial, is_exact, listed, resolve_among
from sdm.names.domestic import DomesticNameError
from sdm.names.slug import slug
from sdm.names.table import TaxonTable
from sdm.names.taxa import RANKS, Resolution, Taxon, taxonomic_string

__all__ = [
    "RANKS",
    "DomesticNameError",
    "Resolution",
    "Taxon",
    "TaxonTable",
    "binomial",
    "is_exact",
    "listed",
    "resolve_among",
    "slug",
    "taxonomic_string",
]
