"""Input layers: rasters sampled at places on the globe, window by window."""

ATTRIBUTION = (
    "Contains modified Copernicus Climate Change Service information (ERA5)",
    "Mapzen terrain, NOAA ETOPO5, NASA MODIS and Blue Marble, GSHHG, Natural Earth",
)
"""Short credits for the bundled layers; `data/NOTICE.md` has the full ones."""
