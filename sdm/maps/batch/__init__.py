"""Maps of a list of species in one pass: each tile is encoded once and compared with all of them.

`plan_batch` resolves the list and decides everything, `write_batch` computes; `map_batch` does both. A run may
be interrupted at any moment: the same call computes the missing tiles and produces the same bytes
(`sdm.files.workspace`). A tile's embeddings are compared with some species at a time, and what is left of
them is written, so memory depends neither on the number of species nor on the region.

The modules, each importing only those above it::

    plan        names resolved, everything decided
    texts       what the outputs say about themselves
    tiles       one tile: all species compared, chunks, statistics and pictures written
    drawings    after the tiles: pictures, the map of the sum, files per species
    summary     the table, the page, the report
    run         a batch from plan to published outputs
"""

from sdm.maps.batch.plan import Batch, Row, plan_batch
from sdm.maps.batch.run import BatchResult, map_batch, write_batch

__all__ = ["Batch", "BatchResult", "Row", "map_batch", "plan_batch", "write_batch"]
