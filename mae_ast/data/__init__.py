"""fairseq datasets."""
