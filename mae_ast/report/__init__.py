"""Report on runs as one HTML page: curves, reconstructions with sound, embeddings, tables."""
