"""Reconstruction: original, visible and predicted patches."""

from __future__ import annotations

import pytest
import torch

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.frontend.masking import random_mask
from mae_ast.core.inference.reconstruct import reconstruct
from mae_ast.core.models.mae_ast import MaeAst
from tests.sounds import pcm16, speech_like


@pytest.mark.parametrize("kernel", [(16, 16), (2, 128), (8, 32)], ids=str)
@pytest.mark.parametrize("as_fbank", [False, True])
def test_masked_patches_are_predicted_and_visible_ones_kept(small_config, kernel, as_fbank):
    config = small_config(kernel, input_stats="fixed", input_mean=-8.0, input_std=4.0)
    model = MaeAst(config).eval()
    source = torch.stack([pcm16(speech_like(12_345, seed)) for seed in range(2)])
    log_mel = fbank(source)
    shape = config.patch_shape
    mask = random_mask(2, shape.grid(log_mel.shape[1]), 0.75)
    result = reconstruct(model, log_mel if as_fbank else source, mask)

    frames = log_mel.shape[1] // kernel[0] * kernel[0]
    expected = model.batch_norm(log_mel)[:, :frames]
    assert frames < log_mel.shape[1]
    assert torch.equal(result.original, expected)

    prediction = model(source, None, mask).reconstruction.detach()
    rebuilt, visible = expected.clone(), expected.clone()
    for clip in range(2):
        for values, n in zip(prediction[clip], mask.masked_ids[clip].tolist(), strict=True):
            t, f = divmod(n, shape.per_column)
            time = slice(t * kernel[0], (t + 1) * kernel[0])
            mel = slice(f * kernel[1], (f + 1) * kernel[1])
            rebuilt[clip, time, mel] = values.view(kernel)
            visible[clip, time, mel] = torch.nan
    torch.testing.assert_close(result.rebuilt, rebuilt, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.visible, visible, rtol=0, atol=0, equal_nan=True)
    masked_ratio = result.visible.isnan().float().mean().item()
    num_patches = mask.visible_ids.shape[1] + mask.masked_ids.shape[1]
    assert masked_ratio == pytest.approx(mask.masked_ids.shape[1] / num_patches)


def test_result_is_float32_without_gradients(small_config):
    model = MaeAst(small_config(precision="bfloat16")).eval()
    source = pcm16(speech_like(8_000)).unsqueeze(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = reconstruct(model, source, random_mask(1, (3, 8), 0.5))
    for spectrogram in (result.original, result.visible, result.rebuilt):
        assert spectrogram.dtype == torch.float32
        assert not spectrogram.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
