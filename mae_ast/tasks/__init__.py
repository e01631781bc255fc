"""fairseq tasks; fairseq imports each file of this folder."""
