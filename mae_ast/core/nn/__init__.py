"""Network layers: attention, transformer, position embeddings, dropout, precision."""
