"""What a shared embedding space is worth: zero-shot classification, retrieval, the published datasets.

Everything here works on unit embeddings, whichever model made them; `encode` makes them from photos,
sounds, texts and places in batches.
"""
