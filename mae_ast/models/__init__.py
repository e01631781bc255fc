"""fairseq models; fairseq imports each file of this folder."""
