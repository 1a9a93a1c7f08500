"""Reading the tables of names: the shipped ones, and tables that are not trusted."""

import re

import pytest

from sdm.errors import ModelError, SpeciesNameError
from sdm.names import RANKS, Taxon, TaxonTable, taxonomic_string
from tests.names.tables import BEAR, HEADER, MODEL, write_folder


def test_shipped_species(table):
    groups = [t.group for t in table]
    assert groups.count("mammal") == 5435  # 5,436 ranges less Homo sapiens
    assert groups.count("tree") == 678
    names = [t.name for t in table]
    assert names == sorted(set(names))
    assert "Homo sapiens" not in table
    assert "ursus ARCTOS" in table


def test_shipped_rows_are_whole(table):
    for taxon in table:
        assert taxon.rank == "species"
        assert len(taxon.lineage) == len(RANKS)
        assert all(taxon.lineage)
        assert taxon.name.split()[0] == taxon.genus
        assert not set(taxon.synonyms) & table.by_name.keys()
        assert (taxon.marine is not None) == (taxon.group == "mammal")
        assert (taxon.cells or 0) > 0 or taxon.group == "tree"
        assert len(set(taxon.common)) == len(taxon.common)


def test_synonyms_are_not_valid_names(table):
    valid = {t.name for t in table}
    assert not [s for t in table for s in t.synonyms if s in valid]


def test_taxonomic_string(table):
    of = {q: taxonomic_string(table.resolve(q).taxon) for q in ("Ursus arctos", "Ursus", "Ursidae", "Mammalia")}
    assert of == {
        "Ursus arctos": "Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos",
        "Ursus": "Animalia Chordata Mammalia Carnivora Ursidae Ursus",
        "Ursidae": "Animalia Chordata Mammalia Carnivora Ursidae",
        "Mammalia": "Animalia Chordata Mammalia",
    }


def test_taxonomic_string_resolves_back(table):
    for taxon in [*list(table)[::97], *table.groups()[::23]]:
        resolution = table.resolve(taxonomic_string(taxon))
        # A lone-species genus whose name is also its common name ('puma') stands for the species.
        assert resolution.taxon == taxon or resolution.taxon in table.members(taxon)
        assert resolution.known


def test_taxon_ranks(table):
    taxon = table.resolve("Ursus arctos").taxon
    assert (
        taxon.kingdom,
        taxon.phylum,
        taxon.class_,
        taxon.order,
        taxon.family,
        taxon.genus,
        taxon.species,
    ) == (taxon.lineage)
    genus = table.resolve("Ursus").taxon
    assert (genus.genus, genus.species) == ("Ursus", "")
    with pytest.raises(ValueError, match="tribe"):
        taxon.at("tribe")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "lacks the column"),
        ("species,genus\nUrsus arctos,Ursus\n", "lacks the column"),
        (HEADER, "no species"),
        (HEADER + BEAR + BEAR, "twice"),
        (HEADER.replace("marine", "cells") + BEAR, "column twice"),
        (HEADER + BEAR.replace("Ursus arctos", "../../etc"), "not a species name"),
        (HEADER + BEAR.replace("Ursus arctos", "Puma concolor"), "of its genus"),
        (HEADER + BEAR.replace("Ursidae", ""), "missing or malformed"),
        (HEADER + BEAR.replace("0.50", "nan"), "0..1"),
        (HEADER + BEAR.replace("0.50", "1.5"), "0..1"),
        (HEADER + BEAR.replace(",10,", ",ten,"), "not a number"),
        (HEADER + BEAR.replace(",10,", ",-1,"), "0 or more"),
        (HEADER + BEAR.replace("brown bear", "\x1b[31mbear"), "control characters"),
        (HEADER + BEAR.replace("brown bear", "b" * 3000), "2000"),
        (HEADER + "Ursus arctos,Animalia\n", "number of fields"),
        (HEADER.encode() + b"\xff\xfe", "UTF-8"),
        (HEADER + '"unclosed', "not valid CSV"),
    ],
)
def test_bad_tables_raise_model_error(tmp_path, content, why):
    with pytest.raises(ModelError, match=re.escape(why)):
        TaxonTable.load(write_folder(tmp_path, content))


def test_oversized_table(tmp_path, monkeypatch):
    monkeypatch.setattr("sdm.names.taxa.MAX_BYTES", 100)
    with pytest.raises(ModelError, match="larger than"):
        TaxonTable.load(write_folder(tmp_path, HEADER + BEAR))


def test_bad_genera(tmp_path):
    with pytest.raises(ModelError, match="lacks the column"):
        TaxonTable.load(write_folder(tmp_path, HEADER + BEAR, genera="genus\nFelis\n"))
    genera = "genus,family,order,class,phylum,kingdom\nFelis,,Carnivora,Mammalia,Chordata,Animalia\n"
    with pytest.raises(ModelError, match="malformed"):
        TaxonTable.load(write_folder(tmp_path, HEADER + BEAR, genera=genera))


def test_bad_homonyms(tmp_path):
    for bad in ("genus\nFelis\n", "genus,kingdom,class,family\n,Plantae,,\n", "genus,kingdom,class,family\nFelis,,,\n"):
        with pytest.raises(ModelError, match=r"homonyms\.csv"):
            TaxonTable.load(write_folder(tmp_path, HEADER + BEAR, homonyms=bad))
    table = TaxonTable.load(
        write_folder(
            tmp_path, HEADER + BEAR, homonyms="genus,kingdom,class,family\nUrsus,Fungi,,\nUrsus,Plantae,Bryopsida,\n"
        )
    )
    with pytest.raises(SpeciesNameError, match="and of Fungi, Bryopsida"):
        table.resolve("Ursus novus")
    assert TaxonTable.load_all([tmp_path, MODEL]).homonyms["ursus"]


def test_dataclasses_are_frozen(table):
    taxon = table.resolve("Ursus arctos").taxon
    with pytest.raises(AttributeError):
        taxon.name = "x"
    assert isinstance(hash(taxon), int)
    assert Taxon("genus", "Ursus", ("Animalia",)) == Taxon("genus", "Ursus", ("Animalia",))
