"""The systems MAE-AST, SSAST, AST and Audio-MAE: configuration, network, losses."""
