"""Lists of names from files people have."""

import csv
import io

import pyarrow
import pyarrow.parquet
import pytest

from sdm.errors import RequestError, SdmError, SpeciesNameError, TooLargeError
from sdm.names import lists
from sdm.names.lists import read_names


@pytest.fixture
def write(tmp_path):
    def make(content, name="list.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def queries(path, column=None):
    return [asked.query for asked in read_names(path, column)[0]]


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        ("species\nUrsus arctos\nPuma concolor\n", "a.csv", ["Ursus arctos", "Puma concolor"]),
        ("Ursus arctos\nPuma concolor\n", "a.csv", ["Ursus arctos", "Puma concolor"]),
        ('id,Scientific.Name\n1,"Ursus arctos Linnaeus, 1758"\n', "a.csv", ["Ursus arctos Linnaeus, 1758"]),
        ("id;scientific_name\r\n1;Ursus arctos\r\n\r\n2;\r\n", "a.csv", ["Ursus arctos"]),
        ("id\tTaxon\n1\tUrsus arctos\n", "a.tsv", ["Ursus arctos"]),
        ("name|n\nUrsus arctos|3\n", "a.csv", ["Ursus arctos"]),
        ('species\n"Ursus\narctos"\n', "a.csv", ["Ursus\narctos"]),
        ("\n\n species \nUrsus arctos\n", "a.csv", ["Ursus arctos"]),
        (
            "genus,species\nUrsus,arctos\nPuma,Puma concolor\n,Canis lupus\n",
            "a.csv",
            ["Ursus arctos", "Puma concolor", "Canis lupus"],
        ),
        ("genus,family\nUrsus,Ursidae\n", "a.csv", RequestError),
        (
            "# my list\nUrsus arctos  # bear\n\n  Puma concolor\r\nC#1\n",
            "a.txt",
            ["Ursus arctos", "Puma concolor", "C#1"],
        ),
        ("a\x0bb\nc\u2028d\n", "a.txt", ["a\x0bb", "c\u2028d"]),
    ],
)
def test_reads(write, content, name, expected):
    if isinstance(expected, list):
        assert queries(write(content, name)) == expected
    else:
        with pytest.raises(expected, match="--species-column"):
            queries(write(content, name))


def test_rows_and_repeats_are_kept_in_mind(write):
    asked, _ = read_names(write("species\nUrsus arctos\nPuma concolor\n Ursus arctos \n"))
    assert [(a.query, a.row, a.times) for a in asked] == [("Ursus arctos", 2, 2), ("Puma concolor", 3, 1)]


def test_a_column_by_name(write):
    path = write("species,English Name\nUrsus arctos,brown bear\n")
    assert queries(path, "english_name") == ["brown bear"]
    with pytest.raises(RequestError, match="no column 'nope'; it has 'species', 'English Name'"):
        queries(path, "nope")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_encodings(write, encoding, suffix):
    head = "species\n" if suffix == "csv" else ""
    path = write((head + "Vicuña\nLoup à crinière\n").encode(encoding), f"a.{suffix}")
    asked, notes = read_names(path)
    assert [a.query for a in asked] == ["Vicuña", "Loup à crinière"]
    assert bool(notes) == (encoding == "cp1252")


@pytest.mark.parametrize("values", [["Ursus arctos", None, "Puma concolor"], ["Ursus arctos", "", "Puma concolor"]])
def test_parquet(tmp_path, values):
    table = pyarrow.table({"n": [1, 2, 3], "scientificName": values, "nested": [{"species": "x"}] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert queries(tmp_path / "a.parquet") == ["Ursus arctos", "Puma concolor"]
    assert [a.row for a in read_names(tmp_path / "a.parquet")[0]] == [1, 3]
    assert queries(tmp_path / "a.parquet", "n") == ["1", "2", "3"]


def test_parquet_and_csv_of_one_table_say_the_same(tmp_path):
    rows = [("Ursus arctos", "a"), ('Puma "c"', "b"), ("Ursus arctos", "c"), ("käse", "d")]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("name", "x"), *rows])
    (tmp_path / "a.csv").write_text(buffer.getvalue(), encoding="utf-8")
    table = pyarrow.table({"name": [r[0] for r in rows], "x": [r[1] for r in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "a.pq")
    assert queries(tmp_path / "a.csv") == queries(tmp_path / "a.pq") == ["Ursus arctos", 'Puma "c"', "käse"]


@pytest.mark.parametrize(
    ("content", "name", "error", "says"),
    [
        ("", "a.csv", SpeciesNameError, "holds no name"),
        ("species\n\n", "a.csv", SpeciesNameError, "holds no name"),
        ("# nothing\n", "a.txt", SpeciesNameError, "holds no name"),
        ("x", "a.xls", RequestError, "must end in"),
        ("x", "a.xlsx", RequestError, "cannot be read"),
        ("x\ty\n1\t2\n", "a.txt", RequestError, "--species-column"),
        (b"PAR1 not really", "a.parquet", RequestError, "as Parquet"),
        (b"\x80\x00\x01species", "a.csv", RequestError, "null bytes"),
        (b"\xff\xfe\x00", "a.csv", RequestError, "cannot be read"),
        ('species\n"' + "x" * 200_000, "a.csv", RequestError, "line 2"),
    ],
)
def test_refusals(write, content, name, error, says):
    with pytest.raises(error, match=says):
        queries(write(content, name))


def test_missing_and_folder(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        queries(tmp_path / "none.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(RequestError, match="not a file"):
        queries(tmp_path / "d.csv")
    (tmp_path / "a.txt").write_text("Ursus arctos\n")
    with pytest.raises(RequestError, match="text without columns"):
        queries(tmp_path / "a.txt", "x")


def test_bounds(write, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "MAX_NAMES", 2)
    monkeypatch.setattr(lists, "MAX_ROWS", 5)
    assert queries(write("a\nb\na\nb\na\n")) == ["a", "b"]
    with pytest.raises(TooLargeError, match="2 different names"):
        queries(write("a\nb\nc\n"))
    with pytest.raises(TooLargeError, match="5 rows"):
        queries(write("a\n" * 6))
    pyarrow.parquet.write_table(pyarrow.table({"name": ["a"] * 6}), tmp_path / "a.parquet")
    with pytest.raises(TooLargeError, match="6 rows"):
        queries(tmp_path / "a.parquet")
    monkeypatch.setattr(lists, "MAX_BYTES", 5000)
    with pytest.raises(TooLargeError, match="bytes"):
        queries(write("a" * 5001))
    # A megabyte of one letter packs to a few hundred bytes.
    pyarrow.parquet.write_table(pyarrow.table({"name": ["a" * 1_000_000]}), tmp_path / "b.parquet", compression="zstd")
    assert (tmp_path / "b.parquet").stat().st_size < 5000
    with pytest.raises(TooLargeError, match="more than 5,000 bytes"):
        queries(tmp_path / "b.parquet")


def test_a_million_lines_of_one_name(write):
    asked, _ = read_names(write("species\n" + "Ursus arctos\n" * 999_999))
    assert [(a.query, a.times) for a in asked] == [("Ursus arctos", 999_999)]


def test_whatever_the_bytes_only_our_errors(write):
    import random

    rng = random.Random(0)
    seeds = [b"species,x\nUrsus arctos,1\n", b"PAR1" + bytes(40) + b"PAR1", "id;Name\n1;Vicuña\n".encode("utf-16")]
    for trial in range(300):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        name = ("a.csv", "a.txt", "a.parquet")[trial % 3]
        try:
            for text in queries(write(bytes(content), name)):
                assert text.strip() == text and text
        except SdmError:
            pass


@pytest.mark.parametrize(
    ("content", "name", "column", "expected"),
    [
        ("sep=;\r\nspecies;n\r\nUrsus arctos;1\r\n", "a.csv", None, ["Ursus arctos"]),
        ('"sep=|"\nn|taxon\n3|Puma concolor\n', "a.txt", None, ["Puma concolor"]),
        ("sep=,\nUrsus arctos\n", "a.csv", None, ["Ursus arctos"]),
        ("ID\tCommon Name\tConfidence\n1\tBarn Owl\t0.9\n", "a.txt", None, ["Barn Owl"]),
        ("id,scientificName\n1,Ursus arctos\n", "a.txt", None, ["Ursus arctos"]),
        ("a\tb\n1\tPuma concolor\n", "a.txt", "b", ["Puma concolor"]),
        ("scientificName\tStatus\r\nUrsus arctos\tLC\r\n".encode("utf-16"), "a.txt", None, ["Ursus arctos"]),
        ("Ursus arctos, the bear\nPuma concolor\n", "a.txt", None, ["Ursus arctos, the bear", "Puma concolor"]),
    ],
)
def test_tables_by_their_content(write, content, name, column, expected):
    assert queries(write(content, name), column) == expected


def test_rows_are_counted_from_the_line_that_states_the_delimiter(write):
    assert [a.row for a in read_names(write("sep=;\nspecies;n\nUrsus arctos;1\nPuma concolor;2\n"))[0]] == [3, 4]


def test_excel(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "about"
    book.active.append(["Species of the park, 2026"])
    sheet = book.create_sheet("list")
    for row in (
        ["no", "Genus", "Species"],
        [1, "Ursus", "arctos"],
        [2, None, None],
        [3, "Puma", "concolor"],
        [4, "Ursus", "arctos"],
    ):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    asked, notes = read_names(tmp_path / "a.xlsx")
    assert [(a.query, a.row, a.times) for a in asked] == [("Ursus arctos", 2, 2), ("Puma concolor", 4, 1)]
    assert notes == []  # one sheet alone has a column of names
    book.create_sheet("old").append(["species"])
    book.save(tmp_path / "b.xlsx")
    assert "'list'" in read_names(tmp_path / "b.xlsx")[1][0]
    with pytest.raises(RequestError, match="no column 'taxon'"):
        read_names(tmp_path / "a.xlsx", "taxon")


def test_standard_input(monkeypatch):
    def given(text):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))

    given(b"Ursus arctos\nPuma concolor # mine\n")
    assert queries("-") == ["Ursus arctos", "Puma concolor"]
    given(b"n;species\n1;Ursus arctos\n")
    assert queries("-") == ["Ursus arctos"]
    given(b"")
    with pytest.raises(SpeciesNameError, match="standard input holds no name"):
        read_names("-")
