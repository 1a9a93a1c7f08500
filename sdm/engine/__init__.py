"""From places to numbers: layers are read, encoders run, embeddings summed and compared, tile by tile."""
