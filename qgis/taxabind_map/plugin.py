"""The plugin: it adds its provider to Processing and has no window of its own."""

from qgis.core import QgsApplication

from .provider import Provider


class Plugin:
    """Loaded by QGIS and, for its provider alone, by qgis_process."""

    def __init__(self):
        self.provider = None

    def initProcessing(self):
        """Add the provider."""
        self.provider = Provider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self):
        """Add the provider when the desktop starts."""
        self.initProcessing()

    def unload(self):
        """Remove the provider."""
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
