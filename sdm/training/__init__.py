"""Training: from range data, records and layers to a model folder, by a recipe.

The parts, each of which imports only those before it: `distributed` (processes that share a batch), `recipe` (the
TOML file, checked), `data` (places, labels, pairs, splits), `spaces` (encoders to train), `objectives` (losses),
`loop` (the trainer), `measures` (scores), `checkpoint_patching` (weights between two checkpoints), `runs` (a recipe
from start to finish).
"""
