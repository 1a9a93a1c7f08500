"""Run by the system's Python: start a map through the plugin, cancel it at its first progress, say what is left.

Arguments: the folder of the plugin's package, the program, the folder of the map.
"""

import json
import os
import subprocess
import sys

sys.path[:0] = ["/usr/share/qgis/python/plugins", sys.argv[1]]

from processing.core.ProcessingConfig import ProcessingConfig  # noqa: E402
from qgis.core import QgsApplication, QgsProcessingFeedback  # noqa: E402


class Cancelling(QgsProcessingFeedback):
    """Cancels when the first tile is done."""

    def setProgress(self, value):
        super().setProgress(value)
        if value > 2.0:
            self.cancel()


def main():
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    ProcessingConfig.getSetting = staticmethod(lambda name: sys.argv[2])
    from taxabind_map import command

    started = []
    popen = subprocess.Popen

    def keep(*arguments, **settings):
        started.append(popen(*arguments, **settings))
        return started[-1]

    command.subprocess.Popen = keep
    feedback = Cancelling()
    words = ["--out", sys.argv[3], "--bbox", "-125", "31", "-102", "49", "--resolution", "0.02", "--", "Puma concolor"]
    result = command.run("taxabind-map", words, feedback, progress=True)
    try:
        os.kill(started[0].pid, 0)
        alive = started[0].poll() is None
    except ProcessLookupError:
        alive = False
    print(json.dumps({"result": result, "progress": feedback.progress(), "alive": alive}))
    sys.stdout.flush()
    application.exitQgis()


main()
