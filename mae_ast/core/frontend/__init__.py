"""From waveforms to masked patches: filterbank, normalisation, patchify, masking, collation."""
