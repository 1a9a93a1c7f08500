"""Species-distribution maps from TaxaBind-style embeddings."""

__version__ = "0.1.0"
