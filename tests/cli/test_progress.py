"""Progress for programs that start this one."""

import pytest

from sdm.cli.app import progress
from sdm.cli.map import MapOptions
from sdm.errors import RequestError


def test_lines_are_written_where_stderr_is_no_terminal(capsys):
    with progress(True, "lines") as tell:
        tell("tiles", 0, 16)
        tell("tiles", 3, 16)
    assert capsys.readouterr().err.splitlines() == ["progress tiles 0/16", "progress tiles 3/16"]


def test_a_bar_and_quiet_runs_write_nothing_there(capsys):
    for enabled, style in ((True, "bar"), (False, "lines")):
        with progress(enabled, style) as tell:
            tell("tiles", 1, 2)
    assert capsys.readouterr().err == ""


def test_other_styles_are_refused():
    with pytest.raises(RequestError, match="progress 'dots' is not known; choose one of bar, lines"):
        MapOptions(progress="dots")
