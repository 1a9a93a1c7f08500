"""Input layers: rasters and polygons read at places on the globe, tile by tile, never whole."""
