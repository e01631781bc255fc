"""Studies: train one run per combination of settings and seeds, measure all alike, and compare."""
