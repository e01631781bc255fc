"""Patches: order, values, inverse, overlap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.patches import PatchShape, patchify, unpatchify

SHAPES = [PatchShape(16, 16), PatchShape(2, 128), PatchShape(8, 32), PatchShape(4, 64)]
SHAPES += [PatchShape(64, 4), PatchShape(1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("frames", [64, 127, 200])
def test_equals_unfold(shape, frames):
    spectrogram = torch.randn(3, frames, 128)
    unfold = torch.nn.Unfold((shape.time, shape.mel), stride=(shape.time, shape.mel))
    expected = unfold(spectrogram.unsqueeze(1)).transpose(1, 2)
    assert torch.equal(patchify(spectrogram, shape), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_are_ordered_time_step_by_time_step(shape):
    spectrogram = torch.randn(2, 130, 128)
    patches = patchify(spectrogram, shape)
    per_column = 128 // shape.mel
    assert patches.shape == (2, 130 // shape.time * per_column, shape.time * shape.mel)
    for t, f in [(0, 0), (1, 0), (0, per_column - 1), (130 // shape.time - 1, per_column // 2)]:
        block = spectrogram[
            :, t * shape.time : (t + 1) * shape.time, f * shape.mel : (f + 1) * shape.mel
        ]
        assert torch.equal(patches[:, t * per_column + f], block.flatten(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpatchify_inverts_and_drops_trailing_frames(shape):
    spectrogram = torch.randn(2, 200, 128)
    kept = 200 // shape.time * shape.time
    back = unpatchify(patchify(spectrogram, shape), shape)
    assert torch.equal(back, spectrogram[:, :kept])


@pytest.mark.parametrize("mel", [0, -16, 3, 48, 256])
def test_mel_size_that_does_not_divide_128_is_refused(mel):
    with pytest.raises(ValueError, match=rf"a patch of {mel} mel bins does not divide the 128"):
        PatchShape(16, mel)


def test_a_patch_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least 1 frame, not 0"):
        PatchShape(0, 16)


def test_patch_counts_of_ten_seconds():
    frames = num_frames(160_000)
    assert PatchShape(16, 16).grid(frames) == (62, 8)
    assert patchify(torch.zeros(1, frames, 128), PatchShape(16, 16)).shape == (1, 496, 256)
    assert PatchShape(2, 128).grid(frames) == (499, 1)
    assert patchify(torch.zeros(1, frames, 128), PatchShape(2, 128)).shape == (1, 499, 256)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_min_samples_gives_one_time_step(shape):
    assert shape.grid(num_frames(shape.min_samples)) == (1, shape.per_column)
    assert shape.grid(num_frames(shape.min_samples - 1))[0] == 0


OVERLAPPING = [(16, 16, 10, 10), (2, 128, 1, 128), (16, 16, 16, 10), (8, 32, 3, 32)]


@pytest.mark.parametrize("sizes", OVERLAPPING, ids=str)
@pytest.mark.parametrize("frames", [16, 100, 127])
def test_overlapping_patches_equal_unfold(sizes, frames):
    shape = PatchShape(*sizes)
    spectrogram = torch.randn(3, frames, 128)
    unfold = nn.Unfold((shape.time, shape.mel), stride=(shape.time_stride, shape.mel_stride))
    expected = unfold(spectrogram.unsqueeze(1)).transpose(1, 2)
    patches = patchify(spectrogram, shape)
    assert torch.equal(patches, expected)
    along_time, along_mel = shape.grid(frames)
    assert along_time * along_mel == patches.shape[1]
    assert along_mel == shape.per_column
    assert shape.grid(shape.num_frames_of(along_time))[0] == along_time
    assert shape.grid(shape.num_frames_of(along_time) - 1)[0] == along_time - 1
    assert shape.grid(torch.tensor([frames, 0, 1]))[0].tolist() == [along_time, 0, 0]
    assert patchify(spectrogram[:, : shape.time - 1], shape).shape == (3, 0, shape.dim)


def test_stride_equal_to_the_patch_is_no_overlap():
    assert PatchShape(16, 16, 16, 16) == PatchShape(16, 16)
    assert not PatchShape(16, 16).overlaps
    assert PatchShape(16, 16, 10).overlaps


@pytest.mark.parametrize("sizes", OVERLAPPING, ids=str)
def test_unpatchify_refuses_overlapping_patches(sizes):
    shape = PatchShape(*sizes)
    with pytest.raises(ValueError, match=f"{sizes[0]} x {sizes[1]} with strides .* overlap"):
        unpatchify(torch.zeros(1, shape.per_column, shape.dim), shape)


@pytest.mark.parametrize("strides", [(17, 16), (16, 20), (-1, 16)], ids=str)
def test_gaps_between_patches_are_refused(strides):
    with pytest.raises(ValueError, match=r"must be 1 to 16, the size of a patch"):
        PatchShape(16, 16, *strides)
