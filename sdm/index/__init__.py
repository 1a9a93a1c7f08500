"""The region index: a region encoded once, so that each species costs one product per pixel.

`encoding` turns unit vectors into bytes; `store` is the Zarr layout, and checks what a store says before it is read;
`pixels` reads them, `reader` is an opened index (`Index`); `plan` decides, and `build` makes one or continues where
it was interrupted.
"""

from sdm.index.build import build_index
from sdm.index.plan import IndexJob, plan_index
from sdm.index.reader import Index

__all__ = ["Index", "IndexJob", "build_index", "plan_index"]
