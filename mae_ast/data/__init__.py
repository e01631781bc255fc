"""fairseq data sets: clips of a manifest, for pretraining and for classification."""
