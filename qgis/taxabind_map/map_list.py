"""Map all species of a list."""

from pathlib import Path

from qgis.core import (
    QgsProcessingException,
    QgsProcessingOutputRasterLayer,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterFile,
)

from . import command
from .algorithm import Algorithm, load


class MapList(Algorithm):
    """`taxabind-map --species FILE`."""

    NAME = "maplist"
    TITLE = "Map a list of species"
    HELP = (
        "Maps every species of a table (CSV, TSV, text, Parquet) in one pass: a GeoTIFF for each, a summary table, a "
        "richness map and a web page. Species that cannot be mapped are in the summary with the reason. A run that was "
        "cancelled goes on where it stopped when it is started again with the same settings and folder."
    )

    def initAlgorithm(self, configuration=None):
        self.addParameter(QgsProcessingParameterFile("LIST", "List of species"))
        self.add_area()
        self.add_habitat()
        self.add_name()
        self.add_probability("THRESHOLD", "Probability above which the summary counts area")
        self.add_folder()
        self.addOutput(QgsProcessingOutputRasterLayer("RICHNESS", "Richness"))
        self.addOutput(QgsProcessingOutputVectorLayer("SUMMARY", "Summary table"))
        self.add_files(("PAGE", "Web page"), ("REPORT", "Report (JSON)"))

    def processAlgorithm(self, parameters, context, feedback):
        folder = Path(self.folder(parameters, context))
        table = self.parameterAsFile(parameters, "LIST", context)
        if not Path(table).is_file():
            raise QgsProcessingException(f"the list {table!r} is not a file.")
        threshold = self.parameterAsDouble(parameters, "THRESHOLD", context)
        words = ["--species", table, "--out", str(folder), "--format", "cog", "--threshold", repr(threshold)]
        words += [*self.area(parameters, context, feedback), *self.habitat(parameters, context)]
        words += self.name_options(parameters, context)
        report = command.run("taxabind-map", words, feedback, progress=True)
        if report is None:
            return {}
        results = {"FOLDER": str(folder)}
        for output, name in FILES.items():
            if (folder / name).exists():
                results[output] = str(folder / name)
        load(context, results["RICHNESS"], "Species richness", "RICHNESS")
        load(context, results["SUMMARY"], "Summary of the list", "SUMMARY")
        return results


FILES = {"RICHNESS": "richness.tif", "SUMMARY": "summary.csv", "PAGE": "index.html", "REPORT": "batch.json"}
"""The file of each output."""
