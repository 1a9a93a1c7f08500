"""Where the cache is."""

import sys
from pathlib import Path

import pytest

from sdm.files.paths import cache_folder


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Function: set variables, with no others that decide."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TAXABIND_MAP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_the_cache_is_where_it_is_said_to_be(environment, tmp_path):
    environment("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    environment("TAXABIND_MAP_CACHE", "~/mine")
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the folders of Linux")
def test_the_cache_of_a_linux_user(environment, tmp_path):
    assert cache_folder() == tmp_path / ".cache" / "taxabind-map"
    environment("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "taxabind-map"
    assert not any(Path(tmp_path).iterdir())
