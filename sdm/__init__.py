"""Species-distribution maps from TaxaBind-style embeddings."""
