"""Records from GBIF, from a server here that answers as the interface of GBIF does."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from sdm.errors import RecordsError
from sdm.records.gbif import PAGE, Service, fetch

SPECIES = {
    "Ursus arctos": {
        "usageKey": 2433433,
        "scientificName": "Ursus arctos Linnaeus, 1758",
        "canonicalName": "Ursus arctos",
        "rank": "SPECIES",
        "status": "ACCEPTED",
        "confidence": 99,
        "matchType": "EXACT",
        "species": "Ursus arctos",
    },
    "Ursus arcto": {
        "usageKey": 2433433,
        "scientificName": "Ursus arctos Linnaeus, 1758",
        "canonicalName": "Ursus arctos",
        "rank": "SPECIES",
        "status": "ACCEPTED",
        "confidence": 90,
        "matchType": "FUZZY",
        "species": "Ursus arctos",
    },
    "Felis lynx": {
        "usageKey": 2435241,
        "acceptedUsageKey": 2435240,
        "scientificName": "Felis lynx Linnaeus, 1758",
        "canonicalName": "Felis lynx",
        "rank": "SPECIES",
        "status": "SYNONYM",
        "matchType": "EXACT",
        "synonym": True,
        "species": "Lynx lynx",
        "speciesKey": 2435240,
    },
    "Ursus": {"usageKey": 2433406, "canonicalName": "Ursus", "rank": "GENUS", "matchType": "EXACT"},
    "Ursus nonexistens": {"usageKey": 2433406, "canonicalName": "Ursus", "rank": "GENUS", "matchType": "HIGHERRANK"},
}


def record(i):
    """The i-th record of a species, as GBIF sends it."""
    return {
        "key": 1_000_000 + i,
        "datasetKey": f"dataset-{i % 3}",
        "license": "http://creativecommons.org/licenses/by/4.0/legalcode",
        "basisOfRecord": "HUMAN_OBSERVATION",
        "occurrenceStatus": "ABSENT" if i % 100 == 99 else "PRESENT",
        "species": "Ursus arctos",
        "speciesKey": 2433433,
        "countryCode": "DE",
        "decimalLatitude": 47.8 + (i % 40) / 1000,
        "decimalLongitude": 11.25 + (i // 40) / 1000,
        "coordinateUncertaintyInMeters": 25.0,
        "year": 2020,
        "month": 1 + i % 12,
        "eventDate": "2020-01-01T00:00",
        "issues": [],
        "media": [{"type": "StillImage"}],
        **({"degreeOfEstablishment": {"concept": "captive", "lineage": ["captive"]}} if i == 7 else {}),
    }


class Gbif:
    """What the server has, how it fails, and what it was asked."""

    def __init__(self, count):
        self.count = count
        self.asked = Counter()
        self.failures = {}
        """By path and offset: list of (status, headers, body) to answer with before the right answer."""
        self.shift_at = None
        """From this offset on there is one more record at the front."""

    def answer(self, path, query):
        if path == "/v1/species/match":
            body = SPECIES.get(query["name"], {"confidence": 100, "matchType": "NONE", "synonym": False})
            return 200, {}, json.dumps(body)
        if path != "/v1/occurrence/search":
            return 404, {}, ""
        assert query["hasCoordinate"] == "true"
        offset, limit = int(query["offset"]), int(query["limit"])
        assert limit <= 300
        if offset + limit > 100_000:
            return 400, {}, "Max offset of 100001 exceeded"
        first = offset - 1 if self.shift_at is not None and offset >= self.shift_at else offset
        results = [record(i) for i in range(first, min(first + limit, self.count))]
        body = {
            "offset": offset,
            "limit": limit,
            "endOfRecords": offset + limit >= self.count,
            "count": self.count,
            "results": results,
            "facets": [],
        }
        return 200, {}, json.dumps(body)


@pytest.fixture
def serve():
    """Function: a server with so many records of any species; returns it and its address."""
    servers = []

    def serve_(count):
        gbif = Gbif(count)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                at = (parts.path, query.get("offset", ""))
                gbif.asked[at] += 1
                waiting = gbif.failures.get(at)
                status, headers, body = waiting.pop(0) if waiting else gbif.answer(parts.path, query)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return gbif, f"http://127.0.0.1:{server.server_port}/v1"

    yield serve_
    for server in servers:
        server.shutdown()
        server.server_close()


SEARCH = "/v1/occurrence/search"


def test_all_pages(serve):
    gbif, api = serve(1000)
    told = []
    records = fetch("Ursus arctos", service=Service(api), progress=lambda *n: told.append(n))
    assert len(records) == 999
    assert len(records.absences) == 10
    assert records.species == "Ursus arctos"
    assert records.audit.counts()["dropped"] == {"captive or cultivated": 1}
    assert (records.lon[0], records.lat[0], records.month[0], records.year[0]) == (11.25, 47.8, 1, 2020)
    assert records.row.tolist() == [i for i in range(1, 1001) if i != 8]
    assert (records.uncertainty_m == 25).all()
    assert told == [(600, 1000), (900, 1000), (1000, 1000)]
    assert sum(n for (path, _), n in gbif.asked.items() if path == SEARCH) == 4
    citations = records.audit.citations
    assert citations.licences == {"http://creativecommons.org/licenses/by/4.0/legalcode": 999}
    assert citations.datasets == {"dataset-0": 334, "dataset-2": 333, "dataset-1": 332}
    assert "taxonKey=2433433&hasCoordinate=true, 1000 records of 3 datasets" in citations.texts[0]
    assert any("derived-dataset" in line for line in records.audit.sentences())


def test_a_synonym_stands_for_the_accepted_name(serve):
    _, api = serve(10)
    records = fetch("Felis lynx", service=Service(api))
    assert records.species == "Lynx lynx"
    assert "'Felis lynx' is a synonym of 'Lynx lynx' for GBIF, whose records are used." in records.audit.notes
    assert "taxonKey=2435240" in records.audit.citations.texts[0]


def test_a_misspelt_name_is_told(serve):
    _, api = serve(10)
    assert "GBIF took 'Ursus arcto' for 'Ursus arctos'." in fetch("Ursus arcto", service=Service(api)).audit.notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nonsensus absurdus", "GBIF knows no species 'Nonsensus absurdus'"),
        ("Ursus", "takes 'Ursus' for the genus 'Ursus'; give a species"),
        ("Ursus nonexistens", "takes 'Ursus nonexistens' for the genus 'Ursus'"),
    ],
)
def test_names_that_are_not_of_a_species(serve, name, message):
    gbif, api = serve(10)
    with pytest.raises(RecordsError, match=message):
        fetch(name, service=Service(api))
    assert not any(path == SEARCH for path, _ in gbif.asked)


def test_more_than_a_search_gives(serve):
    gbif, api = serve(100_001)
    with pytest.raises(
        RecordsError, match=r"100,001 records of 'Ursus arctos'.*gives 100,000; download them at https://www"
    ):
        fetch("Ursus arctos", service=Service(api))
    assert gbif.asked[SEARCH, "0"] == 1
    assert len(gbif.asked) == 2


def test_no_records(serve):
    _, api = serve(0)
    with pytest.raises(RecordsError, match="no records of 'Ursus arctos' with coordinates"):
        fetch("Ursus arctos", service=Service(api))


@pytest.mark.parametrize(
    "failures",
    [
        [(429, {"Retry-After": "1"}, "")],
        [(503, {}, ""), (503, {}, "")],
        [(200, {}, '{"offset": 300, "results": [')],
        [(200, {}, "<html>Gateway</html>")],
    ],
)
def test_a_server_that_recovers(serve, failures):
    gbif, api = serve(700)
    gbif.failures[SEARCH, "300"] = list(failures)
    assert len(fetch("Ursus arctos", service=Service(api, patience=0.01))) == 699
    assert gbif.asked[SEARCH, "300"] == len(failures) + 1


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((503, {}, ""), "could not be fetched in 5 attempts"),
        ((200, {}, "[1, 2"), "not JSON"),
        ((200, {}, "[]"), "not what the interface of GBIF promises"),
        ((200, {}, '{"count": 5}'), "not what the interface of GBIF promises"),
        ((200, {}, '{"count": -5, "results": []}'), "not what the interface of GBIF promises"),
        ((200, {}, '{"count": 5, "results": [1]}'), "not what the interface of GBIF promises"),
        ((400, {}, ""), "HTTP status 400"),
        ((404, {}, ""), "404"),
        ((429, {"Retry-After": "9999"}, ""), "asks to wait 9999 s "),
    ],
)
def test_a_server_that_does_not(serve, failure, message):
    gbif, api = serve(10)
    gbif.failures[SEARCH, "0"] = [failure] * 20
    with pytest.raises(RecordsError, match=message) as error:
        fetch("Ursus arctos", service=Service(api, patience=0.01))
    assert error.value.exit_code == 4


def test_after_a_failure_no_further_pages_are_asked_for(serve):
    gbif, api = serve(30_000)
    gbif.failures[SEARCH, str(PAGE)] = [(400, {}, "")]
    with pytest.raises(RecordsError, match="HTTP status 400"):
        fetch("Ursus arctos", service=Service(api))
    assert len(gbif.asked) < 20


def test_a_record_that_comes_twice_counts_once(serve):
    """A new record moves the others on while pages are asked for."""
    gbif, api = serve(450)
    gbif.shift_at = 300
    records = fetch("Ursus arctos", service=Service(api))
    assert len(records.audit.row) == 450
    assert len(records) == 449


def test_a_count_that_is_too_small(serve):
    gbif, api = serve(450)
    status, headers, body = gbif.answer(SEARCH, {"hasCoordinate": "true", "offset": "0", "limit": "300"})
    gbif.failures[SEARCH, "0"] = [(status, headers, json.dumps(json.loads(body) | {"count": 300}))]
    with pytest.raises(RecordsError, match="more records of 'Ursus arctos' than it announced"):
        fetch("Ursus arctos", service=Service(api))


def test_answers_are_kept(serve, tmp_path):
    gbif, api = serve(700)
    first = fetch("Ursus arctos", service=Service(api, cache=tmp_path))
    asked = dict(gbif.asked)
    again = fetch("Ursus arctos", service=Service(api, cache=tmp_path, offline=True))
    assert gbif.asked == asked
    assert again.lon.tolist() == first.lon.tolist()
    assert again.audit.citations == first.audit.citations


def test_offline_without_a_cache(serve, tmp_path):
    gbif, api = serve(10)
    with pytest.raises(RecordsError, match="not in the cache and --offline forbids"):
        fetch("Ursus arctos", service=Service(api, cache=tmp_path, offline=True))
    assert not gbif.asked
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there():
    with pytest.raises(RecordsError, match="could not be fetched"):
        fetch("Ursus arctos", service=Service("http://127.0.0.1:9/v1", patience=0.01))
    with pytest.raises(RecordsError, match="not http or https"):
        fetch("Ursus arctos", service=Service("file:///etc"))
