"""The s3prl upstream: equality with others, training mode, short clips, layouts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.models.config import AudioMaeConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.hub.load import hub_class
from mae_ast.superb.expert import LAYOUTS, UpstreamExpert
from tests.core.models.test_s3prl_parity import expert_of, model_with_random_weights
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import speech_like
from tests.superb.conftest import write_checkpoint

PATCHES, FRAMES = (16, 16), (2, 128)  # frames, mel bins
MIN_SAMPLES = {PATCHES: 2_800, FRAMES: 560}  # samples
RATE = {PATCHES: 2_560, FRAMES: 320}
DECODER = {"decoder_layers": 1, "decoder_embed_dim": 32, "decoder_attention": "global"}
both = pytest.mark.parametrize("kernel", [PATCHES, FRAMES], ids=["patches", "frames"])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@both
def test_vectors_equal_those_of_the_upstream_of_s3prl(tmp_path, small_config, kernel):
    config = small_config(kernel, encoder_layers=3)
    model = model_with_random_weights(config)
    path = tmp_path / "ours.pt"
    torch.save(torch.load(write_checkpoint(path, config)) | {"model": model.state_dict()}, path)
    ours, theirs = UpstreamExpert(path).eval(), expert_of(model, config, tmp_path)
    waves = [speech_like(n, n) for n in (8_000, 20_000)]
    with torch.no_grad():
        for wave in waves:
            got, expected = ours([wave]), theirs([wave])["hidden_states"]
            assert len(got["hidden_states"]) == len(expected) == 3
            for mine, reference in zip(got["hidden_states"], expected, strict=True):
                assert 0 <= mine.shape[1] - reference.shape[1] <= 2
                assert_close(mine[:, : reference.shape[1]], reference, rtol=0, atol=1e-4)
            assert torch.equal(got["last_hidden_state"], got["hidden_states"][-1])
    assert ours.get_downsample_rates("") == theirs.get_downsample_rates("")


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_all_parameters_have_a_gradient(checkpoint, norm_first):
    path = checkpoint(layer_norm_first=norm_first, encoder_layerdrop=0.9, dropout=0.1)
    expert = UpstreamExpert(path).train()
    features = expert([speech_like(8_000), speech_like(12_000)])
    features["last_hidden_state"].square().sum().backward()
    named = dict(expert.named_parameters())
    assert all(value.grad is not None and value.grad.any() for value in named.values()), [
        name for name, value in named.items() if value.grad is None
    ]
    assert not [name for name in named if "decoder" in name or "final_proj" in name]
    assert len(named) == 2 * 16 + 4  # of a layer, projection and norm


def test_train_mode_neither_updates_nor_uses_batch_statistics(checkpoint):
    path = checkpoint()
    expert = UpstreamExpert(path).train()
    norm = expert.model.batch_norm
    before = {name: value.clone() for name, value in norm.named_buffers()}
    wave = speech_like(8_000)
    alone = expert([wave])["last_hidden_state"]
    beside_noise = expert([wave, torch.randn(8_000)])["last_hidden_state"]
    assert_close(alone[0], beside_noise[0], rtol=0, atol=2e-5)
    for name, value in norm.named_buffers():
        assert torch.equal(value, before[name])
    assert_close(expert.eval()([wave])["last_hidden_state"], alone)


def test_input_dropout_is_off(checkpoint):
    expert = UpstreamExpert(checkpoint(dropout_input=0.5)).train()
    one, other = (expert([speech_like(8_000)])["last_hidden_state"] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(one, expert.eval()([speech_like(8_000)])["last_hidden_state"])


def test_layerdrop_is_off_and_features_are_float32(checkpoint):
    expert = UpstreamExpert(checkpoint(encoder_layerdrop=0.9, precision="bfloat16")).train()
    features = expert([speech_like(8_000)])
    first, second = features["hidden_states"]
    assert not torch.equal(first, second)
    assert first.dtype == torch.float32
    again = expert([speech_like(8_000)])["hidden_states"]
    assert torch.equal(first, again[0])


def test_last_hidden_state_of_pre_norm_models_is_normalised(checkpoint):
    expert = UpstreamExpert(checkpoint(layer_norm_first=True)).eval()
    features = expert([speech_like(8_000)])
    per_patch = features["last_hidden_state"].unflatten(2, (8, 32))
    assert_close(per_patch.mean(3), torch.zeros(per_patch.shape[:3]), rtol=0, atol=1e-5)
    assert not torch.equal(features["last_hidden_state"], features["hidden_states"][-1])


@both
def test_a_clip_below_one_patch_is_zero_padded(checkpoint, kernel, caplog):
    expert, min_samples = UpstreamExpert(checkpoint(kernel)).eval(), MIN_SAMPLES[kernel]
    short, usual = speech_like(min_samples - 1, 1), speech_like(8_000)
    expected = expert([F.pad(short, (0, 1)), usual])["hidden_states"]
    assert not caplog.records
    found = expert([short, usual])
    for ours, padded in zip(found["hidden_states"], expected, strict=True):
        assert torch.equal(ours, padded)
    for wave in (short, short[:5]):
        state = expert([wave])["last_hidden_state"]
        assert state.shape[1] == len(range(0, len(wave), RATE[kernel]))
    (message,) = (record.getMessage() for record in caplog.records)  # once
    assert f"clip 0 of a batch has {min_samples - 1} samples" in message
    assert f"below one patch ({min_samples} samples" in message


def test_rejects_invalid_clips(checkpoint):
    expert = UpstreamExpert(checkpoint())
    for wave in (torch.zeros(1, 8_000), torch.zeros(0), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"clip 1 has shape .*\(samples,\)"):
            expert([torch.zeros(8_000), wave])


# --- one vector per token -------------------------------------------------------------------------


def test_tokens_equal_those_of_the_authors_upstream(tmp_path, small_config):
    """The authors' upstream returned the tokens of the encoder, one every 320 samples."""
    config = small_config(PATCHES, encoder_layers=3)
    model = model_with_random_weights(config)
    path = tmp_path / "ours.pt"
    torch.save(torch.load(write_checkpoint(path, config)) | {"model": model.state_dict()}, path)
    expert, theirs = (
        UpstreamExpert(path, layout="tokens").eval(),
        expert_of(model, config, tmp_path),
    )
    assert expert.get_downsample_rates("hidden_states") == 320
    wave = speech_like(20_000)
    log_mel = theirs.wav_to_spectrogram(wave.unsqueeze(0)).unsqueeze(0)
    padding_mask = torch.zeros(log_mel.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        expected = theirs.model(log_mel, padding_mask=padding_mask, mask=False, features_only=True)
        found = expert([wave])
    assert expected["x"].shape == (1, 7 * 8, 32)
    for ours, reference in zip(found["hidden_states"], expected["hidden_states"], strict=True):
        assert ours.shape == (1, len(range(0, 20_000, 320)), 32)
        assert_close(ours[:, : 7 * 8], reference, rtol=0, atol=1e-4)
        assert torch.equal(ours[:, 7 * 8 :], ours[:, 7 * 8 - 1 : 7 * 8].expand(-1, 7, -1))
    assert_close(found["last_hidden_state"][:, : 7 * 8], expected["x"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["mae_ast", "fixed audio_mae"])
def test_both_layouts_hold_the_same_values(checkpoint, tmp_path, kind):
    if kind == "mae_ast":
        path = checkpoint(PATCHES)
    else:
        fields = {name: value for name, value in SMALL.items() if name != "position_frames"}
        fields |= {"encoder_embed_dim": 48, "input_frames": 128}
        config = AudioMaeConfig(**fields, **DECODER)
        with_random_weights(hub_class("audio_mae")(config)).save_pretrained(path := tmp_path / "a")
    steps, tokens = (UpstreamExpert(path, layout=layout).eval() for layout in LAYOUTS)
    waves = [speech_like(n, n) for n in (3_000, 80_000, 20_500)]
    with torch.no_grad():
        found = zip(steps(waves)["hidden_states"], tokens(waves)["hidden_states"], strict=True)
    for by_step, by_token in found:
        width = by_token.shape[2]
        assert by_step.shape[2] == 8 * width
        for row, wave in enumerate(waves):
            own = 8 * steps.patch_shape.grid(num_frames(len(wave)))[0]
            flat = by_step[row].reshape(-1, width)
            assert torch.equal(by_token[row, :own], flat[:own])
            assert torch.equal(
                by_token[row, own:], flat[own - 1].expand(len(by_token[row]) - own, -1)
            )


def test_both_layouts_are_equal_for_frames(checkpoint):
    path = checkpoint(FRAMES)
    steps, tokens = (UpstreamExpert(path, layout=layout).eval() for layout in LAYOUTS)
    assert steps.get_downsample_rates() == tokens.get_downsample_rates() == 320
    wave = [speech_like(9_000)]
    assert torch.equal(steps(wave)["last_hidden_state"], tokens(wave)["last_hidden_state"])


def test_unknown_layout_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"layout 'columns': .*time_steps, tokens"):
        UpstreamExpert(checkpoint(), layout="columns")


def test_state_dict_round_trip(checkpoint):
    path = checkpoint()
    expert, other = UpstreamExpert(path), UpstreamExpert(path)
    with torch.no_grad():
        for value in expert.parameters():
            value.add_(0.1)
    other.load_state_dict(expert.state_dict())
    wave = [speech_like(8_000)]
    assert torch.equal(
        expert.eval()(wave)["last_hidden_state"], other.eval()(wave)["last_hidden_state"]
    )
    assert type(expert.model) is Encoder
