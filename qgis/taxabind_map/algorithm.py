"""What all algorithms share: their place in the toolbox, common parameters, the layers that they load."""

from pathlib import Path

from qgis.core import (
    QgsFillSymbol,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputFile,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterCrs,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsSingleSymbolRenderer,
    QgsWkbTypes,
)
from qgis.PyQt.QtGui import QIcon

from . import inputs

MASKS = ["auto", "land", "sea", "none"]
ORIGINS = {"Native": "native", "Also where people introduced the species": "all"}
MONTHS = [
    "Whole year",
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


class Algorithm(QgsProcessingAlgorithm):
    """An algorithm that runs a command of taxabind-map."""

    NAME = TITLE = HELP = ""

    def createInstance(self):
        return type(self)()

    def name(self):
        return self.NAME

    def displayName(self):
        return self.TITLE

    def shortHelpString(self):
        return self.HELP

    def helpUrl(self):
        return "https://github.com/taxabind-map/taxabind-map/tree/main/docs"

    def icon(self):
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def advanced(self, parameter):
        """Add a parameter under the heading for advanced ones."""
        parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(parameter)

    def add_place(self, extent="Extent", region="Region (instead of the extent)"):
        """Add the parameters of an extent and of a region, by their words."""
        self.addParameter(QgsProcessingParameterExtent("EXTENT", extent, optional=True))
        self.addParameter(
            QgsProcessingParameterFeatureSource("REGION", region, [QgsProcessing.TypeVectorPolygon], optional=True)
        )

    def add_probability(self, name, words, least=0.001, most=0.999):
        """Add the parameter of a probability, 0.5 unless the user changes it."""
        self.addParameter(
            QgsProcessingParameterNumber(
                name, words, QgsProcessingParameterNumber.Double, defaultValue=0.5, minValue=least, maxValue=most
            )
        )

    def add_month(self):
        """Add the parameter of the month."""
        self.addParameter(
            QgsProcessingParameterEnum("MONTH", "Month (seasonal models only)", MONTHS, defaultValue=0, optional=True)
        )

    def add_origin(self):
        """Add the parameter of the range: native, or with introduced populations."""
        self.addParameter(
            QgsProcessingParameterEnum("ORIGIN", "Range to map", list(ORIGINS), defaultValue=0, optional=True)
        )

    def season(self, parameters, context):
        """The arguments of the month and of the range."""
        words = []
        if month := self.parameterAsEnum(parameters, "MONTH", context):
            words += ["--month", str(month)]
        return words + self.origin(parameters, context)

    def origin(self, parameters, context):
        """The arguments of the range."""
        chosen = list(ORIGINS.values())[self.parameterAsEnum(parameters, "ORIGIN", context)]
        return ["--origin", chosen] if chosen != "native" else []

    def add_area(self):
        """Add the parameters of the area: extent, region, resolution, CRS."""
        self.add_place()
        self.addParameter(
            QgsProcessingParameterNumber(
                "RESOLUTION",
                "Pixel size in units of the CRS (empty: about a megapixel)",
                QgsProcessingParameterNumber.Double,
                optional=True,
                minValue=0.0,
            )
        )
        self.advanced(QgsProcessingParameterCrs("CRS", "CRS of the map (empty: EPSG:4326)", optional=True))

    def area(self, parameters, context, feedback):
        """The arguments of the area."""
        words = inputs.box(self, parameters, "EXTENT", context)
        region = inputs.layer_file(self, parameters, "REGION", context, feedback)
        if region:
            words = ["--region", region]
        if parameters.get("RESOLUTION") not in (None, ""):
            words += ["--resolution", inputs.number(self.parameterAsDouble(parameters, "RESOLUTION", context))]
        crs = self.parameterAsCrs(parameters, "CRS", context)
        if crs.isValid():
            words += ["--crs", crs.authid() or crs.toWkt()]
        return words

    def add_habitat(self):
        """Add the parameters of the mask, the month and the range."""
        self.addParameter(
            QgsProcessingParameterEnum(
                "MASK", "Mask", MASKS, defaultValue="auto", usesStaticStrings=True, optional=True
            )
        )
        self.add_month()
        self.addParameter(
            QgsProcessingParameterString(
                "RULE",
                "Range as polygon, by rule: 0.5, precision=0.9, recall=0.9, area",
                optional=True,
            )
        )

    def habitat(self, parameters, context):
        """The arguments of the mask, the month and the range."""
        words = []
        mask = self.parameterAsEnumString(parameters, "MASK", context)
        if mask and mask != "auto":
            words += ["--mask", mask]
        if month := self.parameterAsEnum(parameters, "MONTH", context):
            words += ["--month", str(month)]
        rule = self.parameterAsString(parameters, "RULE", context).strip()
        if rule:
            words += ["--range", rule]
        return words

    def add_name(self):
        """Add the parameters of a name: its range, and what happens where the model does not know it."""
        self.add_origin()
        self.advanced(QgsProcessingParameterBoolean("AS_GROUP", "Map an unknown species as its genus or family", False))

    def name_options(self, parameters, context):
        """The arguments of a name."""
        group = ["--as-group"] if self.parameterAsBoolean(parameters, "AS_GROUP", context) else []
        return [*self.origin(parameters, context), *group]

    def add_records(self):
        """Add the parameters of occurrence records: a layer with its fields, or a file."""
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                "RECORDS", "Records: a point layer", [QgsProcessing.TypeVectorPoint], optional=True
            )
        )
        for name, words in (
            ("SPECIES_FIELD", "Field with the species"),
            ("PRESENCE_FIELD", "Field with presence and absence (1/0, yes/no)"),
        ):
            self.addParameter(
                QgsProcessingParameterField(name, words, parentLayerParameterName="RECORDS", optional=True)
            )
        self.addParameter(QgsProcessingParameterFile("FILE", "Records: a file, instead of a layer", optional=True))

    def records(self, parameters, context, feedback):
        """The arguments of the records."""
        path = inputs.layer_file(self, parameters, "RECORDS", context, feedback)
        file = self.parameterAsFile(parameters, "FILE", context)
        if bool(path) == bool(file):
            raise QgsProcessingException("give the records either as a point layer or as a file.")
        words = ["--records", path or file]
        for name, option in (("SPECIES_FIELD", "--records-species-column"), ("PRESENCE_FIELD", "--presence-column")):
            if field := self.parameterAsString(parameters, name, context):
                words += [option, field]
        return words

    def add_folder(self):
        """Add the parameter and the output of the folder of results."""
        self.addParameter(QgsProcessingParameterFolderDestination("FOLDER", "Folder for the results"))

    def folder(self, parameters, context):
        """The folder of results."""
        return self.parameterAsString(parameters, "FOLDER", context)

    def add_files(self, *outputs):
        """Add outputs that are files: (name, words) pairs."""
        for name, words in outputs:
            self.addOutput(QgsProcessingOutputFile(name, words))


class Styling(QgsProcessingLayerPostProcessorInterface):
    """Styles a layer that QGIS has loaded: a map as the file beside it says, polygons as outlines over a map."""

    def postProcessLayer(self, layer, context, feedback):
        if isinstance(layer, QgsRasterLayer):
            style = Path(layer.source()).with_suffix(".qml")
            if style.exists():
                layer.loadNamedStyle(str(style))
        elif layer.geometryType() == QgsWkbTypes.PolygonGeometry:
            outline = {"style": "no", "outline_color": "#c2410c", "outline_width": "0.5"}
            layer.setRenderer(QgsSingleSymbolRenderer(QgsFillSymbol.createSimple(outline)))
        layer.triggerRepaint()


def load(context, path, name, output):
    """Have a layer loaded, and styled, when the algorithm has ended."""
    layer = QgsProcessingUtils.mapLayerFromString(str(path), context)
    if layer is None:
        return
    layer.setName(name)
    details = QgsProcessingContext.LayerDetails(name, context.project(), output)
    # QGIS would rename it after the output, by one of its settings.
    details.forceName = True
    _kept.append(Styling())
    details.setPostProcessor(_kept[-1])
    # The temporary store owns it until QGIS moves it to the project.
    context.addLayerToLoadOnCompletion(layer.id(), details)


_kept = []
"""What styles layers that are still to be loaded: QGIS holds no reference of its own."""
