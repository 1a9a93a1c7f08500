"""A field for the name of a species that suggests names of the models as one types."""

import re

from processing.gui.wrappers import DIALOG_MODELER, WidgetWrapper
from qgis.core import QgsProcessingException, QgsProcessingOutputString, QgsProcessingParameterString
from qgis.PyQt.QtCore import QProcess, QProcessEnvironment, QStringListModel, Qt, QTimer
from qgis.PyQt.QtWidgets import QComboBox, QCompleter, QLineEdit

from . import command

PAUSE = 400
"""Milliseconds after the last key before names are looked up."""
FEWEST = 3
"""Letters from which names are looked up."""


class SpeciesField(QLineEdit):
    """A line with completions from `taxabind-map --search`."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setPlaceholderText("Puma concolor, or mountain lion")
        self.names = QStringListModel(self)
        completer = QCompleter(self.names, self)
        completer.setCaseSensitivity(Qt.CaseInsensitive)
        # The program has searched already, in common names too.
        completer.setCompletionMode(QCompleter.UnfilteredPopupCompletion)
        completer.activated[str].connect(self.take)
        self.setCompleter(completer)
        self.process = QProcess(self)
        self.process.finished.connect(self.show_names)
        self.timer = QTimer(self, singleShot=True, interval=PAUSE)
        self.timer.timeout.connect(self.search)
        self.textEdited.connect(lambda _: self.timer.start())

    def search(self):
        """Look up what is typed."""
        text = self.text().strip()
        if len(text) < FEWEST:
            return
        if self.process.state() != QProcess.NotRunning:
            self.timer.start()
            return
        try:
            path = command.program("taxabind-map")
        except QgsProcessingException:
            return  # the algorithm says so when it is run
        own = QProcessEnvironment()
        for key, value in command.environment().items():
            own.insert(key, value)
        self.process.setProcessEnvironment(own)
        self.process.start(path, [f"--search={text}"])

    def show_names(self):
        """Offer the names found."""
        lines = bytes(self.process.readAllStandardOutput()).decode("utf-8", "replace").splitlines()
        self.names.setStringList([line.partition("  [")[0] for line in lines if "  [" in line])
        if self.names.rowCount() and self.hasFocus():
            self.completer().complete()

    def take(self, line):
        """The scientific name of the chosen line, without its rank ("genus Lynx (lynx)")."""
        name = re.sub("^[a-z]+ ", "", line.partition(" (")[0])
        # After the completer has put in the whole line.
        QTimer.singleShot(0, lambda: self.setText(name))


class SpeciesWidget(WidgetWrapper):
    """The field in the dialogs of Processing: toolbox, batch and model designer."""

    def createWidget(self):
        if self.dialogType != DIALOG_MODELER:
            return SpeciesField()
        # In a model the name may also come from an input or from another algorithm.
        sources = self.dialog.getAvailableValuesOfType([QgsProcessingParameterString], [QgsProcessingOutputString])
        widget = QComboBox()
        widget.setEditable(True)
        for source in sources:
            widget.addItem(self.dialog.resolveValueDescription(source), source)
        return widget

    def setValue(self, value):
        if self.dialogType == DIALOG_MODELER:
            self.setComboValue(value)
        else:
            self.widget.setText(str(value or ""))

    def value(self):
        return self.comboValue() if self.dialogType == DIALOG_MODELER else self.widget.text().strip()
