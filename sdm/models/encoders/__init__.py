"""Encoders: small torch modules that turn a place or a name into a vector of the shared space.

Nothing here reads files or knows of grids. All take batches on their first axis and return
`(batch, dim)` vectors that the caller normalises (see `sdm.models.score`).
"""
