"""The areas of Red List criterion B from records."""

from pathlib import Path

from qgis.core import (
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from . import command, inputs
from .algorithm import Algorithm, load


class Assess(Algorithm):
    """`sdm assess`."""

    NAME = "assess"
    TITLE = "Areas for the Red List (EOO, AOO)"
    HELP = (
        "Extent of occurrence and area of occupancy from occurrence records, with the thresholds of criterion B that "
        "they meet; never a category. With a map of the species, also the extent of the range that the map shows. An "
        "area of occupancy cannot be measured on a map."
    )

    def initAlgorithm(self, configuration=None):
        self.add_records()
        self.addParameter(QgsProcessingParameterString("SPECIES", "Species (empty: all in the file)", optional=True))
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Map of the species", optional=True))
        self.add_folder()
        self.addOutput(QgsProcessingOutputVectorLayer("AREAS", "Hulls and cells"))
        self.addOutput(QgsProcessingOutputVectorLayer("TABLE", "Table"))
        self.add_files(("REPORT", "Report (JSON)"))

    def processAlgorithm(self, parameters, context, feedback):
        folder = Path(self.folder(parameters, context))
        records = self.records(parameters, context, feedback)
        words = ["--out", str(folder), "--overwrite", *records]
        if species := self.parameterAsString(parameters, "SPECIES", context).strip():
            words += ["--species", species]
        if (layer := self.parameterAsRasterLayer(parameters, "MAP", context)) is not None:
            words += ["--map", inputs.raster_file(layer)]
        if command.run("sdm assess", words, feedback) is None:
            return {}
        stem = Path(records[1]).name.split(".")[0]
        results = {"FOLDER": str(folder)}
        for output, ending in (("AREAS", ".gpkg"), ("TABLE", ".csv"), ("REPORT", ".json")):
            path = folder / f"{stem}-assessment{ending}"
            if path.exists():
                results[output] = str(path)
        for layer_name, title in (("eoo", "Extent of occurrence"), ("aoo", "Occupied cells")):
            if "AREAS" in results:
                load(context, f"{results['AREAS']}|layername={layer_name}", title, "AREAS")
        load(context, results["TABLE"], "Areas for the Red List", "TABLE")
        return results
