"""Zero-shot evaluation of a shared embedding space: classification, retrieval, the published datasets.

Everything here works on unit embeddings, whichever model made them; `encode` makes them from photos,
sounds, texts and places in batches. `paper_tables` makes the tables of the TaxaBind paper.
"""
