"""Alias that makes ``from audio_mae import AudioMaskedAutoencoderViT`` work."""

from mae_ast.core.models.audio_mae_vit import AudioMaskedAutoencoderViT

__all__ = ["AudioMaskedAutoencoderViT"]
