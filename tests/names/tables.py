"""Small tables of names, and where the shipped ones are."""

from pathlib import Path

MODEL = Path(__file__).resolve().parents[2] / "models" / "mammals-trees"
HEADER = "species,kingdom,phylum,class,order,family,genus,common,synonyms,group,cells,marine\n"
BEAR = "Ursus arctos,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,brown bear,,mammal,10,0.50\n"


def write_folder(path: Path, taxa: bytes | str, **more: str) -> Path:
    path.joinpath("taxa.csv").write_bytes(taxa.encode() if isinstance(taxa, str) else taxa)
    for name, text in more.items():
        path.joinpath(f"{name}.csv").write_text(text, encoding="utf-8")
    return path
