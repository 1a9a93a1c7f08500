"""The files of a map: Zarr, Cloud-Optimized GeoTIFF with a QGIS style, web map, JSON.

    metadata    names, unit and provenance of a map
    blocks      a raster in blocks of bounded size
    statistics  exact statistics and areas in one pass
    style       the colour ramp and the QGIS style
    overlay     a map as an image in Web Mercator
    basemap     land and borders
    escape      foreign text in web pages
    zarr_store, cog, sidecar, webmap    one writer per format
    cube, gallery                       maps of many species, and the page that lists them
    embeddings                          embeddings as Parquet

Every raster holds float32 values with dimensions (y, x); NaN means *not modelled* and is never confused
with 0. Writers write to the path they are given: give them paths inside `sdm.files.atomic.Staging`, then
publish.
"""
