"""QGIS plugin: the algorithms of taxabind-map in the Processing toolbox."""


def classFactory(iface):
    """The plugin, for QGIS."""
    from .plugin import Plugin

    return Plugin()
