"""Patches of fairseq 0.12.3; each says why it is needed and when it can be removed."""
