"""The provider: the list of algorithms, and the one setting."""

from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .assess import Assess
from .command import SETTING
from .fit_records import FitRecords
from .map_list import MapList
from .map_species import MapSpecies
from .what_lives_here import WhatLivesHere
from .zones import Zones

ICON = Path(__file__).with_name("icon.svg")


class Provider(QgsProcessingProvider):
    """The algorithms of taxabind-map."""

    def id(self):
        return "taxabindmap"

    def name(self):
        return "taxabind-map"

    def icon(self):
        return QIcon(str(ICON))

    def load(self):
        """Register the setting, then the algorithms."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        setting = Setting(
            self.name(),
            SETTING,
            "Path of the program taxabind-map (empty: found on the PATH)",
            "",
            valuetype=Setting.FILE,
        )
        ProcessingConfig.addSetting(setting)
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self):
        """Forget the setting."""
        ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self):
        for algorithm in (MapSpecies, MapList, FitRecords, Zones, WhatLivesHere, Assess):
            self.addAlgorithm(algorithm())
