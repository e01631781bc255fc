"""fairseq optimizers: AdamW with decoupled groups of decay and learning rate."""
