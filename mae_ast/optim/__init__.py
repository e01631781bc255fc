"""fairseq optimizers in a few kernels per update: Adam and AdamW."""
