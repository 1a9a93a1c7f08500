"""The published TaxaBind model: its files, read strictly, and its six encoders.

`Checkpoints.open(folder)` finds files, `fetch.fetch()` downloads them, `verify.verify()` checks them,
`encoders.PublishedEncoders` computes with them. Importing this package imports neither torch nor the hub's library.
"""

from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.models.taxabind.encoders import PublishedEncoders
from sdm.models.taxabind.layout import MODALITIES

__all__ = ["MODALITIES", "Checkpoints", "PublishedEncoders"]
