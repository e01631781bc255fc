"""The demo: pretrain on spoken words in minutes, on a machine without a GPU."""
