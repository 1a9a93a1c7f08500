"""Text from outside in tables."""

import pytest

from sdm.outputs.escape import table_text


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("Ursus arctos", "Ursus arctos"),
        ("=1+1", "'=1+1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-1+1", "'-1+1"),
        ("+A1", "'+A1"),
        ("\t=1", "'=1"),
        ("\r\n=1", "'=1"),
        ("\x00=1", "'=1"),
        ("  =1", "'=1"),
        ("-122.5", "-122.5"),
        ("-122,5", "-122,5"),
        ("+7", "+7"),
        ("a\nb", "a b"),
        ("-9, 1, 2, 3 =cmd() (xmin, xmax, ymin, ymax)", "'-9, 1, 2, 3 =cmd() (xmin, xmax, ymin, ymax)"),
        ("", ""),
    ],
)
def test_no_text_is_a_formula(text, cell):
    assert table_text(text) == cell
