"""What the user chose in QGIS, as arguments of a command."""

from pathlib import Path

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeatureSink,
    QgsProcessingException,
    QgsProcessingUtils,
    QgsVectorFileWriter,
)

WGS84 = QgsCoordinateReferenceSystem("EPSG:4326")


def number(value):
    """A number as text that loses no digit and is read as one."""
    return repr(float(value))


def box(algorithm, parameters, name, context):
    """`--bbox WEST SOUTH EAST NORTH` of an extent in any CRS; nothing if it was left empty."""
    given = algorithm.parameterAsExtent(parameters, name, context, WGS84)
    if given.isNull() or given.isEmpty():
        return []
    west, east = given.xMinimum(), given.xMaximum()
    if east - west >= 360.0:
        west, east = -180.0, 180.0
    # An extent that reaches over the antimeridian goes on beyond 180 in QGIS; a box has its west > its east.
    west, east = wrapped(west), wrapped(east)
    if east == -180.0:
        east = 180.0
    if west == 180.0:
        west = -180.0
    south, north = max(given.yMinimum(), -90.0), min(given.yMaximum(), 90.0)
    return ["--bbox", *map(number, (west, south, east, north))]


def wrapped(longitude):
    """A longitude in degrees between -180 and 180."""
    return longitude if -180.0 <= longitude <= 180.0 else (longitude + 180.0) % 360.0 - 180.0


def layer_file(algorithm, parameters, name, context, feedback):
    """The features of a layer, or those selected if asked, as a GeoPackage in the temporary folder; None if not given.

    A copy, since a layer may be a query, in memory or filtered; the CRS is that of the layer.
    """
    source = algorithm.parameterAsSource(parameters, name, context)
    if source is None:
        if parameters.get(name) not in (None, ""):
            raise QgsProcessingException(algorithm.invalidSourceError(parameters, name))
        return None
    # The name of the file becomes that of the map where the records name no species.
    stem = "".join(c if c.isalnum() or c in " -_" else "_" for c in source.sourceName()).strip()[:60] or name.lower()
    path = QgsProcessingUtils.generateTempFilename(f"{stem}.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName, options.layerName = "GPKG", "layer"
    sink = QgsVectorFileWriter.create(
        path, source.fields(), source.wkbType(), source.sourceCrs(), context.transformContext(), options
    )
    if sink.hasError() != QgsVectorFileWriter.NoError:
        raise QgsProcessingException(f"the layer {source.sourceName()!r} could not be copied: {sink.errorMessage()}.")
    for feature in source.getFeatures():
        # The copy numbers its features anew: numbers of the layer may come twice (a selection, a union of layers).
        feature.setId(-1)
        if feedback.isCanceled():
            break
        if not sink.addFeature(feature, QgsFeatureSink.FastInsert):
            raise QgsProcessingException(
                f"the layer {source.sourceName()!r} could not be copied: {sink.errorMessage()}."
            )
    del sink  # writes the file
    return path


def raster_file(layer):
    """The file of a raster layer. Raises QgsProcessingException for a layer that is no file."""
    path = layer.source().split("|")[0]
    if not Path(path).exists():
        raise QgsProcessingException(f"the layer {layer.name()!r} is not a file; save it as GeoTIFF first.")
    return path
