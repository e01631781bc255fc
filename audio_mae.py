"""``from audio_mae import AudioMaskedAutoencoderViT``: :mod:`mae_ast.core.audio_mae_vit`."""

from mae_ast.core.audio_mae_vit import AudioMaskedAutoencoderViT

__all__ = ["AudioMaskedAutoencoderViT"]
