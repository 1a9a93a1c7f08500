"""What a query stands for. All against the shipped tables."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdm.errors import SpeciesNameError
from sdm.names import Resolution, TaxonTable
from tests.names.tables import BEAR, HEADER, write_folder


def test_every_species_resolves_to_itself(table):
    wrong = [t.name for t in table if table.resolve(t.name).taxon is not t]
    assert wrong == []


def test_every_first_common_name_finds_its_species_or_says_why(table):
    found = missed = 0
    for taxon in table:
        for name in taxon.common[:1]:
            try:
                resolution = table.resolve(name)
            except SpeciesNameError as error:
                assert taxon.name in str(error), name
                missed += 1
            else:
                hit = resolution.taxon
                members = table.members(hit)
                # 'fossa' is also a genus, of another animal: the scientific name wins, and the note says so.
                assert taxon in members or taxon.name in " ".join(resolution.notes), name
                found += 1
    assert found > 1500
    assert missed < 0.03 * found


@pytest.mark.parametrize(
    "query",
    [
        "Ursus arctos",
        "ursus arctos",
        "URSUS ARCTOS",
        "  Ursus   arctos\t",
        "Ursus_arctos",
        "Ursus\u00a0arctos",
        "Ｕｒｓｕｓ　ａｒｃｔｏｓ",
        "Ursus\u200b arc\u00adtos",
        "'Ursus arctos'",
        "“Ursus arctos”",
        "Ursus arctos Linnaeus, 1758",
        "Ursus arctos (Linnaeus, 1758)",
        "Ursus arctos L.",
        "Ursus arctos L. 1758",
        "Ursus arctos Linnaeus 1758",
        "Ursus arctos Schreber & Müller, 1801",
        "Ursus arctos von Linné",
        "Ursus (Ursus) arctos",
        "Ursus (Ursus) arctos Linnaeus, 1758",
        "Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos",
        "Animalia; Chordata; Mammalia; Carnivora; Ursidae; Ursus arctos",
        "Animalia|Chordata|Mammalia|Carnivora|Ursidae|Ursus arctos",
        "animalia chordata mammalia carnivora ursidae ursus arctos",
        "Animalia Chordata Mammalia Carnivora Ursidae Ursus Ursus arctos",
        "Ursidae Ursus arctos",
    ],
)
def test_spellings_of_one_species(table, query):
    resolution = table.resolve(query)
    assert resolution.taxon.name == "Ursus arctos"
    assert resolution.known
    assert resolution.how == "scientific name"
    assert resolution.notes == ()


@pytest.mark.parametrize(
    ("query", "species"),
    [
        ("Puma concolor (L.)", "Puma concolor"),
        ("Acer saccharum Marshall", "Acer saccharum"),
        ("Bison bison", "Bison bison"),
        ("Gorilla gorilla", "Gorilla gorilla"),
        ("Pithecellobium unguis-cati (L.) Mart.", "Pithecellobium unguis-cati"),
    ],
)
def test_names_with_authors(table, query, species):
    resolution = table.resolve(query)
    assert (resolution.taxon.name, resolution.notes) == (species, ())


@pytest.mark.parametrize(
    ("query", "species", "word"),
    [
        ("Ursus arctos horribilis", "Ursus arctos", "horribilis"),
        ("Ursus arctos horribilis Ord, 1815", "Ursus arctos", "horribilis"),
        ("Canis lupus ssp. arctos", "Canis lupus", "arctos"),
        ("Canis lupus subsp. arctos Pocock, 1935", "Canis lupus", "arctos"),
        ("Pinus contorta var. latifolia", "Pinus contorta", "latifolia"),
        ("Pinus contorta Douglas ex Loudon var. latifolia Engelm.", "Pinus contorta", "latifolia"),
        ("Gorilla gorilla gorilla", "Gorilla gorilla", "gorilla"),
        ("ursus arctos horribilis", "Ursus arctos", "horribilis"),
    ],
)
def test_subspecies_give_the_species_and_say_so(table, query, species, word):
    resolution = table.resolve(query)
    assert resolution.taxon.name == species
    assert resolution.known
    assert word in resolution.notes[0]
    assert "whole species" in resolution.notes[0]


def test_subspecies_that_is_now_a_species_is_pointed_out(table):
    resolution = table.resolve("Cervus elaphus canadensis")
    assert resolution.taxon.name == "Cervus elaphus"
    assert any("Cervus canadensis" in note for note in resolution.notes)


@pytest.mark.parametrize("query", ["Ursus sp.", "Ursus spp.", "Ursus sp", "Ursus indet.", "Ursus sp. 1"])
def test_open_nomenclature_gives_the_genus(table, query):
    resolution = table.resolve(query)
    assert (resolution.taxon.rank, resolution.taxon.name, resolution.known) == ("genus", "Ursus", True)
    assert "uncertain" in resolution.notes[0]


@pytest.mark.parametrize(
    "query", ["Ursus cf. arctos", "Ursus aff. arctos", "Ursus ?arctos", "cf. Ursus arctos", "? Ursus arctos"]
)
def test_a_species_of_which_nobody_is_sure_is_not_known(table, query):
    resolution = table.resolve(query)
    assert (resolution.taxon.rank, resolution.taxon.name, resolution.known) == ("genus", "Ursus", False)
    assert "uncertain" in resolution.notes[0] and "'Ursus arctos'" in resolution.notes[1]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("Homo sapiens", "people"),
        ("Human", "people"),
        ("persons", None),
        ("people", "people"),
        ("blank", "a label for a picture"),
        ("No_CV_Result", "a label for a picture"),
        ("vehicle", "a label for a picture"),
        ("unknown bird", "not identified"),
        ("Unidentified rodent", "not identified"),
        ("UNKNOWN", "not identified"),
    ],
)
def test_labels_that_name_no_species_are_refused_as_such(table, query, reason):
    with pytest.raises(SpeciesNameError) as caught:
        table.resolve(query)
    assert ("leave it out" in str(caught.value)) == bool(reason)
    assert reason is None or reason in str(caught.value)


@pytest.mark.parametrize(
    ("query", "species"),
    [
        ("Felis concolor", "Puma concolor"),
        ("Mustela vison", "Neovison vison"),
        ("Neogale vison", "Neovison vison"),
        ("Aesculus flava", "Aesculus octandra"),
        ("Pekania pennanti", "Martes pennanti"),
        ("Parastrellus hesperus", "Pipistrellus hesperus"),
        ("Semnopithecus johnii", "Trachypithecus johnii"),
        ("Senegalia berlandieri", "Acacia berlandieri"),
        ("FELIS CONCOLOR Linnaeus, 1771", "Puma concolor"),
    ],
)
def test_synonyms(table, query, species):
    resolution = table.resolve(query)
    assert (resolution.taxon.name, resolution.known, resolution.how) == (species, True, "synonym")
    assert species in resolution.notes[0]


@pytest.mark.parametrize("query", ["Hippotragus nigra", "Lepus townsendi", "U. arctos", "Ondatra zibethica"])
def test_other_spellings_are_noted(table, query):
    resolution = table.resolve(query)
    assert resolution.known
    assert resolution.taxon.rank == "species"
    assert resolution.taxon.name in resolution.notes[0]


@pytest.mark.parametrize(
    ("query", "species", "how"),
    [
        ("Leopardus colocola", "Leopardus colocolo", "scientific name"),
        ("Panthera pardis", "Panthera pardus", "scientific name"),
        ("Myotis bechsteini", "Myotis bechsteinii", "scientific name"),
        ("Felis wiedii", "Leopardus wiedii", "synonym"),  # 'Felis wiedi' is listed as a synonym
    ],
)
def test_other_endings_are_found(table, query, species, how):
    resolution = table.resolve(query)
    assert (resolution.taxon.name, resolution.known, resolution.how) == (species, True, how)
    assert species in resolution.notes[0]


def test_an_ending_that_fits_two_species_of_the_genus_is_not_one_of_them(tmp_path):
    rows = BEAR.replace("arctos", "albus") + BEAR.replace("arctos", "alba").replace("brown bear", "white bear")
    table = TaxonTable.load(write_folder(tmp_path, HEADER + rows))
    with pytest.raises(SpeciesNameError, match=r"Unknown species.*Ursus alb"):
        table.resolve("Ursus album")


def test_initial_that_fits_several_is_an_error(table):
    with pytest.raises(SpeciesNameError, match="several species") as error:
        table.resolve("C. canadensis")
    assert "Castor canadensis" in str(error.value)
    assert "Cervus canadensis" in str(error.value)


def test_hybrid_sign(table):
    resolution = table.resolve("Populus × canadensis")
    assert (resolution.taxon.name, resolution.known) == ("Populus", False)
    assert "hybrid" in resolution.notes[0]
    assert table.resolve("Acer x saccharum").taxon.name == "Acer saccharum"


@pytest.mark.parametrize(
    "query", ["Ursus arctos × maritimus", "Ursus arctos x Ursus maritimus", "Animalia Ursus arctos ×maritimus"]
)
def test_a_cross_of_two_species_is_neither(table, query):
    with pytest.raises(SpeciesNameError, match="cross of two species"):
        table.resolve(query)


@pytest.mark.parametrize(
    "query", ["Ursus arctos, Ursus maritimus", "gray wolf (Ursus arctos)", "Ursus arctos [Canis lupus]"]
)
def test_two_species_in_one_query(table, query):
    with pytest.raises(SpeciesNameError, match="two species"):
        table.resolve(query)


def test_brackets_that_agree(table):
    for query in ("brown bear (Ursus arctos)", "Ursus arctos (brown bear)", "Ursus arctos (Linnaeus, 1758)"):
        assert table.resolve(query).taxon.name == "Ursus arctos"


def test_cultivars_are_noted(table):
    resolution = table.resolve("Acer rubrum ‘October Glory’")
    assert (resolution.taxon.name, resolution.query) == ("Acer rubrum", "Acer rubrum 'October Glory'")
    assert "whole species" in resolution.notes[0]
    for quoted in ("'Acer rubrum'", "'Acer rubrum", "Acer rubrum'", '"Acer rubrum"'):
        assert table.resolve(quoted).query == "Acer rubrum"


def test_wrong_lineage_is_noted(table):
    resolution = table.resolve("Animalia Chordata Mammalia Carnivora Felidae Ursus arctos")
    assert resolution.taxon.name == "Ursus arctos"
    assert "Felidae" in resolution.notes[0]
    assert "Ursidae" in resolution.notes[0]


def test_other_name_of_the_order_is_no_contradiction(table):
    query = "Animalia Chordata Mammalia Artiodactyla Cervidae Alces alces"
    assert table.resolve(query).notes == ()


@pytest.mark.parametrize(
    ("query", "rank", "name"),
    [
        ("Ursus", "genus", "Ursus"),
        ("ursidae", "family", "Ursidae"),
        ("CARNIVORA", "order", "Carnivora"),
        ("Mammalia", "class", "Mammalia"),
        ("genus Puma", "genus", "Puma"),
        ("family Ursidae", "family", "Ursidae"),
        ("Ursidae sp.", "family", "Ursidae"),
        ("Animalia Chordata Mammalia Carnivora Ursidae", "family", "Ursidae"),
        ("Animalia Chordata Mammalia Carnivora Ursidae Ursus", "genus", "Ursus"),
        ("Ursus Linnaeus, 1758", "genus", "Ursus"),
        ("Ursus (Linnaeus, 1758)", "genus", "Ursus"),
        ("Pinus", "genus", "Pinus"),
    ],
)
def test_groups(table, query, rank, name):
    resolution = table.resolve(query)
    assert (resolution.taxon.rank, resolution.taxon.name) == (rank, name)
    assert resolution.known
    assert resolution.how == rank


def test_older_name_of_a_group(table):
    resolution = table.resolve("Artiodactyla")
    assert (resolution.taxon.rank, resolution.taxon.name) == ("order", "Cetartiodactyla")
    assert "Cetartiodactyla" in resolution.notes[0]


@pytest.mark.parametrize("query", ["Animalia", "Chordata", "plantae"])
def test_too_broad(table, query):
    with pytest.raises(SpeciesNameError, match="too broad"):
        table.resolve(query)


@pytest.mark.parametrize(
    ("query", "species"),
    [
        ("brown bear", "Ursus arctos"),
        ("Brown Bears", "Ursus arctos"),
        ("the brown bear", "Ursus arctos"),
        ("brown-bear", "Ursus arctos"),
        ("brown_bear", "Ursus arctos"),
        ("grizzly", "Ursus arctos"),
        ("grizzly bear", "Ursus arctos"),
        ("polar bear", "Ursus maritimus"),
        ("puma", "Puma concolor"),
        ("cougar", "Puma concolor"),
        ("mountain lion", "Puma concolor"),
        ("moose", "Alces alces"),
        ("red fox", "Vulpes vulpes"),
        ("red foxes", "Vulpes vulpes"),
        ("gray wolf", "Canis lupus"),
        ("grey wolf", "Canis lupus"),
        ("grey wolves", "Canis lupus"),
        ("GREY SEAL", "Halichoerus grypus"),
        ("snow leopard", "Panthera uncia"),
        ("Douglas fir", "Pseudotsuga menziesii"),
        ("douglas-firs", "Pseudotsuga menziesii"),
        ("ponderosa pine", "Pinus ponderosa"),
        ("grevys zebra", "Equus grevyi"),
        ("Grévy’s zebra", "Equus grevyi"),
        ("Pere David's deer", "Elaphurus davidianus"),
        ("Pallas' cat", "Otocolobus manul"),
        ("Pallass cat", "Otocolobus manul"),
        ("vicuna", "Vicugna vicugna"),
        ("house mice", "Mus musculus"),
        ("box elder", "Acer negundo"),
        ("orca", "Orcinus orca"),
        ("wapiti", "Cervus canadensis"),
    ],
)
def test_common_names(table, query, species):
    resolution = table.resolve(query)
    assert (resolution.taxon.name, resolution.known, resolution.how) == (species, True, "common name")


@pytest.mark.parametrize(
    ("query", "candidates"),
    [
        ("elk", ["Alces alces", "Cervus canadensis"]),
        ("panther", ["Panthera onca", "Panthera pardus", "Puma concolor"]),
        ("zebras", ["Equus grevyi", "Equus quagga", "Equus zebra"]),
        ("red squirrel", ["Sciurus vulgaris", "Tamiasciurus hudsonicus"]),
        ("buffalo", ["Bison bison", "Syncerus caffer", "Bubalus arnee"]),
        # Kinds: a list of names ties them to one species or group, yet most that bear them are others.
        ("ground squirrel", ["Tamias striatus", "Urocitellus parryii"]),
        ("cottonwoods", ["Tilia heterophylla", "Populus fremontii"]),
        ("chipmunk", ["genus Eutamias", "Tamias striatus"]),
        ("flying squirrel", ["genus Petaurus", "Glaucomys volans"]),
    ],
)
def test_common_name_of_several_is_an_error_that_lists_them(table, query, candidates):
    with pytest.raises(SpeciesNameError) as error:
        table.resolve(query)
    assert all(name in str(error.value) for name in candidates)
    assert "scientific name" in str(error.value)


@pytest.mark.parametrize(
    ("query", "rank", "name"),
    [
        ("bear", "family", "Ursidae"),
        ("bats", "order", "Chiroptera"),
        ("maple", "genus", "Acer"),
        ("elephants", "family", "Elephantidae"),
        ("gibbon", "family", "Hylobatidae"),
    ],
)
def test_common_names_of_groups(table, query, rank, name):
    taxon = table.resolve(query).taxon
    assert (taxon.rank, taxon.name) == (rank, name)


def test_a_name_that_others_bear_too_is_noted(table):
    resolution = table.resolve("wolf")
    assert resolution.taxon.name == "Canis lupus"
    assert "Chrysocyon brachyurus (maned wolf)" in resolution.notes[0]
    assert table.resolve("gray wolf").notes == ()


def test_scientific_name_wins_over_common_name(table):
    # 'gorilla' is the genus before it is anyone's common name.
    assert table.resolve("gorilla").taxon.rank == "genus"


@pytest.mark.parametrize(
    ("query", "rank", "name"),
    [
        ("Ursus deningeri", "genus", "Ursus"),
        ("Ursus deningeri von Reichenau, 1904", "genus", "Ursus"),
        ("Quercus robur", "genus", "Quercus"),
        ("Mammuthus primigenius", "family", "Elephantidae"),
        ("Mammuthus", "family", "Elephantidae"),
        ("Eucalyptus globulus", "family", "Myrtaceae"),
        ("Animalia Chordata Mammalia Carnivora Ursidae Xyzzotherium novum", "family", "Ursidae"),
    ],
)
def test_unknown_falls_back_to_the_nearest_group(table, query, rank, name):
    resolution = table.resolve(query)
    assert (resolution.taxon.rank, resolution.taxon.name) == (rank, name)
    assert not resolution.known
    assert resolution.how == rank
    assert "is not in the model" in resolution.notes[0]
    assert f"{rank} {name}" in resolution.notes[0]


def test_fallback_names_where_the_species_may_have_moved(table):
    notes = table.resolve("Felis pardus").notes
    assert any("Panthera pardus" in note for note in notes)


def test_fallback_to_a_family_says_so_too(tmp_path):
    genera = "genus,family,order,class,phylum,kingdom\nMelanarctos,Ursidae,Carnivora,Mammalia,Chordata,Animalia\n"
    resolution = TaxonTable.load(write_folder(tmp_path, HEADER + BEAR, genera=genera)).resolve("Melanarctos arctos")
    assert (resolution.taxon.name, resolution.known) == ("Ursidae", False)
    assert any("Ursus arctos" in note for note in resolution.notes)


@pytest.mark.parametrize(
    ("query", "elsewhere"),
    [
        ("Coris julis", "Labridae (Actinopterygii)"),  # a wrasse; Coris is a primrose too
        ("Dracaena guianensis", "Teiidae (Reptilia)"),
        ("Abronia graminea", "Anguidae (Reptilia)"),
        ("Pieris rapae", "Pieridae (Insecta)"),
        ("Echinops ritro", "Asteraceae (Magnoliopsida)"),
        ("Coris", "Labridae (Actinopterygii)"),
        ("Coris sp.", "Labridae (Actinopterygii)"),
    ],
)
def test_homonyms_of_other_groups_are_not_known(table, query, elsewhere):
    """A genus of the model that is also one of fishes, reptiles or insects is no answer to their species."""
    with pytest.raises(SpeciesNameError, match=r"is ambiguous: .* is a genus of") as error:
        table.resolve(query)
    assert elsewhere in str(error.value)


def test_a_lineage_says_which_homonym_is_meant(table):
    resolution = table.resolve("Plantae Tracheophyta Magnoliopsida Ericales Primulaceae Coris monspeliensis")
    assert (resolution.taxon.name, resolution.known) == ("Primulaceae", False)


def test_a_species_named_like_an_order_is_not_of_it(table):
    with pytest.raises(SpeciesNameError, match="Unknown species"):
        table.resolve("Proboscidea louisianica")  # a herb, and the order of elephants
    assert table.resolve("Proboscidea").taxon.rank == "order"


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("Ursus arctoss", "Ursus arctos"),
        ("Ursus arctoz", "Ursus arctos"),
        ("Ursus acrtos", "Ursus arctos"),
        ("Urus arctos", "Ursus arctos"),
        ("Pumma concolor", "Puma concolor"),
        ("Puma concolour", "Puma concolor"),
        ("Ursus maritimis", "Ursus maritimus"),
        ("Canis latranss", "Canis latrans"),
        ("polar baer", "Ursus maritimus"),
        ("otter", "Lutra lutra"),
        ("red oak", "Quercus rubra"),
    ],
)
def test_typing_errors_raise_with_the_right_name(table, query, meant):
    if query == "Ursus maritimis":  # differs only in its ending: the same name by the rules of grammar
        assert table.resolve(query).taxon.name == meant
        return
    with pytest.raises(SpeciesNameError) as error:
        table.resolve(query)
    message = str(error.value)
    assert repr(query) in message
    assert meant in message
    assert "--search" in message


@pytest.mark.parametrize(
    "query",
    ["unicorn", "Tyrannosaurus rex", "Prunus necrotic ringspot virus", "qqqqqq zzzzzz", "李 四"],
)
def test_unknown_raises(table, query):
    with pytest.raises(SpeciesNameError, match="Unknown species"):
        table.resolve(query)


WORDS = st.sampled_from(
    [
        "Ursus",
        "arctos",
        "Puma",
        "concolor",
        "Mammuthus",
        "sp.",
        "cf.",
        "×",
        "x",
        "L.",
        "1758",
        "(Linnaeus)",
        "var.",
        "ssp.",
        "Ursidae",
        "Animalia",
        "genus",
        "family",
        "the",
        "grey",
        "bear",
        "of",
        "&",
        ",",
        "|",
        "(",
        ")",
        "[",
        "]",
        "?",
        ".",
        "-",
        "'",
        "Quercus",
        "alba",
        "Artiodactyla",
        "Felidae",
        "Canis",
        "U.",
    ]
)


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=8).map(" ".join)))
@example("×")
@example("x")
@example("()")
@example("( )a")
@example("genus")
@example("sp. sp.")
@example("Animalia sp.")
@example("Ursus ?")
@example("Ursus arctos (")
def test_any_text_resolves_or_raises(table, query):
    try:
        resolution = table.resolve(query)
    except SpeciesNameError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(resolution, Resolution)
        assert table.members(resolution.taxon)
        assert resolution.known or resolution.notes
        assert all(note.isprintable() for note in resolution.notes)
        assert resolution == table.resolve(query)


def test_family_unknown_to_the_model_falls_back_to_the_order(tmp_path):
    genera = (
        "genus,family,order,class,phylum,kingdom\nFelis,Felidae,Carnivora,Mammalia,Chordata,Animalia\n"
        "Bos,Bovidae,Artiodactyla,Mammalia,Chordata,Animalia\n"
    )
    table = TaxonTable.load(write_folder(tmp_path, HEADER + BEAR, genera=genera))
    for query in ("Felis margarita", "Felis", "Felidae"):
        resolution = table.resolve(query)
        assert (resolution.taxon.name, resolution.known) == ("Carnivora", False)
    with pytest.raises(SpeciesNameError):
        table.resolve("Bos gaurus")  # neither family nor order has a species: no map of all mammals


def test_synonym_of_two_species_is_an_error(tmp_path):
    rows = BEAR.replace("brown bear,,", "brown bear,Ursus vetus,") + BEAR.replace("arctos", "maritimus").replace(
        "brown bear,,", "polar bear,Ursus vetus,"
    )
    table = TaxonTable.load(write_folder(tmp_path, HEADER + rows))
    with pytest.raises(SpeciesNameError, match="Ursus maritimus"):
        table.resolve("Ursus vetus")


@pytest.mark.parametrize("epithet", ["rctos", "arcotos", "acrtos", "arctox", "arctoss"])
def test_an_epithet_with_one_wrong_letter_is_not_another_species(table, epithet):
    with pytest.raises(SpeciesNameError, match="Ursus arctos"):
        table.resolve(f"Ursus {epithet}")


@pytest.mark.parametrize(
    "query",
    [
        "Ursus [arctos]",
        "Ursus (arctos)",
        "Ursus arctos*",
        "Ursus arctos†",
        "Ursus arctos¹",
        "Ursus.arctos",
        "ursus.arctos",
    ],
)
def test_marks_of_editors_and_programs_are_read_over(table, query):
    assert table.resolve(query).taxon.name == "Ursus arctos"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Ursus arctos Gobi Desert population", "Gobi Desert population"),
        ("Ursus arctos [horribilis Group]", "horribilis Group"),
        ("Ursus arctos (southern subpopulation)", "southern subpopulation"),
    ],
)
def test_words_that_narrow_a_species_are_not_dropped_silently(table, query, words):
    resolution = table.resolve(query)
    assert resolution.taxon.name == "Ursus arctos"
    assert any(words in note and "the whole species" in note for note in resolution.notes), resolution.notes


@pytest.mark.parametrize(
    "query",
    [
        "Ursus arctos (Linnaeus, 1758)",
        "Ursus arctos (brown bear)",
        "Ursus arctos [Linnaeus]",
        "brown bear (Ursus arctos)",
    ],
)
def test_authors_and_common_names_need_no_note(table, query):
    assert table.resolve(query).notes == ()


def test_a_slash_between_epithets_stands_for_two_species(table):
    for query in ("Myotis myotis/blythii", "Myotis myotis / blythii", "Sorex araneus/S. coronatus"):
        with pytest.raises(SpeciesNameError, match="two species"):
            table.resolve(query)
