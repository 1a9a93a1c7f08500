"""Species fitted to the encoders of another model, which stay as they are.

`world` makes the places, `fit` the vectors, `held_out` measures them, `areas` makes labels of lists of areas,
`ranges` the table of known ranges, `run` does it all and writes the model folder.
"""
