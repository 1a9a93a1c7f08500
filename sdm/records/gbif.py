"""Records of a species from the occurrence search of GBIF, https://www.gbif.org."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa

from sdm.errors import LayerError, RecordsError, quoted
from sdm.layers.fetch import CONNECTIONS, Fetcher, Unusable
from sdm.records.columns import ROLES, find_columns
from sdm.records.raw import Collector
from sdm.records.table import Records
from sdm.request.records import CleanOptions, ReadOptions

API = "https://api.gbif.org/v1"
MOST = 100_000
"""Records that one search gives, by the rules of GBIF."""
PAGE = 300
"""Records in an answer, the most that GBIF sends."""

_MAX_ANSWER = 64 << 20
_SPECIES = frozenset({"SPECIES", "SUBSPECIES", "VARIETY", "FORM", "INFRASPECIFIC_NAME"})
_FIELDS = (
    "decimalLongitude",
    "decimalLatitude",
    "coordinateUncertaintyInMeters",
    "eventDate",
    "year",
    "month",
    "occurrenceStatus",
    "individualCount",
    "basisOfRecord",
    "establishmentMeans",
    "degreeOfEstablishment",
    "license",
    "datasetKey",
    "speciesKey",
    "countryCode",
)

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """Settings for requests to GBIF."""

    api: str = API
    cache: Path | None = None
    """Folder in which responses are cached with their dates. None: no cache."""
    offline: bool = False
    """Use the cache only."""
    patience: float = 0.5
    """Seconds before a second attempt, doubled before each further one."""


@dataclass(frozen=True)
class Match:
    """The species that GBIF matches to a name."""

    key: int
    name: str
    """The accepted name, without its author."""
    note: str = ""
    """A sentence where the name is a synonym or was misspelt."""


def fetch(
    name: str,
    *,
    service: Service | None = None,
    clean: CleanOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Records:
    """Search the records of a species that have coordinates, and clean them.

    Parameters
    ----------
    name
        Scientific name; a synonym stands for the accepted name.
    service
        Where GBIF is asked; by default its public service, without a cache.
    clean
        Which checks to make.
    progress
        Called with the number of records so far and in all, after each answer.

    Returns
    -------
    Records
        `audit.citations` has the query, the records by licence and by dataset; `row` counts them as GBIF sent them.

    Raises
    ------
    RecordsError
        The name is not that of one species, GBIF has more records than a search gives or none, or it does not answer.
    """
    service = Service() if service is None else service
    client = _Client(service)
    match = client.match(name)
    results, query, date = client.search(match, progress)
    columns = find_columns(_FIELDS, ReadOptions(), "GBIF")
    collector = Collector("GBIF", {role: _FIELDS[i] for role, i in columns.items()})
    assert set(columns) <= set(ROLES)
    for start in range(0, len(results), 10_000):
        part = results[start : start + 10_000]
        batch = {role: pa.array([_text(r.get(_FIELDS[i])) for r in part], pa.string()) for role, i in columns.items()}
        collector.add(batch, np.arange(start + 1, start + len(part) + 1))
    datasets = len({_text(r.get("datasetKey")) for r in results})
    citation = f"GBIF.org ({date}) Occurrence search {query}, {len(results)} records of {datasets} datasets"
    notes = [match.note] if match.note else []
    notes.append(
        f"Asked on {date}. For a DOI of these records register a derived dataset at "
        "https://www.gbif.org/derived-dataset with the numbers of records by dataset."
    )
    raw = collector.finish(notes, [citation])
    return Records.from_raw(raw.only(match.name), clean)


class _Client:
    def __init__(self, service: Service) -> None:
        self.api = service.api.rstrip("/")
        self.fetcher = Fetcher(service.cache, offline=service.offline, patience=service.patience)

    def match(self, name: str) -> Match:
        """The species that GBIF matches to a name. Raises RecordsError where that is not one species."""
        answer = self._ask(f"{self.api}/species/match?{urlencode({'name': name})}", _match)
        kind, rank = str(answer.get("matchType")), str(answer.get("rank", ""))
        if kind == "NONE" or not isinstance(answer.get("usageKey"), int):
            raise RecordsError(f"GBIF knows no species {quoted(name)}, or several of this name; check its spelling.")
        canonical = str(answer.get("canonicalName") or answer.get("scientificName") or name)
        if kind == "HIGHERRANK" or rank not in _SPECIES:
            raise RecordsError(f"GBIF takes {quoted(name)} for the {rank.lower()} {quoted(canonical)}; give a species.")
        key, note = answer["usageKey"], ""
        if kind == "FUZZY":
            note = f"GBIF took {quoted(name)} for {quoted(canonical)}."
        accepted = answer.get("acceptedUsageKey")
        if isinstance(accepted, int) and accepted != key:
            key = accepted
            current = str(answer.get("species") or canonical)
            note = f"{quoted(canonical)} is a synonym of {quoted(current)} for GBIF, whose records are used."
            canonical = current
        return Match(key, canonical, note)

    def search(
        self, match: Match, progress: Callable[[int, int], None] | None
    ) -> tuple[list[dict[str, Any]], str, str]:
        """(Records, address of the query, day on which it was asked). Raises RecordsError."""
        query = f"{self.api}/occurrence/search?{urlencode({'taxonKey': match.key, 'hasCoordinate': 'true'})}"
        date = self._date(query)
        first = self._page(query, 0)
        count = first["count"]
        if count > MOST:
            raise RecordsError(
                f"GBIF has {count:,} records of {quoted(match.name)} with coordinates, and its search gives {MOST:,}; "
                f"download them at https://www.gbif.org/occurrence/search?taxon_key={match.key}&has_coordinate=true "
                "and give the file."
            )
        if count == 0:
            raise RecordsError(f"GBIF has no records of {quoted(match.name)} with coordinates.")
        pages = [first]
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            for page in pool.map(lambda offset: self._page(query, offset), range(PAGE, count, PAGE)):
                pages.append(page)
                if progress is not None:
                    progress(min(len(pages) * PAGE, count), count)
        finally:
            # After an error the pages that are left are not asked for.
            pool.shutdown(cancel_futures=True)
        if not pages[-1]["endOfRecords"]:
            raise RecordsError(f"GBIF returned more records of {quoted(match.name)} than it announced; try again.")
        # New records move others to the next page, where they come a second time.
        unique = {
            record.get("key", (i, j)): record
            for i, page in enumerate(pages)
            for j, record in enumerate(page["results"])
        }
        return list(unique.values()), query, date

    def _date(self, query: str) -> str:
        """The day on which a query was first asked, as the cache knows it."""
        today = datetime.now(UTC).date().isoformat()
        cache = self.fetcher.cache
        if cache is None:
            return today
        kept = cache.get(f"{query}#date")
        if kept is None or cache.get(_page_url(query, 0)) is None:
            kept = today.encode()
            if not self.fetcher.offline:
                cache.put(f"{query}#date", kept)
        return kept.decode("ascii", "replace")

    def _page(self, query: str, offset: int) -> dict[str, Any]:
        return self._ask(_page_url(query, offset), _results)

    def _ask(self, url: str, parse: Callable[[bytes, str], T]) -> T:
        try:
            answer = self.fetcher.get(url, parse, max_bytes=_MAX_ANSWER)
        except LayerError as error:
            raise RecordsError(f"GBIF: {error}") from None
        if answer is None:
            raise RecordsError(f"GBIF: {url} is not there (HTTP status 404); check the address of the service.")
        return answer


def _page_url(query: str, offset: int) -> str:
    return f"{query}&limit={PAGE}&offset={offset}"


def _json(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unusable("the answer is not JSON", transient=True) from error
    if not isinstance(answer, dict):
        raise Unusable("the answer is not what the interface of GBIF promises")
    return answer


def _match(body: bytes, _: str) -> dict[str, Any]:
    answer = _json(body)
    if "matchType" not in answer:
        raise Unusable("the answer is not what the interface of GBIF promises")
    return answer


def _results(body: bytes, _: str) -> dict[str, Any]:
    answer = _json(body)
    results, count = answer.get("results"), answer.get("count")
    good = isinstance(results, list) and all(isinstance(record, dict) for record in results)
    if not good or not isinstance(count, int) or count < 0 or len(results or ()) > PAGE:
        raise Unusable("the answer is not what the interface of GBIF promises")
    # Only what is used, or 100,000 records would take a gigabyte.
    slim = [{name: record[name] for name in ("key", *_FIELDS) if name in record} for record in results or ()]
    return {"results": slim, "count": count, "endOfRecords": bool(answer.get("endOfRecords"))}


def _text(value: Any) -> str | None:
    if isinstance(value, dict):  # a term of a vocabulary
        value = value.get("concept")
    return None if value is None else str(value)
