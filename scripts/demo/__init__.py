"""Demo: pretrain on synthesised words within minutes, on a machine without a GPU."""
