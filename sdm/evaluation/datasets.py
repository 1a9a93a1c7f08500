"""The datasets of the TaxaBind paper, read from folders laid out as they are published.

Nothing is downloaded here, and nothing is decoded before it is used. *Certain* statements come from the datasets'
pages on the Hugging Face hub (organisation MVRL) or from the authors' code (mvrl/TaxaBind); *inferred* ones are
marked, and the loader then accepts any of the likely names.

TaxaBench-8k (`taxabench`), 8,813 observations:

* `test_df.csv`, certain: an export of iNaturalist with, among 44 columns, `id`, `latitude`, `longitude`,
  `scientific_name`, `taxon_id`, `sound_format`. It has no higher ranks.
* `taxabench_sound/<id>.<sound_format>`, certain: m4a, wav or mp3. m4a cannot be decoded here; a converted
  file beside it (wav, flac, ogg, mp3) is used instead.
* `taxabench_images/`, `sat_images/sentinel/`: folders certain, file names inferred: `<id>.jpg` and
  `<id>_<latitude>_<longitude>.jpeg`. Any picture whose name is the id, or begins with the id and `_`, is
  used.
* `bioclim_elevation_scaled.npy`, certain: (2160, 4320, 20) float16, row 0 north, z-scores, NaN at sea.
* `taxa_names.npy`: probably a pickled array of names; never opened. Classes are the `scientific_name`s.

iSatNat (`isatnat`), 2.68 M for training, 99.7 k for testing:

* `train_df.csv`, `test_df.csv`, certain: columns `sat_url`, `lat`, `lon`, `key`, `inat_id`, where `key` is
  `<inat_id>_<lat>_<lon>`. Satellite pictures are not part of it: they are fetched from `sat_url`.
* pictures as `<key>.jpeg` (the authors' training code), in `images/sentinel`, `sat_images/sentinel`,
  `sentinel` or `satellite`, inferred.
* photos are those of the iNaturalist 2021 challenge: `train.json` or `val.json` with `images` (id,
  file_name), certain; that `inat_id` is that id, and that the test table goes with `val.json`, inferred
  from its range of ids. The class is the folder of a photo: `val/00000_Animalia_..._Lumbricus_terrestris/`,
  whose parts are the seven ranks (authors' code).

iSoundNat (`isoundnat`): `train_df.csv`, `val_df.csv`, `test_df.csv` with the columns of TaxaBench-8k,
certain; photos and sounds are fetched from `image_url` and `sound_url` into `images/<id>.jpg` and
`sounds/<id>.<sound_format>` or `sounds_mp3/<id>.mp3` (authors' code).

Positions are **(lon, lat)** here, whatever the order of the columns.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from sdm.errors import RequestError, TooLargeError, quoted
from sdm.evaluation.csv_rows import MAX_BYTES, coordinate, read_rows
from sdm.evaluation.species import Candidate, Taxonomy

MODALITIES = ("image", "satellite", "location", "environment", "audio")
"""Modalities of an observation, besides the text of its species, in the order of tables."""
PICTURES = ("jpg", "jpeg", "png", "webp")
SOUNDS = ("wav", "flac", "ogg", "mp3", "aiff", "aif")
"""Suffixes of files that can be decoded; the first that exists is used."""
SPLITS = ("train", "val", "test")
ENVIRONMENT_FILE = "bioclim_elevation_scaled.npy"

_ID = re.compile(r"\d{1,15}")
_KEY = re.compile(r"(\d{1,15})_-?\d{1,3}(\.\d{1,20})?(e-\d{1,3})?_-?\d{1,3}(\.\d{1,20})?(e-\d{1,3})?")
_FORMAT = re.compile(r"[a-z0-9-]{1,20}")


@dataclass(frozen=True)
class Dataset:
    """Observations of one split: position, species, and files of pictures and sounds."""

    name: str
    folder: Path
    ids: tuple[str, ...]
    lonlat: np.ndarray
    """(N, 2) float64 degrees (lon, lat)."""
    labels: np.ndarray
    """(N,) int64 rows of `classes`."""
    classes: tuple[Candidate, ...]
    files: Mapping[str, tuple[Path, ...]]
    """By modality (image, satellite, audio): one per observation."""
    environment_file: Path | None = None
    notes: tuple[str, ...] = ()
    """Notes for readers of a table: observations left out, classes without all ranks."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that can be encoded, in the order of `MODALITIES`."""
        there = {"location", *self.files, *(["environment"] if self.environment_file else [])}
        return tuple(m for m in MODALITIES if m in there)

    def values(self, modality: str) -> Sequence[Path] | np.ndarray:
        """The items of a modality for `encode_items`: paths, (N, 2) positions (lon, lat), or (N, 20) z-scores."""
        if modality == "location":
            return self.lonlat
        if modality == "environment" and self.environment_file:
            from sdm.layers.worldclim import published_array

            return published_array(self.environment_file).sample(*self.lonlat.T)[0]
        if modality not in self.files:
            raise RequestError(f"dataset {self.name} has no {modality}; it has {', '.join(self.modalities)}.")
        return self.files[modality]


def taxabench(
    folder: str | Path,
    modalities: Sequence[str] = MODALITIES,
    taxonomy: Taxonomy | None = None,
    skip_missing: bool = False,
) -> Dataset:
    """TaxaBench-8k. Raises RequestError for missing or malformed files; see `isoundnat` for the arguments."""
    folder = _folder(folder, "TaxaBench-8k")
    places = {
        "image": (["taxabench_images"], PICTURES),
        "satellite": (["sat_images/sentinel"], PICTURES),
        "audio": (["taxabench_sound"], SOUNDS),
    }
    return _observations("TaxaBench-8k", folder, "test_df.csv", places, modalities, taxonomy, skip_missing)


def isoundnat(
    folder: str | Path,
    split: str = "test",
    modalities: Sequence[str] = ("image", "location", "audio"),
    taxonomy: Taxonomy | None = None,
    skip_missing: bool = False,
) -> Dataset:
    """iSoundNat, one split.

    Parameters
    ----------
    folder : the dataset, laid out as published
    split : train, val or test
    modalities : those wanted; only their files need to exist
    taxonomy : completes names to seven ranks
    skip_missing : leave out observations whose files are missing, with an entry in `notes`, instead of raising

    Raises
    ------
    RequestError : naming the first missing files, or the line of a malformed row
    """
    folder = _folder(folder, "iSoundNat")
    places = {"image": (["images"], PICTURES), "audio": (["sounds", "sounds_mp3"], SOUNDS)}
    table = f"{_split(split, SPLITS)}_df.csv"
    return _observations("iSoundNat", folder, table, places, modalities, taxonomy, skip_missing)


def isatnat(
    folder: str | Path,
    split: str = "test",
    modalities: Sequence[str] = ("image", "satellite", "location"),
    skip_missing: bool = False,
) -> Dataset:
    """iSatNat, one split, with the photos of the iNaturalist 2021 challenge; arguments as for `isoundnat`."""
    folder = _folder(folder, "iSatNat")
    table = folder / f"{_split(split, ('train', 'test'))}_df.csv"
    ids, lonlat, keys = [], [], []
    for line, row in read_rows(table, ("lat", "lon", "key", "inat_id"), "iSatNat table"):
        where = f"{table.name}, line {line}"
        key = row["key"]
        match = _KEY.fullmatch(key)
        if not match or match[1] != row["inat_id"]:
            raise RequestError(f"{where}: key {quoted(key)} is not the observation's id, latitude and longitude.")
        ids.append(row["inat_id"])
        keys.append(key)
        lonlat.append((coordinate(row["lon"], 180, where), coordinate(row["lat"], 90, where)))
    _check_ids(ids, table.name)
    wanted = _wanted(modalities, ("image", "satellite", "location", "environment"), "iSatNat")
    photos = _challenge(folder, "train.json" if split == "train" else "val.json", ids)
    species = [_challenge_class(photos[i]) for i in ids]
    files: dict[str, list[Path | None]] = {}
    if "image" in wanted:
        files["image"] = [_existing(_inside(folder, photos[i])) for i in ids]
    if "satellite" in wanted:
        options = ("images/sentinel", "sat_images/sentinel", "sentinel", "satellite")
        by_stem = _by_stem(folder, options, PICTURES, lambda stem: stem)
        files["satellite"] = [by_stem.get(key) for key in keys]
    taxonomy = Taxonomy({name: name for name in set(species)})  # the class already has all ranks
    dataset = _assemble("iSatNat", folder, ids, lonlat, species, taxonomy, files, wanted)
    return _complete(dataset, files, skip_missing)


def _observations(
    name: str,
    folder: Path,
    table: str,
    places: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    modalities: Sequence[str],
    taxonomy: Taxonomy | None,
    skip_missing: bool,
) -> Dataset:
    """A dataset whose table is an export of iNaturalist and whose files are named by observation."""
    available = MODALITIES if "satellite" in places else ("image", "location", "environment", "audio")
    wanted = _wanted(modalities, available, name)
    ids: list[str] = []
    lonlat: list[tuple[float, float]] = []
    species: list[str] = []
    formats: dict[str, str] = {}
    columns = ("id", "latitude", "longitude", "scientific_name", "sound_format")
    for line, row in read_rows(folder / table, columns, f"{name} table"):
        where = f"{table}, line {line}"
        # The id becomes part of file names: digits only, so that it cannot lead out of the folder.
        if not _ID.fullmatch(row["id"]):
            raise RequestError(f"{where}: id {quoted(row['id'])} is not a whole number.")
        if not _FORMAT.fullmatch(row["sound_format"]):
            raise RequestError(f"{where}: sound_format {quoted(row['sound_format'])} is not an ending of a file.")
        if not row["scientific_name"].strip():
            raise RequestError(f"{where}: the scientific name is empty.")
        ids.append(row["id"])
        formats[row["id"]] = row["sound_format"]
        species.append(row["scientific_name"].strip())
        lonlat.append((coordinate(row["longitude"], 180, where), coordinate(row["latitude"], 90, where)))
    _check_ids(ids, table)
    files: dict[str, list[Path | None]] = {}
    for modality in wanted:
        if modality in places:
            by_id = _by_stem(folder, *places[modality], lambda stem: stem.split("_")[0])
            files[modality] = [by_id.get(i) for i in ids]
    if "audio" in files and not skip_missing:
        _check_decodable(files["audio"], ids, formats, folder, places["audio"][0])
    dataset = _assemble(name, folder, ids, lonlat, species, taxonomy or Taxonomy(), files, wanted)
    return _complete(dataset, files, skip_missing)


def _assemble(
    name: str,
    folder: Path,
    ids: list[str],
    lonlat: list[tuple[float, float]],
    species: list[str],
    taxonomy: Taxonomy,
    files: Mapping[str, list[Path | None]],
    wanted: Sequence[str],
) -> Dataset:
    names = sorted(set(species))
    row = {n: k for k, n in enumerate(names)}
    labels = np.array([row[s] for s in species], np.int64)
    classes = tuple(taxonomy.candidate(n) for n in names)
    environment = folder / ENVIRONMENT_FILE if "environment" in wanted else None
    if environment and not environment.is_file():
        raise RequestError(
            f"{name}: {ENVIRONMENT_FILE} is missing in {str(folder)!r}; it comes with TaxaBench-8k (373 MB). "
            "Put it there or leave out the environment."
        )
    incomplete = sum(not c.complete for c in classes)
    notes: tuple[str, ...] = ()
    if incomplete:
        notes = (
            f"{incomplete:,} of {len(classes):,} classes are given to the text encoder by their scientific name alone, "
            "since no taxonomy has their higher ranks.",
        )
    return Dataset(name, folder, tuple(ids), np.array(lonlat, np.float64), labels, classes, {}, environment, notes)


def _complete(dataset: Dataset, files: Mapping[str, list[Path | None]], skip_missing: bool) -> Dataset:
    """The dataset with its files; observations that lack one are left out, or raise RequestError."""
    keep = np.ones(len(dataset), bool)
    for modality, paths in files.items():
        missing = [i for i, path in zip(dataset.ids, paths, strict=True) if path is None]
        if missing and not skip_missing:
            raise RequestError(
                f"{dataset.name}: {len(missing):,} of {len(dataset):,} observations have no {modality} file in "
                f"{str(dataset.folder)!r}, the first {', '.join(missing[:3])}; complete the folder, or leave those out "
                "with --skip-missing."
            )
        keep &= np.array([path is not None for path in paths], bool)
    if not keep.any():
        raise RequestError(f"{dataset.name}: no observation has all of {', '.join(files)} in {str(dataset.folder)!r}.")
    kept = np.flatnonzero(keep)
    notes = dataset.notes
    if len(kept) < len(dataset):
        notes += (f"{len(dataset) - len(kept):,} of {len(dataset):,} observations were left out: files are missing.",)
    chosen = {m: tuple(p for k in kept if (p := paths[k]) is not None) for m, paths in files.items()}
    # All classes remain candidates: leaving out observations must not make the choice easier.
    return replace(
        dataset,
        ids=tuple(dataset.ids[k] for k in kept),
        lonlat=dataset.lonlat[kept],
        labels=dataset.labels[kept],
        files=chosen,
        notes=notes,
    )


def _folder(folder: str | Path, name: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise RequestError(f"{name}: {str(path)[:200]!r} is not a folder.")
    return path.resolve()


def _split(split: str, known: Sequence[str]) -> str:
    if split not in known:
        raise RequestError(f"split {split!r} is not known; choose one of {', '.join(known)}.")
    return split


def _wanted(modalities: Sequence[str], known: Sequence[str], name: str) -> list[str]:
    for modality in modalities:
        if modality not in known:
            raise RequestError(f"{name} has no modality {modality!r}; it has {', '.join(known)}.")
    if not modalities or len(set(modalities)) < len(modalities):
        raise RequestError(f"modalities {','.join(modalities)!r}: name at least one, each once.")
    return [m for m in MODALITIES if m in modalities]


def _check_ids(ids: Sequence[str], table: str) -> None:
    if not ids:
        raise RequestError(f"{table} lists no observation.")
    repeated = next((i for i, count in Counter(ids).items() if count > 1), None)
    if repeated:
        raise RequestError(f"{table} has the observation {repeated} twice.")


def _by_stem(
    folder: Path, places: Sequence[str], endings: Sequence[str], identity: Callable[[str], str]
) -> dict[str, Path]:
    """{identity of the stem: file} in the first of the places that exists; of several files, the best suffix.

    One listing instead of a look-up per observation and suffix: there are hundreds of thousands.
    """
    for place in places:
        root = folder / place
        if root.is_dir():
            break
    else:
        raise RequestError(f"folder {str(folder / places[0])!r} is missing.")
    best: dict[str, tuple[int, str]] = {}
    with os.scandir(root) as entries:
        for entry in entries:
            stem, _, ending = entry.name.rpartition(".")
            if ending.lower() not in endings or not entry.is_file():
                continue
            candidate = (endings.index(ending.lower()), entry.name)
            key = identity(stem)
            if key not in best or candidate < best[key]:
                best[key] = candidate
    return {key: root / name for key, (_, name) in best.items()}


def _check_decodable(
    paths: Sequence[Path | None], ids: Sequence[str], formats: Mapping[str, str], folder: Path, places: Sequence[str]
) -> None:
    """Raise RequestError, with advice, for recordings that exist only in formats that cannot be decoded."""
    root = next(folder / p for p in places if (folder / p).is_dir())
    undecodable = [
        i
        for i, path in zip(ids, paths, strict=True)
        if path is None and formats[i] not in SOUNDS and (root / f"{i}.{formats[i]}").is_file()
    ]
    if undecodable:
        first = f"{undecodable[0]}.{formats[undecodable[0]]}"
        raise RequestError(
            f"{len(undecodable):,} recordings in {str(root)!r} are in formats that cannot be decoded here, the first "
            f"{first}; put converted files beside them (ffmpeg -i {first} {undecodable[0]}.flac), or leave them out "
            "with --skip-missing."
        )


def _challenge(folder: Path, name: str, ids: Sequence[str]) -> dict[str, str]:
    """{id: file_name} of the iNaturalist 2021 challenge, for the given ids."""
    path = folder / name
    if not path.is_file():
        raise RequestError(f"iSatNat: {name} of the iNaturalist 2021 challenge is missing in {str(folder)!r}.")
    if path.stat().st_size > MAX_BYTES:
        raise TooLargeError(f"{name} is larger than {MAX_BYTES >> 30} GiB.")
    try:
        images = json.loads(path.read_bytes())["images"]
        known = {str(i["id"]): i["file_name"] for i in images}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError(f"{name} is not a table of the iNaturalist 2021 challenge: {error!r:.100}.") from error
    if unknown := next((i for i in ids if i not in known), None):
        raise RequestError(f"iSatNat: observation {unknown} is not in {name}; is it of the same split?")
    return {i: known[i] for i in ids}


def _challenge_class(file_name: str) -> str:
    """ "val/00000_Animalia_..._Lumbricus_terrestris/uuid.jpg" -> "Animalia ... Lumbricus terrestris"."""
    parts = file_name.split("/") if isinstance(file_name, str) else []
    ranks = parts[1].split("_")[1:] if len(parts) == 3 else []
    if len(ranks) < 7 or not all(r.isprintable() for r in ranks):
        raise RequestError(f"file name {quoted(file_name)} does not name a class by its seven ranks.")
    return " ".join(ranks)


def _inside(folder: Path, relative: str) -> Path:
    """A path from a table, refused unless it stays in the folder."""
    posix, windows = PurePosixPath(relative), PureWindowsPath(relative)
    plain = not posix.is_absolute() and not windows.drive and not windows.root and "\0" not in relative
    if not plain or "\\" in relative or ".." in posix.parts:
        raise RequestError(f"file name {quoted(relative)} leads out of the dataset's folder.")
    return folder / posix


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
