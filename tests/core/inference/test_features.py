"""Features of recordings of any length equal those of their windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from mae_ast.core.inference import features
from mae_ast.core.inference.features import extract_features
from mae_ast.core.inference.windows import windows
from mae_ast.core.io.audio import AudioError, read_audio, to_pcm16
from mae_ast.core.io.decoding import audio_file
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.registry import build_encoder
from mae_ast.core.nn import precision
from mae_ast.finetune.initialize import finetuning_config
from tests.core.vits import with_random_weights
from tests.sounds import speech_like
from tests.systems.cases import CASES, FIRST

ATOL = 2e-5
SHAPE = {"encoder_embed_dim": 32, "encoder_attention_heads": 4}
MODELS = {
    **{name: (case, False) for name, case in FIRST.items()},
    "frames": (CASES["mae_ast: frames"], False),
    "fine-tuned": (CASES["ssast: patches"], True),
    "fine-tuned frames": (CASES["ssast: frames"], True),
}


@pytest.fixture(params=MODELS)
def model(request) -> Encoder:
    """Build a model of each system; fine-tuned ones overlap, and cut or pad clips to 3 s."""
    case, is_finetuned = MODELS[request.param]
    config = case.config(**SHAPE)
    if is_finetuned:
        return with_random_weights(build_encoder(finetuning_config(config, True, 300))).eval()
    return with_random_weights(case.system.network(config)).eval()


def test_features_of_one_waveform_are_the_hidden_states(model):
    wave = speech_like(40_000)
    found = model_features(model, wave)
    expected = model.hidden_states(wave.unsqueeze(0))
    (steps,) = found.lengths.tolist()
    shape = model.patch_shape
    assert shape.num_frames_of(steps) <= 248 < shape.num_frames_of(steps + 1)
    assert found.layers == (1, 2)
    own = steps * shape.per_column
    assert (own < expected[0].shape[1]) == (model.config.input_frames is not None)
    for ours, theirs in zip(found.hidden_states, expected, strict=True):
        assert_close(ours, theirs[:, :own], rtol=0, atol=1e-6)
    assert_close(found.pooled[0, 1], found.time_steps[1][0].mean(0), rtol=0, atol=1e-5)


def model_features(model, waveforms, *args, **options):
    return extract_features(model, waveforms, *args, **options)


def test_time_steps_concatenate_the_tokens_of_a_column(model):
    found = model_features(model, speech_like(30_000))
    tokens, steps = found.hidden_states[-1], found.time_steps[-1]
    column = model.patch_shape.per_column
    assert tokens.shape == (1, found.lengths[0] * column, 32)
    assert steps.shape == (1, found.lengths[0], column * 32)
    assert torch.equal(steps[0, 3, -32:], tokens[0, 3 * column + column - 1])


def test_batch_of_different_lengths_equals_single_recordings(model):
    waves = [speech_like(n, seed) for seed, n in enumerate((3_000, 40_000, 16_000, 250_000))]
    together = model_features(model, waves, batch_s=12.0)
    alone = [model_features(model, wave) for wave in waves]
    assert together.lengths.tolist() == [int(one.lengths) for one in alone]
    for n, one in enumerate(alone):
        size = one.hidden_states[0].shape[1]
        for ours, theirs in zip(together.hidden_states, one.hidden_states, strict=True):
            assert_close(ours[n, :size], theirs[0], rtol=0, atol=ATOL)
            assert bool((ours[n, size:] == 0).all())
        assert_close(together.pooled[n], one.pooled[0], rtol=0, atol=ATOL)


def test_features_equal_those_of_each_window_alone(model):
    wave = speech_like(33 * 16_000)
    found = model_features(model, wave, window_s=4.0, overlap_s=1.0)
    shape = model.patch_shape
    columns, step = int(found.lengths), 160 * shape.time_stride
    length, overlap = shape.grid(398)[0], round(16_000 / step)
    if model.config.input_frames is not None:  # 3 s
        at_most = shape.grid(300)[0]
        assert at_most < length
        length, overlap = at_most, overlap * at_most // length
    cover = windows(columns, length, overlap)
    assert len(cover) > 5
    seen = 0
    for w in cover:
        frames = shape.num_frames_of(w.end - w.start)
        part = wave[w.start * step : w.start * step + (frames - 1) * 160 + 400]
        alone = model.hidden_states(part.unsqueeze(0))[-1]
        inside = slice((w.keep_from - w.start) * shape.per_column, None)
        kept = alone[0, inside][: (w.keep_to - w.keep_from) * shape.per_column]
        ours = found.hidden_states[-1][0, w.keep_from * shape.per_column :][: len(kept)]
        assert_close(ours, kept, rtol=0, atol=1e-4)
        seen += w.keep_to - w.keep_from
    assert seen == columns == len(found.times_s)
    assert bool((found.times_s.diff() > 0).all())


def test_times_match_the_position_of_a_click(model):
    """A click changes most the features of the time step with the nearest centre."""
    quiet, click = torch.zeros(48_000), torch.zeros(48_000)
    click[30_000] = 1.0
    with_click, without = (
        extract_features(model, wave, layers=[1]).time_steps[0] for wave in (click, quiet)
    )
    found = extract_features(model, click)
    change = (with_click - without).norm(dim=2)[0]
    half_a_patch = 80 * model.patch_shape.time / 16_000
    at = float(found.times_s[int(change.argmax())])
    assert at == pytest.approx(30_000 / 16_000, abs=half_a_patch + 0.0125)
    shape = model.patch_shape
    samples = (shape.time - 1) * 160 + 400
    last = 160 * shape.time_stride * (int(found.lengths) - 1)
    assert found.times_s[[0, -1]].tolist() == [samples / 32_000, (last + samples / 2) / 16_000]


def test_padding_counts_towards_the_batch_size(model, monkeypatch):
    """Short clips count with the length that the model pads them to."""
    rows = []
    hidden_states = model.hidden_states

    def counting(source, lengths, num_layers):
        rows.append(len(source))
        return hidden_states(source, lengths, num_layers)

    monkeypatch.setattr(model, "hidden_states", counting)
    model_features(model, [speech_like(8_000, n) for n in range(20)], batch_s=12.1)
    assert sum(rows) == 20
    assert max(rows) == (20 if model.config.input_frames is None else 12.1 // 3)


def test_pooled_only(model):
    waves = [speech_like(16_000), speech_like(200_000, 1)]
    everything = model_features(model, waves)
    found = model_features(model, waves, layers=[2], pooled_only=True)
    assert found.hidden_states == found.time_steps == ()
    assert_close(found.pooled[:, 0], everything.pooled[:, 1], rtol=0, atol=1e-6)


def test_layers_are_counted_from_one(model):
    wave = speech_like(16_000)
    everything = model_features(model, wave)
    found = model_features(model, wave, layers=[-1, 1])
    assert found.layers == (2, 1)
    assert torch.equal(found.hidden_states[0], everything.hidden_states[1])
    assert torch.equal(found.hidden_states[1], everything.hidden_states[0])


@pytest.mark.parametrize("layers", [[1], [1, 2], [2, 1], [-1], None])
def test_layers_above_the_highest_one_are_not_computed(model, layers):
    computed = []
    for number, layer in enumerate(model.encoder.layers, 1):
        layer.register_forward_pre_hook(lambda *_, number=number: computed.append(number))
    model_features(model, speech_like(16_000), layers=layers)
    assert computed == ([1] if layers == [1] else [1, 2])


def test_chunks_that_are_read_ahead_do_not_change_the_features(model, monkeypatch):
    waves = [speech_like(n, seed) for seed, n in enumerate((3_000, 90_000, 16_000, 40_000, 5_000))]
    expected = model_features(model, waves)
    monkeypatch.setattr(features, "CHUNK_S", 1.0)
    found = model_features(model, waves)
    assert torch.equal(found.lengths, expected.lengths)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(ours, theirs, rtol=0, atol=ATOL)
    assert_close(found.pooled, expected.pooled, rtol=0, atol=ATOL)


def test_bfloat16_is_close_to_float32_and_needs_its_units(model, monkeypatch):
    waves = [speech_like(16_000), speech_like(200_000, 1)]
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda kind: True)
    exact = model_features(model, waves)
    found = {name: model_features(model, waves, precision=name) for name in ("bfloat16", "auto")}
    error = (found["bfloat16"].pooled - exact.pooled).norm() / exact.pooled.norm()
    assert 1e-5 < error < 0.02
    assert torch.equal(found["auto"].pooled, found["bfloat16"].pooled)
    assert found["auto"].pooled.dtype == torch.float32
    assert model.precision == "float32"
    alone = model_features(model, waves[0], precision="bfloat16").pooled[0]
    assert (alone - found["bfloat16"].pooled[0]).norm() < 0.01 * alone.norm()
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda kind: False)
    assert torch.equal(model_features(model, waves, precision="auto").pooled, exact.pooled)
    with pytest.raises(ValueError, match=r"precision 'bfloat16': this device \(cpu\) does not "):
        model_features(model, waves, precision="bfloat16")
    with pytest.raises(ValueError, match="precision 'half'; must be one of auto, float32, bfloat"):
        model_features(model, waves, precision="half")


def test_features_on_disk_equal_those_in_memory(model, tmp_path):
    waves = [speech_like(16_000), speech_like(200_000, 1)]
    expected = model_features(model, waves)
    found = model_features(model, waves, folder=tmp_path / "new")
    for layer, ours, theirs in zip(
        (1, 2), found.hidden_states, expected.hidden_states, strict=True
    ):
        assert torch.equal(ours, theirs)
        stored = np.load(tmp_path / "new" / f"layer_{layer}.npy", mmap_mode="r")
        assert np.array_equal(stored, theirs.numpy())


def test_memory_mapped_features_survive_a_second_call(small_config, tmp_path):
    model = MaeAst(small_config()).eval()
    first = model_features(model, speech_like(40_000), folder=tmp_path).hidden_states[0]
    before = first.clone()
    model_features(model, speech_like(3_000, 1), folder=tmp_path)
    assert torch.equal(first, before)


def test_full_disk_leaves_no_files(small_config, small_disk):
    model = MaeAst(small_config()).eval()
    with pytest.raises(OSError, match=r"small disk: could not be written \(.*\)$"):
        model_features(model, speech_like(480_000), folder=small_disk)
    assert list(small_disk.iterdir()) == []


def test_odd_sample_rate_is_resampled(small_config):
    """An exact filter for 22,254 Hz, whose common divisor with 16 kHz is 2, has 89 M values."""
    model = MaeAst(small_config()).eval()
    found, usual = (
        model_features(model, 0.3 * torch.sin(torch.arange(rate) / rate * 4_000), rate).pooled
        for rate in (22_254, 16_000)
    )
    assert (found - usual).norm() < 0.05 * usual.norm()


def test_files_and_arrays_of_other_rates_agree(model, tmp_path):
    wave = speech_like(48_000, rate=48_000)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave.numpy(), 48_000, subtype="PCM_16")
    from_file = model_features(model, path)
    assert_close(from_file.hidden_states, model_features(model, str(path)).hidden_states)
    assert_close(
        from_file.hidden_states[-1],
        model_features(model, read_audio(path)).hidden_states[-1],
        rtol=0,
        atol=0,
    )
    given = model_features(model, wave.numpy(), 48_000).hidden_states[-1]
    # Rounding to 16 bits before and after resampling; random pre-norm layers amplify it.
    bound = 0.02 if model.config.layer_norm_first else 0.01
    assert (from_file.hidden_states[-1] - given).norm() < bound * given.norm()
    as_int16 = model_features(model, to_pcm16(wave), 48_000).hidden_states[-1]
    assert (as_int16 - given).norm() < bound * given.norm()
    # Without its rate, the recording is longer.
    assert model_features(model, wave).lengths > 2 * from_file.lengths


def test_items_of_hugging_face_datasets(small_config, tmp_path):
    model = MaeAst(small_config()).eval()
    waves = [0.5 * speech_like(n, n, 8_000) for n in (8_000, 12_000)]
    expected = model_features(model, [wave.numpy() for wave in waves], 8_000)
    decoded = [{"path": None, "array": w.double().numpy(), "sampling_rate": 8_000} for w in waves]
    as_list = {"array": waves[1].tolist(), "sampling_rate": np.float32(8_000)}
    for given in (decoded, [decoded[0], as_list], [StereoDecoder(wave, 8_000) for wave in waves]):
        found = model_features(model, given)
        assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-5)
    alone = model_features(model, decoded[0])
    assert_close(alone.pooled, expected.pooled[:1], rtol=0, atol=1e-5)
    assert_close(model_features(model, StereoDecoder(waves[0], 8_000)).pooled, alone.pooled)

    path = tmp_path / "a.flac"
    soundfile.write(path, waves[0].numpy(), 8_000)
    from_file = model_features(model, path).pooled
    content = {"bytes": path.read_bytes(), "path": "of/a/shard/a.flac"}
    for item in (content, {"bytes": None, "path": str(path)}):
        assert torch.equal(model_features(model, item).pooled, from_file)
        assert torch.equal(model_features(model, [item, item]).pooled[1:], from_file)
    with pytest.raises(AudioError, match=r"^of/a/shard/b\.flac: "):
        model_features(model, {"bytes": b"not audio", "path": "of/a/shard/b.flac"})


def test_waveforms_with_their_sample_rate(small_config, tmp_path):
    model = MaeAst(small_config()).eval()
    left, right = (0.4 * speech_like(30_000, seed, 24_000) for seed in (1, 2))
    stereo, mono = torch.stack((left, right)), (left + right) / 2
    expected = model_features(model, [mono, mono[:20_000]], 24_000).pooled
    for given in (
        [(stereo, 24_000), (stereo[:, :20_000], 24_000.0)],
        ((stereo.numpy(), np.int64(24_000)), (stereo[:, :20_000].double().numpy(), 24_000)),
        [(mono, 24_000), (mono[None, :20_000].numpy(), 24_000)],
        [{"array": wave, "sampling_rate": 24_000} for wave in (stereo, mono[:20_000])],
    ):
        assert_close(model_features(model, given).pooled, expected, rtol=0, atol=1e-5)
        # The sample_rate argument does not apply to these.
        assert_close(model_features(model, given, 8_000).pooled, expected, rtol=0, atol=1e-5)
    alone = model_features(model, (stereo, 24_000))
    assert_close(alone.pooled, expected[:1], rtol=0, atol=1e-5)

    path = tmp_path / "a.wav"
    soundfile.write(path, to_pcm16(stereo).T.numpy(), 24_000)
    from_file = model_features(model, path).pooled
    as_int16 = model_features(model, (to_pcm16(stereo), 24_000)).pooled
    assert (as_int16 - from_file).norm() < 0.01 * from_file.norm()


def test_cancelling_channels_are_logged(small_config, caplog, monkeypatch):
    monkeypatch.setattr(audio_file, "_warned", set())
    wave = speech_like(20_000, 5)
    model_features(MaeAst(small_config()).eval(), [wave, (torch.stack((wave, -wave)), 16_000)])
    (message,) = caplog.messages
    assert message.startswith("waveform 1: its channels are in opposite phase")


def test_repr_shows_shapes(small_config):
    model = MaeAst(small_config()).eval()
    found = model_features(model, [speech_like(40_000), speech_like(16_000)])
    assert repr(found) == (
        "Features(layers=(1, 2), hidden_states=2 x (2, 120, 32), lengths=(2,), times_s=(15,) at "
        "6.25 Hz, pooled=(2, 2, 256), per_column=8)"
    )
    pooled = model_features(model, speech_like(3_000), layers=[1], pooled_only=True)
    assert repr(pooled) == (
        "Features(layers=(1,), hidden_states=(), lengths=(1,), times_s=(1,), pooled=(1, 1, 256), "
        "per_column=8)"
    )


class StereoDecoder:
    """Decoder as in ``datasets`` 4, with two equal channels."""

    def __init__(self, wave: torch.Tensor, rate: int) -> None:
        self.samples = SimpleNamespace(data=torch.stack((wave, wave)), sample_rate=rate)

    def get_all_samples(self) -> SimpleNamespace:
        return self.samples


@pytest.mark.parametrize("rate", [44_100.0, np.float32(44_100), np.int64(44_100)])
def test_integral_sample_rate_may_be_a_float(small_config, rate):
    model, wave = MaeAst(small_config()).eval(), speech_like(22_050, rate=44_100)
    expected = model_features(model, wave, 44_100).pooled
    assert torch.equal(model_features(model, wave, rate).pooled, expected)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_values_beyond_full_scale_are_clipped(model, tmp_path, rate):
    wave = speech_like(2 * rate, rate=rate)
    wave *= 1.9 / wave.abs().max()
    path = tmp_path / "a.wav"
    soundfile.write(path, wave.numpy(), rate, subtype="FLOAT")
    from_file = model_features(model, path).hidden_states[-1]
    from_array = model_features(model, wave, rate).hidden_states[-1]
    bound = 0.02 if model.config.layer_norm_first else 0.01  # rounding to 16 bits
    assert (from_file - from_array).norm() < bound * from_array.norm()


def test_training_mode_is_restored_and_does_not_matter(small_config):
    model = MaeAst(small_config(dropout=0.5)).train()
    wave = speech_like(16_000)
    before = model.batch_norm.running_mean.clone()
    one, other = (model_features(model, wave).pooled for _ in range(2))
    assert torch.equal(one, other)
    assert model.training
    assert torch.equal(model.batch_norm.running_mean, before)


@pytest.mark.parametrize(
    ("waveforms", "options", "message"),
    [
        ([], {}, "no waveform"),
        (torch.zeros(2, 3, 4), {}, r"waveform 0: has shape \(3, 4\)"),
        (torch.zeros(16_000, 2), {}, r"one patch .* is \(recordings, samples\), one channel each$"),
        ([torch.zeros(16_000), torch.zeros(399)], {}, "waveform 1: 399 samples .* one patch"),
        (torch.full((16_000,), torch.nan), {}, "not finite"),
        (torch.zeros(16_000, dtype=torch.int64), {}, r"torch\.int64; expected int16"),
        (torch.zeros(16_000), {"sample_rate": 10}, "sample rate 10 Hz"),
        (
            torch.zeros(16_000),
            {"sample_rate": 22_050.5},
            r"waveform 0: sample rate 22050\.5 Hz",
        ),
        (torch.zeros(16_000), {"sample_rate": "fast"}, "sample rate fast Hz .* integer"),
        (torch.zeros(16_000), {"sample_rate": float("nan")}, "sample rate nan Hz"),
        (torch.full((16_000,), -3.0), {}, r"waveform 0: peaks at 3; .*float in \[-1, 1\]"),
        ([{"sampling_rate": 8_000}], {}, "waveform 0: has the keys sampling_rate; .*a path"),
        ({"array": torch.zeros(9_000)}, {}, "waveform 0: has 'array' without 'sampling_rate'"),
        ({"array": torch.zeros(9_000, 2), "sampling_rate": 8_000}, {}, r"0: has shape \(9000, 2\)"),
        (
            (torch.zeros(9_000, 2).numpy(), 8_000),
            {},
            r"\(9000, 2\); .*\(channels, .*\(transpose",
        ),
        (
            (torch.zeros(1, 2, 9_000), 8_000),
            {},
            r"\(1, 2, 9000\); .*\(samples,\) or \(channels,",
        ),
        ((torch.zeros(2, 9_000), 10), {}, "waveform 0: sample rate 10 Hz"),
        ([torch.zeros(2, 9_000)], {}, r"\(2, 9000\); .*\(samples,\)"),
        (("a.wav", 8_000), {}, r"waveform 0: has type str; .*a path, .*sampling_rate"),
        (None, {}, "waveform 0: has type NoneType; .*a path"),
        ([5], {}, r"waveform 0: has shape \(\)"),
        (torch.zeros(16_000), {"layers": [3]}, r"layers \[3\]; the model has 1 to 2"),
        (torch.zeros(16_000), {"layers": [0]}, r"layers \[0\]"),
        (torch.zeros(16_000), {"layers": []}, r"layers \[\]"),
        (torch.zeros(16_000), {"window_s": 0.01}, "windows of 0.01 s"),
        (torch.zeros(16_000), {"window_s": 2, "overlap_s": 2}, "overlap of 2 s"),
    ],
)
def test_invalid_input_is_refused(model, waveforms, options, message):
    with pytest.raises(ValueError, match=message):
        model_features(model, waveforms, **options)


def test_missing_and_damaged_files_are_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        model_features(model, tmp_path / "none.wav")
    (tmp_path / "bad.flac").write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"bad\.flac"):
        model_features(model, tmp_path / "bad.flac")


AN_HOUR = """
import sys
import numpy as np, soundfile, torch
from mae_ast.bench.machine import peak_memory
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.inference import features
from mae_ast.core.inference.features import extract_features
from mae_ast.core.models.mae_ast import MaeAst

path = sys.argv[1]
tone = (3000 * np.sin(np.arange(441_000) / 20)).astype(np.int16)
with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
    for _ in range(360):
        file.write(np.stack((tone, tone), 1))
config = MaeAstConfig(encoder_layers=1, encoder_embed_dim=768, encoder_ffn_embed_dim=64,
                      decoder_layers=1, ast_kernel_size_chan=128, ast_kernel_stride_chan=128)
found = extract_features(MaeAst(config), path)
assert found.lengths.tolist() == [(359_998) // 16], found.lengths
assert bool(found.hidden_states[0].isfinite().all())
assert bool((found.hidden_states[0].abs().sum(2) > 0).all())
print(peak_memory())
"""


@pytest.mark.slow
def test_an_hour_of_audio_fits_into_four_gigabytes(tmp_path: Path) -> None:
    """Use one layer of the released models' width and a stereo file at 44.1 kHz.

    To save time it has an eighth of their tokens; all tokens take 0.5 GB more.
    """
    done = subprocess.run(
        [sys.executable, "-c", AN_HOUR, str(tmp_path / "hour.wav")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3.5
