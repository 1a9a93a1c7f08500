"""The species of a place or region."""

from pathlib import Path

from qgis.core import (
    QgsProcessingException,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterFile,
    QgsProcessingParameterPoint,
)

from . import command, inputs
from .algorithm import Algorithm, load


class WhatLivesHere(Algorithm):
    """`sdm list`."""

    NAME = "whatliveshere"
    TITLE = "What lives here"
    HELP = (
        "The species of all bundled models that live at a place, or somewhere in a region, the likeliest first, as a "
        "table. A region is looked at at a coarse resolution; give an extent or a polygon layer."
    )

    def initAlgorithm(self, configuration=None):
        self.addParameter(QgsProcessingParameterPoint("PLACE", "Place", optional=True))
        self.add_place("or an extent", "or a region")
        self.add_probability("MINIMUM", "Least probability", 0.0, 1.0)
        self.add_month()
        self.add_origin()
        self.advanced(
            QgsProcessingParameterFile(
                "INDEX",
                "Region index, instead of all bundled models",
                QgsProcessingParameterFile.Folder,
                optional=True,
            )
        )
        self.add_folder()
        self.addOutput(QgsProcessingOutputVectorLayer("TABLE", "Species"))

    def processAlgorithm(self, parameters, context, feedback):
        place = []
        if parameters.get("PLACE") not in (None, ""):
            point = self.parameterAsPoint(parameters, "PLACE", context, inputs.WGS84)
            place = ["--at", inputs.number(inputs.wrapped(point.x())), inputs.number(point.y())]
        extent = inputs.box(self, parameters, "EXTENT", context)
        region = inputs.layer_file(self, parameters, "REGION", context, feedback)
        given = [words for words in (place, extent, ["--region", region] if region else []) if words]
        if len(given) != 1:
            raise QgsProcessingException("give one of a place, an extent and a region.")
        table = Path(self.folder(parameters, context), "species.csv")
        table.parent.mkdir(parents=True, exist_ok=True)
        words = [*given[0], "--min", inputs.number(self.parameterAsDouble(parameters, "MINIMUM", context))]
        words += self.season(parameters, context)
        if index := self.parameterAsFile(parameters, "INDEX", context):
            words += ["--index", index]
        words += ["--format", "csv", "--out", str(table), "--overwrite"]
        if command.run("sdm list", words, feedback, report=False) is None:
            return {}
        load(context, table, "What lives here", "TABLE")
        return {"FOLDER": str(table.parent), "TABLE": str(table)}
