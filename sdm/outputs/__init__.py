"""What a map becomes on disk: Zarr, Cloud-Optimized GeoTIFF with a QGIS style, web map, JSON.

The modules, each importing only those above it::

    metadata    what a map says about itself
    atomic      staging folder, all-or-nothing publication, errors of the disk
    blocks      the raster in blocks of bounded size
    statistics  exact statistics and areas in one pass
    style       the colour ramp and the QGIS style
    zarr_store, cog, sidecar, webmap    one writer per format

Every raster holds float32 values with dimensions (y, x); NaN means *not modelled* and is never mixed up
with 0. Writers write to the path they are given: hand them paths inside `atomic.Staging`, then publish.
"""
