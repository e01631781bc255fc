"""Windows cover a recording and do not exceed the model's maximum input."""

from __future__ import annotations

import pytest
import torch

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.inference.windows import Part, Window, states_of_parts, window_columns, windows
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AstConfig, VitConfig
from mae_ast.core.models.encoder import Encoder
from tests.core.vits import FRAME_TOKENS, SMALL, with_random_weights
from tests.sounds import pcm16, speech_like


@pytest.mark.parametrize("num_columns", [1, 9, 10, 11, 12, 17, 18, 19, 100, 1_003])
@pytest.mark.parametrize(("length", "overlap"), [(10, 2), (10, 0), (10, 9), (1, 0), (7, 3)])
def test_each_column_is_kept_once(num_columns, length, overlap):
    cover = windows(num_columns, length, overlap)
    kept = [n for w in cover for n in range(w.keep_from, w.keep_to)]
    assert kept == list(range(num_columns))
    for w in cover:
        assert 0 <= w.start <= w.keep_from < w.keep_to <= w.end <= num_columns
        assert w.end - w.start == min(length, num_columns)
        # The kept part lies inside the window, except at the ends of the recording.
        margin = overlap // 2
        assert w.keep_from - w.start >= margin or w.start == 0
        assert w.end - w.keep_to >= margin or w.end == num_columns


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (99, 20)),  # 998 frames: (998 - 16) // 10 + 1
        ({"input_frames": 1024}, (99, 20)),
        ({"input_frames": 128}, (12, 2)),  # the overlap is still a fifth
        ({"input_frames": 20}, (1, 0)),
        ({**FRAME_TOKENS, "input_frames": 1024}, (499, 100)),
        ({**FRAME_TOKENS, "ast_kernel_stride_time": 1}, (997, 200)),
        ({**FRAME_TOKENS, "ast_kernel_stride_time": 1, "input_frames": 128}, (127, 25)),
    ],
)
def test_length_and_overlap_of_ten_second_windows(fields, expected):
    model = Ast(AstConfig(**SMALL | fields))
    assert window_columns(model, 10.0, 2.0) == expected


@pytest.mark.parametrize("input_frames", [None, 60, 200])
def test_parts_in_a_batch_equal_single_parts(input_frames):
    model = with_random_weights(
        Encoder(VitConfig(**SMALL, ast_kernel_stride_time=10, input_frames=input_frames))
    ).eval()
    clips = [speech_like(16_000), pcm16(speech_like(9_000, 1))]
    (first, _), (second, _) = (model.patch_shape.grid(num_frames(len(clip))) for clip in clips)
    parts = [
        Part(0, Window(3, 7, 3, 7)),
        Part(0, Window(first - 2, first, first - 2, first)),
        Part(1, Window(0, second, 0, second)),
    ]
    together = states_of_parts(model, clips, parts)
    assert together[0].requires_grad
    # From frame 30, with the frames before the eighth patch would be complete.
    waves = [clips[0][30 * 160 : (30 + 16 + 40 - 1) * 160 + 399], clips[0][(first - 2) * 1_600 :]]
    for row, wave in enumerate([*waves, clips[1]]):
        own = model.patch_shape.grid(num_frames(len(wave)))[0] * 8
        expected = model.hidden_states(wave.unsqueeze(0))
        for ours, theirs in zip(together, expected, strict=True):
            size = min(own, theirs.shape[1])
            torch.testing.assert_close(ours[row, :size], theirs[0, :size], rtol=0, atol=1e-4)


def test_padding_begins_at_the_end_of_each_clip():
    """Clips of different lengths may have the same number of columns."""
    model = with_random_weights(Ast(AstConfig(**SMALL, input_frames=200))).eval()
    clips = [speech_like(9_000), speech_like(7_700, 1)]
    together = states_of_parts(model, clips, [Part(n, Window(0, 4, 0, 4)) for n in range(2)])
    for row, clip in enumerate(clips):
        expected = model.hidden_states(clip.unsqueeze(0))[-1][0]
        torch.testing.assert_close(together[-1][row], expected, rtol=0, atol=1e-4)
