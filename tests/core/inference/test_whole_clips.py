"""Logits of clips longer than the encoder's maximum input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mae_ast.core.inference import whole_clips
from mae_ast.core.inference.whole_clips import LONGEST_S, clip_logits, clip_windows, mean_logits
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig
from mae_ast.core.models.encoder import encoder_only
from mae_ast.core.models.mae_ast import MaeAst
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import pcm16, speech_like

FRAMES = 126  # (126 - 16) // 10 + 1 = 12 columns of 1,600 samples
WINDOW = 12 * 1_600
both = pytest.mark.parametrize("independent", [False, True], ids=["softmax", "sigmoid"])


@pytest.fixture
def model() -> Classifier:
    """Build a classifier that cuts or pads clips to 1.28 s, with overlapping patches."""
    encoder = with_random_weights(Ast(AstConfig(**SMALL, input_frames=FRAMES, input_mean=-6.0)))
    return with_random_weights(Classifier(encoder_only(encoder), HeadConfig(5))).eval()


def probabilities(logits: Tensor, independent: bool) -> Tensor:
    return logits.sigmoid() if independent else logits.softmax(1)


@both
def test_probabilities_are_averaged_over_windows(model: Classifier, independent: bool) -> None:
    """Compare with two full windows and one that ends with the clip, each scored alone."""
    wave = speech_like(2 * WINDOW + 9_000)
    columns = ((len(wave) - 400) // 160 + 1 - 16) // 10 + 1
    starts = [0, WINDOW, (columns - 12) * 1_600]
    assert starts[2] + 126 * 160 + 240 <= len(wave) < starts[2] + 126 * 160 + 240 + 1_600
    alone = torch.cat([model(wave[None, start : start + 126 * 160 + 240]) for start in starts])
    expected = probabilities(alone, independent).mean(0, keepdim=True)
    found = probabilities(clip_logits(model, wave[None], None, independent), independent)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - probabilities(model(wave[None]), independent)).abs().max() > 1e-3


@pytest.mark.parametrize("second", [1, 2, 5, 7])
def test_sound_at_any_second_changes_the_scores(model: Classifier, second: int) -> None:
    quiet = 1e-3 * torch.randn(1, 8 * 16_000)
    loud = quiet.clone()
    loud[:, second * 16_000 : (second + 1) * 16_000] += speech_like(16_000)
    one, other = clip_logits(model, quiet), clip_logits(model, loud)
    assert (one.softmax(1) - other.softmax(1)).abs().max() > 1e-3


@both
def test_batch_equals_single_clips(
    model: Classifier, independent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_clips, "BATCH_SAMPLES", 2 * WINDOW)  # 5 windows per forward pass
    waves = [pcm16(speech_like(n, n)) for n in (3_000, 90_000, WINDOW + 1_400, WINDOW + 3_000, 700)]
    lengths = torch.tensor([len(wave) for wave in waves])
    together = clip_logits(
        model, torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, independent
    )
    assert together.shape == (5, 5)
    together = probabilities(together, independent)
    for row, wave in enumerate(waves):
        alone = clip_logits(model, wave[None], None, independent)
        expected = probabilities(alone, independent)[0]
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-5)


def test_logits_of_short_clips_are_the_model_s(model: Classifier) -> None:
    source = torch.stack([speech_like(WINDOW + 1_400), speech_like(WINDOW + 1_400, 1)])
    lengths = torch.tensor([WINDOW + 1_400, 9_000])
    assert torch.equal(clip_logits(model, source, lengths), model(source, lengths))


def test_windows_of_an_encoder_without_maximum_input(small_config) -> None:
    encoder = MaeAst(small_config())
    second = 16_000

    def sizes(seconds: float, trained_samples: int = 0) -> list[int]:
        parts = clip_windows(encoder, [round(seconds * second)], trained_samples)
        return [part.window.end - part.window.start for part in parts]

    columns = round(LONGEST_S * 100 - 2) // 16
    assert sizes(30.0) == [columns]
    assert sizes(70.0) == [columns] * 3
    assert sizes(70.0, 80 * second) == [(7_000 - 2) // 16]
    parts = clip_windows(encoder, [second, 70 * second])
    assert [part.clip for part in parts] == [0, 1, 1, 1]
    assert parts[-1].window.end == (7_000 - 2) // 16


@both
def test_logits_of_mean_probabilities(independent: bool) -> None:
    """Probabilities may be too small for float32."""
    logits = torch.tensor([[300.0, -300.0, 0.0], [280.0, -320.0, 2.0], [5.0, 1.0, -1.0]])
    found = mean_logits(logits, torch.tensor([0, 0, 1]), 2, independent)
    exact = logits.double()
    if independent:
        p = torch.stack([exact[:2].sigmoid().mean(0), exact[2].sigmoid()])
        q = torch.stack([(-exact[:2]).sigmoid().mean(0), (-exact[2]).sigmoid()])
        expected = p.log() - q.log()
    else:
        expected = torch.stack([exact[:2].softmax(1).mean(0), exact[2].softmax(0)]).log()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert bool(
        mean_logits(logits * torch.nan, torch.tensor([0, 0, 1]), 2, independent).isnan().all()
    )
