"""The region index: a region encoded once, so that each species costs one product per pixel.

`encoding` turns unit vectors into bytes; `store` is the Zarr layout and what is believed of it;
`reader` opens an index and asks it (`Index`); `build` makes one, and goes on where it was cut off.
"""

from sdm.index.build import IndexJob, build_index, plan_index
from sdm.index.reader import Index

__all__ = ["Index", "IndexJob", "build_index", "plan_index"]
