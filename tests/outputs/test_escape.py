"""Text from outside in tables."""

import pytest

from sdm.outputs.escape import html_text, script_value, table_text


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
        ("Ursus \u202egnp.exe", "Ursus gnp.exe"),
        ("\u2067a\u2069 \u200b\u200d\ufeff\u00adb\u061c\U000e0041", "a b"),
        ("\u202e=1", "'=1"),
        ("a\u2028b\u2029c\x85d\x1b[31m", "a b c d [31m"),
    ],
)
def test_no_text_is_a_formula(text, cell):
    assert table_text(text) == cell


MARKS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u200b\u2060\ufeff\U000e0041"


def test_no_mark_of_direction_reaches_a_page():
    assert html_text(f"a{MARKS}b") == "ab"
    assert script_value({f"a{MARKS}": [f"{MARKS}b\nc"]}) == '{"a":["b\\nc"]}'
