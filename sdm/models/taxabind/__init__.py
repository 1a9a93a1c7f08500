"""The published TaxaBind model: its files, read strictly, and its six encoders.

`Checkpoints.open(folder)` finds files, `fetch.fetch()` gets them, `verify.verify()` checks them,
`encoders.PublishedEncoders` uses them. Importing this package loads neither torch nor the hub's library.
"""

from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.models.taxabind.encoders import PublishedEncoders
from sdm.models.taxabind.layout import MODALITIES

__all__ = ["MODALITIES", "Checkpoints", "PublishedEncoders"]
