"""``from audio_mae import AudioMaskedAutoencoderViT``: :mod:`mae_ast.core.models.audio_mae_vit`."""

from mae_ast.core.models.audio_mae_vit import AudioMaskedAutoencoderViT

__all__ = ["AudioMaskedAutoencoderViT"]
