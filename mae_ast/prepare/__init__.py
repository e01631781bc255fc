"""Convert data sets in their published layouts to manifests with labels, and pack them to shards.

There is one module per data set.
"""
