"""Shards on a server: addresses, transfers, checksums, a local cache, and fetching ahead."""
