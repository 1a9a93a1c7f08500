"""Training: from range data and layers to a model folder, by a recipe."""
