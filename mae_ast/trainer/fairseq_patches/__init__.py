"""Patches of fairseq 0.12.3; comments say why each is needed and when it can be removed."""
