"""The pure-PyTorch core: audio in, spectrograms, tokens, masks, models, losses.

Nothing below this folder imports fairseq, hydra, omegaconf or s3prl; a test and a lint rule
hold that.

Letters in shapes: B clips, L samples, T frames, F mel bins, N patches, V visible, M masked,
P patch_dim, D embed_dim, H heads.
"""
