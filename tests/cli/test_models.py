"""Lists of models and searches for names."""

from sdm import cli


def test_search_and_list(run):
    code, out, _ = run("--search", "grizzly")
    assert code == 0 and "Ursus arctos (brown bear)" in out
    assert run("--search", "zzzzzz")[0] == 3
    code, out, _ = run("--list-models")
    assert code == 0 and "mammals-trees" in out and "5,435 mammals" in out and "CC0" in out
    assert run("models", entry=cli.main_sdm)[1] == out
