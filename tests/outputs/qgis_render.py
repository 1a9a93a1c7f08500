"""Run by the system's Python: open rasters in QGIS and report what it makes of them, as JSON.

Arguments: folder for pictures, then uri[=style.qml] of each raster.
"""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor


def report(uri, style, picture):
    layer = QgsRasterLayer(uri, "map")
    if not layer.isValid():
        return {"valid": False, "error": layer.error().message()}
    if style:
        layer.loadNamedStyle(style)
    renderer = layer.renderer()
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setDestinationCrs(layer.crs())
    settings.setBackgroundColor(QColor(255, 0, 255))
    settings.setOutputSize(QSize(layer.width(), layer.height()))
    settings.setExtent(layer.extent())
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(picture)
    extent = layer.extent()
    result = {
        "valid": True,
        "crs": layer.crs().authid(),
        "extent": [extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()],
        "size": [layer.width(), layer.height()],
        "renderer": renderer.type(),
        "legend": [label for label, _ in renderer.legendSymbologyItems()],
        "band": layer.bandName(1),
        "bands": [layer.bandName(number) for number in range(1, layer.bandCount() + 1)],
        "nodata": layer.dataProvider().sourceHasNoDataValue(1),
    }
    del job, settings, renderer, layer
    return result


def main():
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    folder, results = sys.argv[1], []
    for index, argument in enumerate(sys.argv[2:]):
        uri, _, style = argument.partition("=")
        results.append(report(uri, style, f"{folder}/{index}.png"))
    print(json.dumps(results))
    sys.stdout.flush()
    application.exitQgis()


main()
