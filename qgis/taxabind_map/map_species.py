"""Map species by name."""

from pathlib import Path

from qgis.core import (
    QgsProcessingException,
    QgsProcessingOutputRasterLayer,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterString,
)

from . import command
from .algorithm import Algorithm, load


class MapSpecies(Algorithm):
    """`taxabind-map NAME`."""

    NAME = "mapspecies"
    TITLE = "Map a species"
    HELP = (
        "Maps where a species lives: the probability that a place lies in its range, from a scientific or common name. "
        "Give an extent or a polygon layer as region. Month: for models of birds, whose maps change with the season. "
        "Range: the native one, or also where people introduced the species, where the model knows it. "
        "Results are a GeoTIFF with its style and a web page, loaded when done, and the range as polygons if a rule is "
        "given."
    )

    def initAlgorithm(self, configuration=None):
        species = QgsProcessingParameterString("SPECIES", "Species (scientific or common name)")
        species.setMetadata({"widget_wrapper": {"class": f"{__package__}.species_widget.SpeciesWidget"}})
        self.addParameter(species)
        self.add_area()
        self.add_habitat()
        self.add_name()
        self.add_folder()
        self.addOutput(QgsProcessingOutputRasterLayer("MAP", "Map"))
        self.addOutput(QgsProcessingOutputVectorLayer("RANGE", "Range"))
        self.add_files(("HTML", "Web map"), ("REPORT", "Report (JSON)"))

    def processAlgorithm(self, parameters, context, feedback):
        name = self.parameterAsString(parameters, "SPECIES", context).strip()
        if not name:
            raise QgsProcessingException("no species given; type a scientific or common name.")
        words = [*self.area(parameters, context, feedback), *self.habitat(parameters, context)]
        words += self.name_options(parameters, context)
        return map_one(self.folder(parameters, context), [*words, "--", name], context, feedback)


def map_one(folder, words, context, feedback):
    """Run taxabind-map for one species into a folder, load its layers, and return the outputs."""
    words = ["--out", folder, "--format", "cog,html", "--overwrite", *words]
    report = command.run("taxabind-map", words, feedback, progress=True)
    if report is None:
        return {}
    if "files" not in report:
        raise QgsProcessingException("the records are of several species: name one of them, or use 'Map a list'.")
    stem = report["files"]["tif"][: -len(".tif")]
    written = {name[len(stem) :]: str(Path(folder, name)) for name in report["files"].values()}
    results = {output: written[ending] for output, ending in ENDINGS.items() if ending in written}
    title = report["species"]
    if "RANGE" in results:
        load(context, results["RANGE"] + "|layername=range", f"{title}: range", "RANGE")
    load(context, results["MAP"], title, "MAP")
    return {"FOLDER": folder, **results}


ENDINGS = {
    "MAP": ".tif",
    "RANGE": "-range.gpkg",
    "HTML": ".html",
    "REPORT": ".json",
    "EVALUATION": "-report.html",
    "FIT": ".fit.safetensors",
    "AUDIT": "-records.csv",
}
"""How the names of files of each output end, after the name of the map."""
