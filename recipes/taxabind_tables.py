"""Print the tables of the TaxaBind paper from a dataset's folder and a model.

    python recipes/taxabind_tables.py --dataset taxabench --folder TaxaBench-8k --model taxabind --out runs/taxabench
    python recipes/taxabind_tables.py --dataset isatnat --folder iSatNat --model taxabind --table zero-shot

Zero-shot classification: top-1, top-5 and mean class accuracy of every sum of modalities, the published
top-1 beside. Retrieval: recall@1, 5, 10 and median rank of every sum against every other modality. Folders
are laid out as published: see `sdm/evaluation/datasets.py`. `--out` receives CSV, Markdown and, in
`embeddings/`, the embeddings, so that a second run encodes nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sdm.errors import SdmError
from sdm.evaluation import datasets, paper_tables
from sdm.evaluation.species import Taxonomy
from sdm.models.registry import list_models, open_model

DEFAULTS = {
    "taxabench": datasets.MODALITIES,
    "isatnat": ("image", "satellite", "location"),
    "isoundnat": ("image", "location", "audio"),
}


def load(args: argparse.Namespace) -> datasets.Dataset:
    """The dataset that was asked for."""
    modalities = tuple(args.modalities.split(",")) if args.modalities else DEFAULTS[args.dataset]
    if args.dataset == "isatnat":
        return datasets.isatnat(args.folder, args.split, modalities, args.skip_missing)
    known = [model.taxa for model in list_models()]
    taxonomy = Taxonomy.read(args.taxonomy, known) if args.taxonomy else Taxonomy(tables=known)
    if args.dataset == "taxabench":
        return datasets.taxabench(args.folder, modalities, taxonomy, args.skip_missing)
    return datasets.isoundnat(args.folder, args.split, modalities, taxonomy, args.skip_missing)


def main(arguments: list[str] | None = None) -> None:
    """Load, encode, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=list(DEFAULTS), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the dataset, laid out as published")
    parser.add_argument("--model", default="taxabind")
    parser.add_argument("--table", choices=("zero-shot", "retrieval", "both"), default="both")
    parser.add_argument("--modalities", help="comma separated; by default all that the dataset is made of")
    parser.add_argument("--split", default="test", help="of iSatNat and iSoundNat")
    parser.add_argument("--taxonomy", type=Path, help="CSV with kingdom, ..., species: completes scientific names")
    parser.add_argument("--skip-missing", action="store_true", help="leave out observations whose files are missing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder for CSV, Markdown and embeddings")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(arguments)

    dataset = load(args)
    model = open_model(args.model)

    def tell(stage: str, done: int, total: int) -> None:
        print(f"\r{stage}: {done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    cache = args.out / "embeddings" if args.out else None
    encoded = paper_tables.encode_dataset(dataset, model, model.load(args.device), args.batch, cache, tell)
    made = []
    if args.table != "retrieval":
        made.append(paper_tables.zero_shot_table(encoded, device=args.device))
    if args.table != "zero-shot":
        made.append(paper_tables.retrieval_table(encoded, device=args.device))
    for table in made:
        print(table.to_markdown())
    if args.out:
        split = "" if args.dataset == "taxabench" else f", split {args.split}"
        heading = f"# {dataset.name}{split}\n\nModel {model.name}, hash {model.digest}."
        paper_tables.write_tables(args.out, made, heading, args.overwrite)


if __name__ == "__main__":
    try:
        main()
    except SdmError as error:
        sys.exit(f"error: {error}")
