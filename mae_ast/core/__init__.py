"""Pure-PyTorch core: audio, spectrograms, patches, masks, models, losses, checkpoints.

No module below this folder imports fairseq, hydra, omegaconf or s3prl; a test and a lint rule
enforce it.

Letters in shapes: B batch (clips), L samples, T frames, F mel bins, N patches, V visible, M masked,
P patch_dim, D embed_dim, H heads.
"""
