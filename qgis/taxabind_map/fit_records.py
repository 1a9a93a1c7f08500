"""Map a species from occurrence records."""

from qgis.core import (
    QgsProcessingOutputRasterLayer,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterString,
)

from .algorithm import Algorithm
from .map_species import map_one


class FitRecords(Algorithm):
    """`taxabind-map --records FILE`."""

    NAME = "fitrecords"
    TITLE = "Map a species from occurrence records"
    HELP = (
        "Fits a map to occurrence records of any species: a point layer, or a file (GBIF, iNaturalist or eBird "
        "download, Darwin Core archive, CSV). Give the species where the file holds several. The report says how far "
        "to trust the map; bands of the map say it for each pixel. The saved fit maps the species elsewhere."
    )

    def initAlgorithm(self, configuration=None):
        self.add_records()
        self.addParameter(
            QgsProcessingParameterString("SPECIES", "Species (empty: the one in the file)", optional=True)
        )
        self.add_area()
        self.add_habitat()
        self.addParameter(QgsProcessingParameterBoolean("EVALUATE", "Cross-validate and write a report", True))
        self.advanced(
            QgsProcessingParameterFile(
                "BACKGROUND", "Records of other species of the group, to compare with", optional=True
            )
        )
        self.add_folder()
        self.addOutput(QgsProcessingOutputRasterLayer("MAP", "Map"))
        self.addOutput(QgsProcessingOutputVectorLayer("RANGE", "Range"))
        self.add_files(
            ("HTML", "Web map"),
            ("REPORT", "Report (JSON)"),
            ("EVALUATION", "Evaluation (web page)"),
            ("FIT", "Saved fit"),
            ("AUDIT", "Records kept and dropped"),
        )

    def processAlgorithm(self, parameters, context, feedback):
        words = self.records(parameters, context, feedback)
        if background := self.parameterAsFile(parameters, "BACKGROUND", context):
            words += ["--background", background]
        if not self.parameterAsBoolean(parameters, "EVALUATE", context):
            words.append("--no-evaluate")
        words += [*self.area(parameters, context, feedback), *self.habitat(parameters, context)]
        species = self.parameterAsString(parameters, "SPECIES", context).strip()
        return map_one(
            self.folder(parameters, context), [*words, *(["--", species] if species else [])], context, feedback
        )
