"""fairseq datasets that read the clips of a manifest, for pretraining and classification."""
