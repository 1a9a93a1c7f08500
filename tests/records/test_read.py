"""Records as they come: formats, encodings, names of columns, hostile files. All files are made here."""

import gzip
import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from sdm.errors import RecordsError
from sdm.records.listed import lists_records
from sdm.records.read import read_raw
from sdm.records.table import Records
from sdm.request.records import ReadOptions

LON, LAT = [11.25, -122.5, 151.125], [47.75, 45.5, -33.875]
DWC = "http://rs.tdwg.org/dwc/terms/"


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def check_places(records):
    np.testing.assert_allclose(records.lon, LON, atol=1e-6)
    np.testing.assert_allclose(records.lat, LAT, atol=1e-6)


SIMPLE = "species,lon,lat\n" + "".join(f"Ursus arctos,{x},{y}\n" for x, y in zip(LON, LAT, strict=True))


def test_plain_csv(tmp_path):
    records = Records.read(write(tmp_path / "a.csv", SIMPLE))
    check_places(records)
    assert records.species == "Ursus arctos"
    assert records.row.tolist() == [1, 2, 3]
    assert records.present.all()
    assert np.isnan(records.uncertainty_m).all()
    assert records.audit.columns == {"species": "species", "lon": "lon", "lat": "lat"}
    assert records.lon.dtype == np.float64
    assert (records.month.dtype, records.year.dtype, records.row.dtype) == (np.int8, np.int32, np.int64)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = SIMPLE.replace("species,", "Ort,species,").replace("Ursus", "Münster,Ursus").replace("\n", end)
    content = ("\ufeff" if encoding == "utf-16-le" else "") + text
    records = Records.read(write(tmp_path / "a.csv", content, encoding))
    check_places(records)
    assert any("Windows-1252" in note for note in records.audit.notes) == (encoding == "cp1252")


@pytest.mark.parametrize("header", ["species,lon,lat\n", " species,lon,lat\n"])
def test_letters_across_the_pieces_a_file_is_read_in(tmp_path, header):
    """Pieces are of 1 MiB; with one of the two headers their ends cut letters of two bytes."""
    rows = "".join(f"Ä{'ö' * 400},{i % 180},{i % 90}.5\n" for i in range(4000))
    raw = read_raw(write(tmp_path / "a.csv", header + rows))
    assert raw.names == ("Ä" + "ö" * 299,)
    assert raw.notes == ()
    assert len(raw) == 4000


def test_semicolons_and_decimal_commas(tmp_path):
    rows = "".join(f"Ursus arctos;{x};{y}\n".replace(".", ",") for x, y in zip(LON, LAT, strict=True))
    records = Records.read(write(tmp_path / "a.csv", "Scientific Name;Longitude;Latitude\n" + rows))
    check_places(records)
    assert records.species == "Ursus arctos"


@pytest.mark.parametrize(
    "names",
    [
        ("decimalLongitude", "decimalLatitude", "scientificName"),
        ("LONGITUDE", "LATITUDE", "SCIENTIFIC NAME"),
        ("x", "y", "binomial"),
        ("lng", "lat", "taxon"),
        ("dwc:decimalLongitude", "dwc:decimalLatitude", "dwc:scientificName"),
        (f"{DWC}decimalLongitude", f"{DWC}decimalLatitude", f"{DWC}scientificName"),
        ("long", "lat", "Latin name"),
        ("Länge", "Breite", "Art"),
        ("Longitude (decimal degrees)", "Latitude (DD)", "sp"),
    ],
)
def test_names_of_columns(tmp_path, names):
    rows = "".join(f"{x}\t{y}\tUrsus arctos Linnaeus, 1758\n" for x, y in zip(LON, LAT, strict=True))
    records = Records.read(write(tmp_path / "a.txt", "\t".join(names) + "\n" + rows))
    check_places(records)
    assert records.species == "Ursus arctos"


def test_named_columns_win(tmp_path):
    text = "wer;ost;nord;lon;lat;da\nUrsus arctos;11,5;47,5;0;0;ja\n"
    path = write(tmp_path / "a.csv", text.replace("ja", "yes"))
    options = ReadOptions(species_column="wer", lon_column="ost", lat_column="Nord", presence_column="da")
    records = Records.read(path, options=options)
    assert (records.lon.tolist(), records.lat.tolist(), records.species) == ([11.5], [47.5], "Ursus arctos")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column of longitude or latitude .* --lon-column and --lat-column"),
        ("lon,b\n1,2\n", "no column of latitude .* --lat-column"),
        ("lon,longitude,lat\n1,2,3\n", "several columns that could be the longitude.*--lon-column"),
        ("lon,lat,lat\n1,2,3\n", "several columns that could be the latitude"),
        ("species,lon,lat\nA b,1,2\nC d,3,4\n", "holds 2 species .*'A b', 'C d'.*name the one to use"),
        ("lon,lat,presence\n1,2,maybe\n", "'maybe', which is neither presence nor absence"),
        ("lon,lat\n", "has no rows"),
        ("\n\n", "no line of column names"),
        ("12.5,47.1\n12.6,47.2\n", "no column of longitude"),
    ],
)
def test_what_is_not_clear_is_an_error(tmp_path, text, message):
    with pytest.raises(RecordsError, match=message) as error:
        Records.read(write(tmp_path / "a.csv", text))
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_there(tmp_path):
    with pytest.raises(RecordsError, match="no column 'height'; it has 'species', 'lon', 'lat'"):
        Records.read(write(tmp_path / "a.csv", SIMPLE), options=ReadOptions(species_column="height"))


def test_one_species_of_several(tmp_path):
    text = "species,lon,lat\nUrsus arctos,11.3,47.2\nLynx lynx,12.5,48.1\n,13.5,48.2\nursus_arctos,11.4,47.3\n"
    path = write(tmp_path / "a.csv", text)
    records = Records.read(path, "Ursus arctos")
    assert records.row.tolist() == [1, 4]
    assert records.audit.other_species == 2
    assert len(records.audit.row) == 2
    every = Records.read_all(path)
    assert list(every) == ["Lynx lynx", "Ursus arctos"]
    assert every["Ursus arctos"].row.tolist() == [1, 4]
    assert every["Lynx lynx"].lon.tolist() == [12.5]
    with pytest.raises(RecordsError, match="no records of 'Ursus arcto'; did you mean 'Ursus arctos'"):
        Records.read(path, "Ursus arcto")


@pytest.mark.parametrize(
    ("column", "text", "name"),
    [
        ("scientificName", "Ursus americanus Pallas, 1780", "Ursus americanus"),
        ("scientificName", "Ursus arctos horribilis Ord, 1815", "Ursus arctos"),
        ("scientificName", "Quercus × hispanica Lam.", "Quercus × hispanica"),
        ("scientificName", "Quercus sp.", "Quercus"),
        ("species", "Passer domesticus (Linnaeus, 1758)", "Passer domesticus"),
        ("species", "Ursus arctos horribilis", "Ursus arctos horribilis"),
        ("species", "American black bear", "American black bear"),
        ("species", "lynx", "lynx"),
    ],
)
def test_names_of_species(tmp_path, column, text, name):
    path = write(tmp_path / "a.csv", f'{column},lon,lat\n"{text}",11,47\n')
    assert Records.read(path).species == name


def test_epithets_with_genus(tmp_path):
    path = write(tmp_path / "a.csv", "genus,species,lon,lat\nUrsus,arctos,11,47\n")
    assert Records.read(path).species == "Ursus arctos"
    path = write(tmp_path / "b.csv", "genus,specificEpithet,lon,lat\nUrsus,arctos,11,47\n")
    assert Records.read(path).species == "Ursus arctos"


def test_a_species_that_is_a_column_of_presences(tmp_path):
    path = write(
        tmp_path / "a.csv", "X_WGS84,Y_WGS84,GuloGulo,LynxLynx\n10.5,60.5,1,0\n11.5,61.5,0,1\n12.5,62.5,NA,1\n"
    )
    records = Records.read(path, "Gulo gulo")
    assert records.species == "Gulo gulo"
    assert records.present.tolist() == [True, False]
    assert records.audit.counts()["dropped"] == {"presence not stated": 1}


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("yes", "No"), ("TRUE", "false"), ("Present", "ABSENT"), ("3", "0.0")]
)
def test_presence_and_absence(tmp_path, yes, no):
    path = write(tmp_path / "a.csv", f"lon,lat,presence\n11,47,{yes}\n12,48,{no}\n")
    records = Records.read(path)
    assert records.present.tolist() == [True, False]
    assert records.presences.lon.tolist() == [11]
    assert records.absences.lon.tolist() == [12]


def test_absences_of_darwin_core(tmp_path):
    text = "decimalLongitude,decimalLatitude,occurrenceStatus,individualCount\n"
    text += "11,47,PRESENT,3\n12,48,absent,\n13,49,,0\n14,50,,\n15,51,present,X\n"
    assert Records.read(write(tmp_path / "a.csv", text)).present.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("text", "year", "month"),
    [
        ("2014-05-03T10:00:00Z", 2014, 5),
        ("2014-05", 2014, 5),
        ("2014", 2014, 0),
        ("2014-05-03/2014-05-09", 2014, 5),
        ("2014-05-03/2014-07-01", 2014, 0),
        ("3.5.2014", 2014, 5),
        ("05/13/2014", 2014, 5),
        ("13/05/2014", 2014, 5),
        ("03/05/2014", 2014, 0),
        ("2014-13-01", 2014, 0),
        ("yesterday", 0, 0),
        ("", 0, 0),
    ],
)
def test_dates(tmp_path, text, year, month):
    records = Records.read(write(tmp_path / "a.csv", f"lon,lat,eventDate\n11,47,{text}\n"))
    assert (records.year[0], records.month[0]) == (year, month)


@pytest.mark.parametrize(
    ("lon", "lat"),
    [
        (["11°15'00\"E", "122° 30′ W", "E 151 7.5"], ["47°45'00.0\"N", "45°30′00″ N", "S33 52.5"]),
        (["11.25°", "122.5° W", "151.125E"], ["47.75°", "45,5 N", "33.875 s"]),
        (["11 15 0 E", "-122.5", "151.125"], ["N47°45", "45.5", "-33°52'30''"]),
    ],
)
def test_degrees_minutes_and_seconds(tmp_path, lon, lat):
    rows = "".join(f"Ursus arctos\t{x}\t{y}\n" for x, y in zip(lon, lat, strict=True))
    check_places(Records.read(write(tmp_path / "a.txt", "species\tlon\tlat\n" + rows)))


@pytest.mark.parametrize("lat", ["47°75'00\"N", "47 45 00", "47°45'E", "N47°45'N", "47.5°45'N", "north"])
def test_what_is_no_angle_is_dropped(tmp_path, lat):
    records = Records.read(write(tmp_path / "a.txt", f"species\tlon\tlat\nUrsus arctos\t11.25\t{lat}\n"))
    assert len(records.lon) == 0
    assert "1 not a number" in records.audit.sentences()[1]


@pytest.mark.parametrize("text", ["POINT ({x} {y})", "SRID=4326;POINT({x} {y})", "Point Z ({x} {y} 12.5)"])
def test_points_in_well_known_text(tmp_path, text):
    rows = "".join(f"Ursus arctos;{text.format(x=x, y=y)}\n" for x, y in zip(LON, LAT, strict=True))
    check_places(Records.read(write(tmp_path / "a.csv", "species;WKT\n" + rows)))


def test_uncertainty_with_its_unit(tmp_path):
    text = "species,Latitude (decimal degrees),Longitude [DD],Accuracy (m)\nA b,47.75,11.25,30 m\nA b,45.5,-122.5,5\n"
    assert Records.read(write(tmp_path / "a.csv", text)).uncertainty_m.tolist() == [30.0, 5.0]


def test_gbif_simple_download(tmp_path):
    """Tab separated, called .csv, quotation marks as they are."""
    names = "gbifID\tdatasetKey\tspecies\tscientificName\tcountryCode\tlocality\toccurrenceStatus\tindividualCount"
    names += "\tdecimalLatitude\tdecimalLongitude\tcoordinateUncertaintyInMeters\teventDate\tmonth\tyear"
    names += "\tbasisOfRecord\tlicense\n"
    rows = [
        f'{i}\tkey-{i % 2}\tUrsus arctos\tUrsus arctos L.\t{code}\tnear "the lake\tPRESENT\t\t{y}\t{x}\t250.0\t'
        f"2014-05-03\t5\t2014\tHUMAN_OBSERVATION\tCC_BY_4_0\n"
        for i, (x, y, code) in enumerate(zip(LON, LAT, ["DE", "US", "AU"], strict=True))
    ]
    text = names + "".join(rows)
    alone = write(tmp_path / "0001-1.csv", text)
    around = zipped(tmp_path / "0001-1.zip", {"0001-1.csv": text})
    for path in (alone, around):
        records = Records.read(path)
        check_places(records)
        assert records.uncertainty_m.tolist() == [250.0] * 3
        assert records.month.tolist() == [5] * 3
        assert records.audit.citations.licences == {"CC_BY_4_0": 3}
        assert records.audit.citations.datasets == {"key-0": 2, "key-1": 1}


def test_the_key_of_gbif_is_kept_as_the_file_has_it(tmp_path):
    """That of the species first, then of the accepted taxon; what is no key is left out."""
    header = "species\ttaxonKey\tacceptedTaxonKey\tspeciesKey\tdecimalLatitude\tdecimalLongitude\n"
    rows = [f"Ursus arctos\t6163845\t7193927\t{key}\t47\t{11 + i}\n" for i, key in enumerate((2433433, 2433433, "x"))]
    path = write(tmp_path / "a.csv", header + "".join(rows))
    assert Records.read(path).audit.citations.taxon_keys == {"2433433": 2}
    dropped = write(tmp_path / "b.csv", header + rows[0].replace("\t47\t", "\t97\t") + rows[1])
    assert Records.read(dropped).audit.citations.taxon_keys == {"2433433": 1}
    without = write(tmp_path / "c.csv", "species,lat,lon\nUrsus arctos,47,11\n")
    assert Records.read(without).audit.citations.to_dict()["gbif_taxon_keys"] == {}


def test_inaturalist_export(tmp_path):
    text = (
        "id,observed_on,quality_grade,license,captive_cultivated,latitude,longitude,positional_accuracy,"
        "public_positional_accuracy,coordinates_obscured,description,scientific_name,common_name\n"
        '1,2020-06-01,research,CC-BY-NC,false,47.75,11.25,5,28000,true,"two lines,\nand a comma",Ursus arctos,bear\n'
        "2,2020-07-01,casual,,true,45.5,-122.5,5,5,false,,Ursus arctos,bear\n"
    )
    records = Records.read(write(tmp_path / "observations.csv", text))
    assert records.uncertainty_m.tolist() == [28000.0]
    assert records.audit.counts()["dropped"] == {"captive or cultivated": 1}
    assert records.audit.row.tolist() == [1, 2]


def test_ebird(tmp_path):
    mine = "Submission ID,Common Name,Scientific Name,Count,Latitude,Longitude,Date,Time\n"
    mine += "S1,Osprey,Pandion haliaetus,X,47.75,11.25,2021-04-02,07:10 AM\n"
    records = Records.read(write(tmp_path / "MyEBirdData.csv", mine))
    assert (records.species, records.month.tolist(), records.present.tolist()) == ("Pandion haliaetus", [4], [True])
    # The basic dataset: a tab ends every line, the archive has other tables beside it.
    ebd = "GLOBAL UNIQUE IDENTIFIER\tSCIENTIFIC NAME\tOBSERVATION COUNT\tCOUNTRY CODE\tLATITUDE\tLONGITUDE\t"
    ebd += "OBSERVATION DATE\tEXOTIC CODE\t\nURN:1\tPandion haliaetus\tX\tDE\t47.75\t11.25\t2021-04-02\t\t\n"
    ebd += "URN:2\tPandion haliaetus\t1\tDE\t47.85\t11.25\t2021-04-02\tX\t\n"  # escaped from captivity
    members = {"ebd.txt": ebd, "BCRCodes.txt": "1\tAleutian\n2\tWestern\n", "terms.txt": "Be good.\n", "a.pdf": b"%PDF"}
    records = Records.read(zipped(tmp_path / "ebd.zip", members))
    assert (records.species, records.lon.tolist(), records.month.tolist()) == ("Pandion haliaetus", [11.25], [4])


def test_gzip(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(SIMPLE.encode()))
    check_places(Records.read(tmp_path / "a.csv.gz"))


def test_rows_of_the_wrong_length_are_told(tmp_path):
    lines = SIMPLE.splitlines()
    text = "\n".join([*lines[:2], "only one", *lines[2:], "one,2,3,too many"]) + "\n\n"
    records = Records.read(write(tmp_path / "a.csv", text))
    check_places(records)
    assert records.row.tolist() == [1, 3, 4]
    assert records.audit.row.tolist() == [1, 2, 3, 4, 5]
    assert records.audit.counts()["dropped"] == {"unreadable row": 2}


@pytest.mark.parametrize("end", [",", ",,", ", , "])
@pytest.mark.parametrize("every", [1, 2])
def test_surplus_cells_that_are_blank(tmp_path, end, every):
    lines = SIMPLE.splitlines()
    lines[1::every] = [line + end for line in lines[1::every]]
    records = Records.read(write(tmp_path / "a.csv", "\n".join(lines)))
    check_places(records)
    assert records.row.tolist() == [1, 2, 3]
    assert records.audit.counts()["dropped"] == {}


def test_many_rows_with_blank_surplus_cells(tmp_path):
    """More than are read at once, every third of them uneven and a few unreadable."""
    ends = [",,", "", "", ",x"]
    text = "".join(f"Vipera berus,{i / 1000},{47}{ends[i % 3 if i % 1000 else 3]}\n" for i in range(1, 150_001))
    raw = read_raw(write(tmp_path / "a.csv", "species,lon,lat\n" + text))
    assert np.array_equal(raw.rows["row"], np.arange(1, 150_001))
    assert np.flatnonzero(raw.rows["unreadable"]).tolist() == list(range(999, 150_000, 1000))
    there = ~raw.rows["unreadable"]
    assert np.array_equal(raw.rows["lon"][there], (np.arange(1, 150_001) / 1000)[there])


def test_unreadable_rows_are_not_of_other_species(tmp_path):
    text = "species,lon,lat\nVipera berus,8,47,,\nVipera berus,9,48,x\nUrsus arctos,10,49\nVipera berus\n"
    raw = read_raw(write(tmp_path / "a.csv", text))
    for part in (raw.only("Vipera berus"), raw.united(["Vipera berus"], "Vipera berus")):
        audit = Records.from_raw(part).audit
        assert audit.row.tolist() == [1, 2, 4]
        assert audit.counts()["kept"] == 1
        assert audit.counts()["dropped"] == {"unreadable row": 2}
        assert audit.counts()["other_species"] == 1


@pytest.mark.parametrize(
    ("rows", "row"),
    [
        ('Vipera berus,8,47\n"Vipera berus,9,48\nVipera berus,9,49\n', 2),
        ('Vipera berus,8,47\nVipera berus,9,"48\nVipera berus,9,49', 2),
        ('"Vipera berus,8,47\n', 1),
        ('only one\nVipera berus,8,47,,\nVipera berus,8,47\n"Vipera ""berus"",9,48\n', 4),
    ],
)
def test_a_quotation_mark_that_is_never_closed(tmp_path, rows, row):
    path = write(tmp_path / "a.csv", "species,lon,lat\n" + rows)
    with pytest.raises(RecordsError, match=rf"a quotation mark is never closed \(row {row}\)"):
        read_raw(path)


def test_a_quotation_mark_that_is_never_closed_in_a_large_file(tmp_path):
    text = "species,lon,lat\n" + "x,1,2\n" * 10 + '"' + "x,1,2\n" * 1_000_000
    with pytest.raises(RecordsError, match="a quotation mark is never closed, from row 11 on"):
        read_raw(write(tmp_path / "a.csv", text))


def test_quotation_marks_inside_cells(tmp_path):
    text = 'species,lon,lat,locality\n"Vipera ""x"" berus",8,47,5" pipe\nVipera berus,9,48,"two\nlines"\n'
    assert len(read_raw(write(tmp_path / "a.csv", text))) == 2


def test_row_names_of_r(tmp_path):
    text = '"species" "lon" "lat"\n' + "".join(
        f'"{i}" "Ursus arctos" {x} {y}\n' for i, (x, y) in enumerate(zip(LON, LAT, strict=True))
    )
    check_places(Records.read(write(tmp_path / "a.txt", text)))


# Darwin Core archives --------------------------------------------------------------------------------


def meta(fields, *, attributes="", location="occurrence.txt", row_type=f"{DWC}Occurrence", extensions=""):
    listed = "".join(
        f'<field index="{i}" term="{DWC}{name}"/>'
        if isinstance(i, int)
        else f'<field default="{i}" term="{DWC}{name}"/>'
        for i, name in fields
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml">'
        f'<core encoding="utf-8" fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" fieldsEnclosedBy="" '
        f'ignoreHeaderLines="1" rowType="{row_type}" {attributes}><files><location>{location}</location></files>'
        f'<id index="0"/>{listed}</core>{extensions}</archive>'
    )


FIELDS = [(1, "species"), (2, "decimalLatitude"), (3, "decimalLongitude"), ("DE", "countryCode")]
TABLE = "id\ts\ty\tx\n1\tUrsus arctos\t47.75\t11.25\n2\tUrsus arctos\t47.5\t11.5\n"
METADATA = (
    '<?xml version="1.0"?><eml:eml xmlns:eml="eml://ecoinformatics.org/eml-2.1.1"><dataset>'
    "<alternateIdentifier>doi:10.15468/dl.AB12cd</alternateIdentifier></dataset><additionalMetadata><metadata>"
    "<gbif><citation>GBIF.org (1 January 2024) GBIF Occurrence Download https://doi.org/10.15468/dl.ab12cd</citation>"
    "</gbif></metadata></additionalMetadata></eml:eml>"
)


@pytest.mark.parametrize("folder", ["", "archive/"])
def test_darwin_core_archive(tmp_path, folder):
    members = {
        "meta.xml": meta(FIELDS),
        "occurrence.txt": TABLE,
        "verbatim.txt": "id\n1\n",
        "metadata.xml": METADATA,
        "citations.txt": "When using this dataset please cite:\nA museum (2020): Bears.\n",
        "rights.txt": "CC BY\n",
    }
    records = Records.read(zipped(tmp_path / "a.zip", {folder + name: text for name, text in members.items()}))
    assert records.lon.tolist() == [11.25, 11.5]
    assert records.row.tolist() == [1, 2]
    assert records.audit.citations.doi == ("10.15468/dl.ab12cd",)
    assert "A museum (2020): Bears." in records.audit.citations.texts
    assert records.audit.given.num_rows == 2


def test_the_country_of_an_archive_is_used(tmp_path):
    """It is a constant of the description, without a column."""
    table = "id\ts\ty\tx\n1\tUrsus arctos\t11.25\t47.75\n"
    records = Records.read(zipped(tmp_path / "a.zip", {"meta.xml": meta(FIELDS), "occurrence.txt": table}))
    assert (records.lon.tolist(), records.lat.tolist()) == ([11.25], [47.75])
    assert records.audit.counts()["repaired"] == {"longitude and latitude exchanged": 1}


def test_occurrences_of_events(tmp_path):
    extension = (
        f'<extension encoding="utf-8" fieldsTerminatedBy="," linesTerminatedBy="\\n" fieldsEnclosedBy="&quot;" '
        f'ignoreHeaderLines="0" rowType="{DWC}Occurrence"><files><location>occ.csv</location></files>'
        f'<coreid index="0"/><field index="1" term="{DWC}scientificName"/>'
        f'<field index="2" term="{DWC}occurrenceStatus"/>'
        "</extension>"
    )
    members = {
        "meta.xml": meta(
            [(1, "decimalLatitude"), (2, "decimalLongitude"), (3, "eventDate")],
            location="event.txt",
            row_type=f"{DWC}Event",
            extensions=extension,
        ),
        "event.txt": "id\ty\tx\td\nE1\t47.75\t11.25\t2020-06-01\nE2\t47.5\t11.5\t2020-07-01\n",
        "occ.csv": 'E2,"Ursus arctos L.",absent\nE1,Ursus arctos,present\nE1,Lynx lynx,present\n'
        "E9,Ursus arctos,present\n",
    }
    records = Records.read(zipped(tmp_path / "a.zip", members), "Ursus arctos")
    assert records.lon.tolist() == [11.5, 11.25]
    assert records.present.tolist() == [False, True]
    assert records.month.tolist() == [7, 6]
    assert records.audit.counts()["dropped"] == {"no coordinates": 1}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"meta.xml": meta(FIELDS)}, "lacks 'occurrence.txt'"),
        ({"meta.xml": meta(FIELDS, location="../x.txt")}, "lacks '../x.txt'"),
        ({"meta.xml": meta(FIELDS, location="/etc/passwd")}, "lacks '/etc/passwd'"),
        ({"meta.xml": "<archive"}, "not valid XML"),
        ({"meta.xml": "<archive/>"}, "does not describe an archive"),
        ({"meta.xml": meta([("x", "species"), (99_999_999, "decimalLatitude")])}, "refer to a column beyond 10,000"),
        ({"meta.xml": meta(FIELDS, row_type=f"{DWC}Taxon")}, "no occurrences, only 'Taxon'"),
        (
            {"meta.xml": meta(FIELDS).replace("?>", '?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', 1)},
            "declares entities",
        ),
        (
            {
                "meta.xml": meta(FIELDS),
                "occurrence.txt": TABLE,
                "metadata.xml": '<!DOCTYPE a [<!ENTITY x "y">]><eml>&x;</eml>',
            },
            "declares entities",
        ),
        ({"meta.xml": meta(FIELDS).replace('encoding="utf-8"', 'encoding="klingon"')}, "klingon|does not describe"),
    ],
)
def test_hostile_archives(tmp_path, members, message):
    with pytest.raises(RecordsError, match=message):
        Records.read(zipped(tmp_path / "a.zip", members))


# Vector files and Parquet ----------------------------------------------------------------------------


@pytest.fixture
def points():
    shapes = geopandas.points_from_xy(LON, LAT)
    return geopandas.GeoDataFrame(
        {"species": ["Ursus arctos"] * 3, "year": [2001, 2002, 2003]}, geometry=shapes, crs=4326
    )


@pytest.mark.parametrize(
    ("name", "epsg"),
    [
        *((name, 4326) for name in ("a.gpkg", "a.geojson", "a.json", "a.shp", "a.kml")),
        *((name, 3857) for name in ("a.gpkg", "a.shp")),  # the others are always in degrees
    ],
)
def test_vector_files(tmp_path, points, name, epsg):
    driver = {".kml": "KML", ".json": "GeoJSON"}.get(Path(name).suffix)
    points.to_crs(epsg).to_file(tmp_path / name, **({"driver": driver} if driver else {}))
    records = Records.read(tmp_path / name)
    check_places(records)
    assert records.year.tolist() == [2001, 2002, 2003]
    assert records.species == "Ursus arctos"
    assert records.row.tolist() == [1, 2, 3]
    members = {f"inside/{p.name}": p.read_bytes() for p in tmp_path.glob("a.*")}
    check_places(Records.read(zipped(tmp_path / "z.zip", members)))


def test_geopackage_with_several_layers(tmp_path, points):
    points.to_file(tmp_path / "a.gpkg", layer="bears")
    points.iloc[:1].to_file(tmp_path / "a.gpkg", layer="others")
    with pytest.raises(
        RecordsError, match=r"several layers of points .'bears', 'others'.; name one with --records-layer"
    ):
        Records.read(tmp_path / "a.gpkg")
    check_places(Records.read(tmp_path / "a.gpkg", options=ReadOptions(records_layer="bears")))


def test_vector_files_that_hold_no_points(tmp_path, points):
    points.to_crs(3857).buffer(100).to_file(tmp_path / "a.gpkg")
    with pytest.raises(RecordsError, match="geometries of the kind Polygon; records are points"):
        Records.read(tmp_path / "a.gpkg")


def test_geometries_that_are_missing(tmp_path, points):
    points.loc[1, "geometry"] = None
    points.to_file(tmp_path / "a.gpkg")
    records = Records.read(tmp_path / "a.gpkg")
    assert records.row.tolist() == [1, 3]
    assert records.audit.counts()["dropped"] == {"no coordinates": 1}


def test_a_shapefile_without_a_crs(tmp_path, points):
    points.to_file(tmp_path / "a.shp")
    (tmp_path / "a.prj").unlink()
    with pytest.raises(RecordsError, match="which CRS its coordinates are in; give it with --records-crs"):
        Records.read(tmp_path / "a.shp")
    check_places(Records.read(tmp_path / "a.shp", options=ReadOptions(records_crs="EPSG:4326")))


def test_text_in_another_crs(tmp_path, points):
    utm = points.iloc[:1].to_crs(32632).geometry
    path = write(tmp_path / "a.csv", f"easting,northing\n{utm.x[0]},{utm.y[0]}\n,\n1e300,5\n")
    records = Records.read(path, options=ReadOptions(records_crs="EPSG:32632"))
    np.testing.assert_allclose([records.lon[0], records.lat[0]], [LON[0], LAT[0]], atol=1e-6)
    assert records.audit.counts()["dropped"] == {"no coordinates": 1, "out of range": 1}
    assert "UTM zone 32N" in records.audit.notes[0]
    with pytest.raises(RecordsError, match="CRS 'EPSG:0' is not known"):
        Records.read(path, options=ReadOptions(records_crs="EPSG:0"))


def test_parquet(tmp_path, points):
    frame = pandas.DataFrame(
        {"species": pandas.Categorical(points.species), "lon": LON, "lat": LAT, "month": [1, 2, 3]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    records = Records.read(tmp_path / "a.parquet")
    check_places(records)
    assert records.month.tolist() == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["WKB", "geoarrow"])
def test_geoparquet(tmp_path, points, encoding):
    points.to_crs(3857).to_parquet(tmp_path / "a.parquet", geometry_encoding=encoding)
    check_places(Records.read(tmp_path / "a.parquet"))


# Hostile files ---------------------------------------------------------------------------------------


def bomb(size):
    """A zip file of a table of `size` bytes of the same row."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.csv", "w") as member:
        member.write(b"species,lon,lat\n")
        row = b"Ursus arctos,11,47\n" * 50_000
        for _ in range(size // len(row)):
            member.write(row)
    return file.getvalue()


def test_zip_bomb(tmp_path):
    (tmp_path / "a.zip").write_bytes(bomb(100 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(RecordsError, match="unpacks to more than 50 times its size"):
            Records.read(tmp_path / "a.zip")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_zip_that_understates_its_size(tmp_path):
    """The size that the directory claims is not believed; the CRC of what comes is that of more."""
    data = bytearray(bomb(2 << 20))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(RecordsError, match=r"damaged|unpacked"):
        Records.read(tmp_path / "a.zip")


def test_gzip_bomb(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"species,lon,lat\n")
        for _ in range(100):
            file.write(b"Ursus arctos,11,47\n" * 55_000)
    with pytest.raises(RecordsError, match="unpacks to more than 50 times its size"):
        Records.read(tmp_path / "a.csv.gz")


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/evil.csv", "a/../../evil.csv", "..\\evil.csv", "C:/evil.csv"])
def test_paths_that_lead_out(tmp_path, name):
    (tmp_path / "in").mkdir()
    with pytest.raises(RecordsError, match="leads out of the archive"):
        Records.read(zipped(tmp_path / "in" / "a.zip", {name: SIMPLE}))
    assert not list(tmp_path.glob("**/evil*"))


def test_links_in_archives(tmp_path):
    info = zipfile.ZipInfo("a.csv")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(RecordsError, match="symbolic link"):
        Records.read(tmp_path / "a.zip")


def test_an_archive_in_an_archive(tmp_path):
    inner = zipped(tmp_path / "b.zip", {"a.csv": SIMPLE}).read_bytes()
    with pytest.raises(RecordsError, match="archive inside an archive"):
        Records.read(zipped(tmp_path / "a.zip", {"a.gpkg": inner}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"species,lon,lat\nUrsus\0 arctos,1,2\n", "null bytes"),
        (b"a," * 2_000_000 + b"lon,lat\n1,2\n", "begins with a line of more than"),
        (b"a," * 200_000 + b"lon,lat\n", "columns, more than 10,000"),
        (b"species,lon,lat\n" + b"x" * (20 << 20) + b",1,2\n", "a row is longer than 2 MiB"),
        (b'species,lon,lat\n"' + b"x,1,2\n" * 3_000_000, "quotation mark is never closed"),
        (b"PK\x03\x04 and then nothing", "not a readable zip file"),
        (b"PAR1 and then nothing", "cannot be read as Parquet"),
        (b"SQLite format 3\0" + b"\0" * 200, "SQLite database but not a GeoPackage"),
        (b"SQLite format 3\0" + b"\0" * 52 + b"GPKG" + b"\xff" * 2000, "vector data|of the kind 'CSV'"),
        (b"\x00\x00\x27\x0a" + b"\xff" * 200, "part of a shapefile; give the file that ends in .shp"),
        (b'{"type": "FeatureCollection", "features": [', "cannot be read as vector data"),
        (b"{" + b'"a":{' * 100_000, "cannot be read as vector data"),
        (b'<OGRVRTDataSource><OGRVRTLayer name="a"/></OGRVRTDataSource>', "XML but not KML"),
        (b'<kml/><OGRVRTDataSource><OGRVRTLayer name="a"/></OGRVRTDataSource>', "not valid XML"),
        (b'<!DOCTYPE kml [<!ENTITY x "y">]><kml>&x;</kml>', "declares entities"),
        (b"<kml>" + b"<Folder>" * 300, "nested more than 200 deep"),
        (b"<kml><Placemark><Point><coordinates>1;2</coordinates></Point></Placemark></kml>", "coordinates '1;2'"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "spreadsheet; save it as CSV"),
        (b"\x1f\x8b\x08\x00 and then nothing", "damaged"),
        (b"\xff\xfe" + "species,lon,lat\n".encode("utf-16-le") + b"\0\0", "null bytes"),
        (b"", "is an empty file"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_hostile_content(tmp_path, content, message):
    for name in ("a.csv", "a.kml"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordsError, match=message) as error:
            Records.read(tmp_path / name)
        assert len(str(error.value)) < 700
        assert "\n" not in str(error.value)


def test_json_that_is_an_algorithm(tmp_path, points):
    """GDAL would run it and read the file that it names."""
    points.to_file(tmp_path / "a.gpkg")
    line = f"gdal vector pipeline ! read {tmp_path / 'a.gpkg'}"
    path = write(tmp_path / "a.json", json.dumps({"type": "gdal_streamed_alg", "command_line": line}))
    assert geopandas.read_file(path).shape == (3, 3)
    with pytest.raises(RecordsError, match="cannot be read as vector data"):
        Records.read(path)


def test_long_texts_repeated_in_parquet(tmp_path):
    """A megabyte of text in a million rows, in a file of a few kilobytes."""
    names = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(1_000_000, np.int32)), ["x" * 1_000_000])
    place = pyarrow.array(np.full(1_000_000, 11.0))
    pyarrow.parquet.write_table(pyarrow.table({"species": names, "lon": place, "lat": place}), tmp_path / "a.parquet")
    raw = read_raw(tmp_path / "a.parquet")
    assert raw.names == ("x" * 300,)
    assert len(raw) == 1_000_000


def test_geoparquet_that_lies(tmp_path):
    table = pyarrow.table({"geometry": [b"\x01\x01\x00\x00\x00", b"nonsense"]})
    for geo in (b"[]", b"{}", b"{", json.dumps({"primary_column": "no", "columns": {"no": {}}}).encode()):
        pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": geo}), tmp_path / "a.parquet")
        with pytest.raises(RecordsError, match=r"not valid GeoParquet|lacks its column"):
            Records.read(tmp_path / "a.parquet")
    good = json.dumps({"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}).encode()
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": good}), tmp_path / "a.parquet")
    assert Records.read(tmp_path / "a.parquet").audit.counts()["dropped"] == {"no coordinates": 2}


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "loop", "cannot be read"),
        ("/vsicurl/http://127.0.0.1/a.gpkg", "does not exist"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(RecordsError, match=message):
            Records.read(path)


def test_a_link_to_a_file_is_followed(tmp_path):
    write(tmp_path / "a.csv", SIMPLE)
    (tmp_path / "b").symlink_to(tmp_path / "a.csv")
    check_places(Records.read(tmp_path / "b"))


def test_many_rows_take_little_memory(tmp_path):
    """Of a large file only one species is kept, and only the columns that mean something."""
    with (tmp_path / "a.csv").open("w") as file:
        file.write("species,lon,lat,notes\n")
        for start in range(0, 600_000, 1000):
            note = "n" * 200
            file.write(
                "".join(
                    f"Genus s{'abcdefghij'[i % 10]},{i % 180}.5,{i % 80}.5,{note}\n" for i in range(start, start + 1000)
                )
            )
    tracemalloc.start()
    raw = read_raw(tmp_path / "a.csv", species="Genus sa")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(raw) == 60_000
    assert raw.others == 540_000
    assert raw.rows["row"][:3].tolist() == [1, 11, 21]
    assert peak < 80 << 20


def test_a_list_whose_rows_have_records(tmp_path):
    (tmp_path / "in").mkdir()
    zipped(tmp_path / "in" / "a.zip", {"a.csv": SIMPLE, "citations.txt": "Cite A.\n"})
    write(tmp_path / "in" / "b.csv", "lon;lat\n5,5;45,5\n")
    write(tmp_path / "in" / "c.csv", "species,lon,lat\nMeles,6.5,46.5\nLutra lutra,7.5,47.5\n")
    rows = "Ursus arctos,a.zip\nMeles meles,b.csv\nmeles  meles,b.csv\nLutra lutra,c.csv\nLutra lutra,b.csv\n"
    path = write(tmp_path / "in" / "list.csv", f"name,records\n{rows}")
    raw = read_raw(path)
    assert set(raw.names) == {"Ursus arctos", "Meles meles", "Lutra lutra"}
    assert len(raw.files) == 5
    bears, otters = (raw.only(name) for name in ("ursus arctos", "Lutra lutra"))
    assert (bears.source, bears.citations) == ("'a.zip'", ("Cite A.",))
    assert (otters.rows["lon"].tolist(), otters.others, otters.citations) == ([7.5, 5.5], 1, ())
    assert raw.without("Lutra lutra").rows["lon"].size == 4
    check_places(Records.read(path, "Ursus arctos"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("species,records\nA b,none.csv\n", "none.csv' does not exist"),
        ("species,records\nA b,\n", "row 1 of 'list.csv' has no file"),
        ("species,records\n,a.csv\n", "row 1 of 'list.csv' has no name"),
        ("species,records\nA b,list.csv\n", "is a list of files of records"),
        ("size,records\n1,a.csv\n", "no column of names"),
        ("species,records\n", "has no rows"),
    ],
)
def test_lists_of_files_that_are_of_no_use(tmp_path, text, message):
    write(tmp_path / "a.csv", SIMPLE)
    with pytest.raises(RecordsError, match=message):
        read_raw(write(tmp_path / "list.csv", text))


def test_a_list_is_not_followed_where_it_is_not_trusted(tmp_path):
    write(tmp_path / "a.csv", SIMPLE)
    path = write(tmp_path / "list.csv", "species,records\nUrsus arctos,a.csv\n")
    assert lists_records(path)
    assert not lists_records(write(tmp_path / "counts.csv", "species,records\nUrsus arctos,1.200\n"))
    with pytest.raises(RecordsError, match="is a list of files of records"):
        read_raw(path, lists=False)
