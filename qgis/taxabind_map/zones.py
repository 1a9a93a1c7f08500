"""Statistics of maps in zones."""

from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingException,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
)

from . import command, inputs
from .algorithm import Algorithm, load


class Zones(Algorithm):
    """`sdm zones`."""

    NAME = "zones"
    TITLE = "Species in zones"
    HELP = (
        "How much of each map lies in each zone: areas, mean and greatest probability, expected area, share of the "
        "range, and the expected number of species. Pixels count by the part of them that lies in a zone; zones may "
        "overlap."
    )

    def initAlgorithm(self, configuration=None):
        self.addParameter(QgsProcessingParameterMultipleLayers("MAPS", "Maps", QgsProcessing.TypeRaster, optional=True))
        self.addParameter(
            QgsProcessingParameterFile(
                "BATCH",
                "or the folder of a mapped list or region index",
                QgsProcessingParameterFile.Folder,
                optional=True,
            )
        )
        self.addParameter(QgsProcessingParameterFeatureSource("ZONES", "Zones", [QgsProcessing.TypeVectorPolygon]))
        self.addParameter(
            QgsProcessingParameterField(
                "ID", "Field that names the zones", parentLayerParameterName="ZONES", optional=True
            )
        )
        self.add_probability("THRESHOLD", "Probability from which area counts as above")
        self.advanced(
            QgsProcessingParameterFile("LIST", "List of species, of a region index (empty: all)", optional=True)
        )
        self.add_folder()
        self.addOutput(QgsProcessingOutputVectorLayer("ZONES_OUT", "Zones with their numbers"))
        self.addOutput(QgsProcessingOutputVectorLayer("TABLE", "Table of zones and species"))

    def processAlgorithm(self, parameters, context, feedback):
        folder = Path(self.folder(parameters, context))
        maps = [inputs.raster_file(layer) for layer in self.parameterAsLayerList(parameters, "MAPS", context) or []]
        batch = self.parameterAsFile(parameters, "BATCH", context)
        if bool(maps) == bool(batch):
            raise QgsProcessingException("give either maps or a folder.")
        zones = inputs.layer_file(self, parameters, "ZONES", context, feedback)
        words = ["--zones", zones, "--out", str(folder), "--overwrite"]
        words += ["--threshold", inputs.number(self.parameterAsDouble(parameters, "THRESHOLD", context))]
        if field := self.parameterAsString(parameters, "ID", context):
            words += ["--id", field]
        if species := self.parameterAsFile(parameters, "LIST", context):
            words += ["--species", species]
        if command.run("sdm zones", [*words, "--", *(maps or [batch])], feedback, report=False) is None:
            return {}
        stem = folder / Path(zones).stem
        results = {"FOLDER": str(folder), "ZONES_OUT": f"{stem}-zones.gpkg", "TABLE": f"{stem}-zones.csv"}
        load(context, results["ZONES_OUT"], "Zones", "ZONES_OUT")
        load(context, results["TABLE"], "Species in zones", "TABLE")
        return results
