"""Data sets in their own layouts to manifests with labels: a file for each data set."""
