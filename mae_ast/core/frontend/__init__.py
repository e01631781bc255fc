"""Turn samples into masked patches: filterbank, normalisation, patches, masks, batches."""
