"""AST equals Hugging Face's AST, for clips of any length, single and in a batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mae_ast.core.checkpoints.hf_ast import from_hugging_face, to_hugging_face
from mae_ast.core.checkpoints.hf_ast_config import (
    config_from_hugging_face,
    config_to_hugging_face,
    is_independent,
    labels_of,
)
from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AstConfig
from tests.core.vits import SMALL, log_mel_like, with_random_weights
from tests.sounds import speech_like

LABELS = ("bird", "rain", "siren", "speech", "violin")
AST_SMALL = SMALL | {"num_classes": len(LABELS)}


def build(**fields: Any) -> Ast:
    return with_random_weights(Ast(AstConfig(**(AST_SMALL | fields)))).eval()


# Equality with Hugging Face's AST.


def hugging_face_model(**fields: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    values = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_length": 128,
        "num_labels": len(LABELS),
    }
    config = transformers.ASTConfig(**(values | fields))
    return with_random_weights(transformers.ASTForAudioClassification(config)).eval()


@pytest.mark.parametrize("stride", [10, 16])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_logits_equal_hugging_face_with_its_weights(tmp_path: Path, place, stride):
    theirs = hugging_face_model(frequency_stride=stride, time_stride=stride)
    fields, state = theirs.config.to_dict(), theirs.state_dict()
    if place == "file":
        from safetensors.torch import load_file

        theirs.save_pretrained(tmp_path)
        fields = json.loads((tmp_path / "config.json").read_text())
        state = load_file(tmp_path / "model.safetensors")
    config = config_from_hugging_face(fields)
    model = Ast(config).eval()
    model.load_state_dict(from_hugging_face(config, state))
    source = log_mel_like(3, 128, 128)
    with torch.no_grad():
        expected = theirs(model.spectrogram(source))
        states = theirs(model.spectrogram(source), output_hidden_states=True).hidden_states
    assert expected.logits.std() > 0.1
    assert_close(model.logits(source), expected.logits, rtol=0, atol=1e-4)
    along_time, along_mel = config.position_grid
    ours = model.hidden_states(source)[0].unflatten(1, (along_time, along_mel))
    their_tokens = states[1][:, 2:].unflatten(1, (along_mel, along_time))
    assert_close(ours, their_tokens.transpose(1, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mean", [-4.2677393, -6.6])
def test_hugging_face_gives_our_logits_with_our_weights(tmp_path: Path, mean):
    """Use Hugging Face's preprocessing, loading and model, starting from a waveform."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from safetensors.torch import save_file

    eps = {"layer_norm_eps": 1e-12, "head_layer_norm_eps": 1e-12}
    model = build(input_frames=128, input_mean=mean, input_std=5.0, **eps)
    state = to_hugging_face(model.config, model.state_dict())
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    for name, content in zip(
        ("config.json", "preprocessor_config.json"),
        config_to_hugging_face(model.config, LABELS),
        strict=True,
    ):
        (tmp_path / name).write_text(json.dumps(content))
    theirs = transformers.ASTForAudioClassification.from_pretrained(tmp_path).eval()
    assert tuple(theirs.config.id2label.values()) == LABELS
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path)
    for samples in (9_000, 16_000, 30_000):  # padded, padded, cropped
        wave = speech_like(samples)
        inputs = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(**inputs).logits
        assert_close(model.spectrogram(wave[None]), inputs["input_values"], rtol=0, atol=1e-3)
        assert_close(model.logits(wave[None]), expected, rtol=0, atol=1e-3)
        assert_close(model.logits(inputs["input_values"] * 10 + mean), expected, rtol=0, atol=1e-4)


def test_configuration_round_trip():
    config = AstConfig(
        **AST_SMALL,
        input_frames=128,
        head_layer_norm_eps=1e-6,
        input_mean=-6.6268077,
        input_std=5.358466,
    )
    assert config_from_hugging_face(*config_to_hugging_face(config)) == config
    assert config_from_hugging_face(hugging_face_model().config.to_dict()).num_classes == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'"),
        ({"num_mel_bins": 80}, "num_mel_bins is 80; only 128 is supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"patch_size": [16, 16]}, "only square patches"),
        ({"hidden_size": 25}, "encoder_embed_dim=25; must be divisible"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_hugging_face_configuration_is_refused(fields, message):
    known, _ = config_to_hugging_face(AstConfig(**AST_SMALL))
    with pytest.raises(ValueError, match=message):
        config_from_hugging_face(known | fields)


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({"prefix_tokens": 1}, None, "prefix_tokens=1; Hugging Face's AST has 2"),
        ({"window_type": "povey"}, None, "window_type=povey"),
        ({"ast_kernel_size_time": 20}, None, "patches of 16 x 20"),
        ({}, ("one",), "1 label for num_classes=5"),
        ({"pool": "tokens"}, None, "pool=tokens; Hugging Face's AST averages its prefix tokens"),
        ({"input_frames": 64}, None, "input_frames=64 differs from position_frames=128"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configuration_unsupported_by_hugging_face_is_refused(fields, labels, message):
    with pytest.raises(ValueError, match=message):
        config_to_hugging_face(AstConfig(**(AST_SMALL | fields)), labels)


# Input and scores in Hugging Face's files.


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"do_normalize": False},
        {"do_normalize": False, "mean": -6.0, "std": 3.0},
        {"mean": -6.0, "std": 3.0},
        {"max_length": 126, "mean": -6.0, "std": 3.0},
    ],
    ids=str,
)
def test_input_equals_hugging_face_feature_extractor(preprocessor):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    fields, _ = config_to_hugging_face(AstConfig(**AST_SMALL, input_frames=128))
    config = config_from_hugging_face(fields, preprocessor)
    assert config.input_frames == preprocessor.get("max_length", 128)
    extractor = transformers.ASTFeatureExtractor(**({"max_length": 128} | preprocessor))
    _, written = config_to_hugging_face(config)
    again = transformers.ASTFeatureExtractor(**written)
    for samples in (9_000, 30_000):  # padded, cropped
        wave = speech_like(samples)
        theirs, back = (
            there(wave.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"]
            for there in (extractor, again)
        )
        found = Ast(config).spectrogram(wave[None])
        assert_close(found, theirs, rtol=1e-5, atol=1e-3)
        assert_close(back, theirs, rtol=0, atol=1e-6)
    assert written["do_normalize"] is preprocessor.get("do_normalize", True)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"sampling_rate": 8_000}, "sampling_rate is 8000 in preprocessor_config.json; only 16000"),
        ({"num_mel_bins": 64}, "num_mel_bins is 64 in preprocessor_config.json; only 128"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "feature_extractor_type is 'Wav"),
        ({"max_length": 512}, "max_length is 512 in preprocessor_config.json and 128 in config"),
        ({"std": 0}, "std 0 in preprocessor_config.json; a number and a positive number"),
        ({"mean": "loud"}, "mean is 'loud' and std 4.5"),
    ],
    ids=str,
)
def test_unsupported_preprocessor_is_refused(preprocessor, message):
    fields, _ = config_to_hugging_face(AstConfig(**AST_SMALL))
    with pytest.raises(ValueError, match=message):
        config_from_hugging_face(fields, preprocessor)


def test_problem_type_determines_the_scores():
    fields = {"problem_type": "multi_label_classification"}
    assert is_independent(fields)
    assert not is_independent({"problem_type": "single_label_classification"})
    assert not is_independent({"problem_type": None})
    assert not is_independent({})
    with pytest.raises(ValueError, match=r"problem_type is 'regression'; single_label_class.* are"):
        is_independent({"problem_type": "regression"})
    for independent in (True, False):
        written, _ = config_to_hugging_face(AstConfig(**AST_SMALL), None, independent)
        assert is_independent(written) == independent


def test_class_names_come_from_id2label_or_label2id():
    names = ("rain", "bird")
    for fields in (
        {"id2label": {"0": "rain", "1": "bird"}},
        {"id2label": {1: "bird", 0: "rain"}},
        {"label2id": {"bird": 1, "rain": 0}},
    ):
        assert labels_of(fields) == names
        base, _ = config_to_hugging_face(AstConfig(**AST_SMALL))
        base = {key: value for key, value in base.items() if key not in ("id2label", "label2id")}
        assert config_from_hugging_face(base | fields).num_classes == 2
    assert labels_of({}) is None
    assert config_from_hugging_face(base | {"num_labels": 7}).num_classes == 7
    for wrong, message in (
        ({"id2label": {"0": "a", "2": "b"}}, "id2label has no class '1'"),
        ({"id2label": ["a", "b"]}, "id2label is not a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            labels_of(wrong)


# Clips of any length.


@pytest.mark.parametrize("seconds", [1, 5, 10])
def test_number_of_patches_is_that_of_the_paper(seconds):
    """N = 12 ceil((100 t - 16) / 10); without padding, t seconds give 100 t - 2 frames."""
    config = AstConfig()
    frames = num_frames(16_000 * seconds)
    assert frames == 100 * seconds - 2
    along_time, along_mel = config.patch_shape.grid(frames)
    assert along_time * along_mel == 12 * math.ceil((100 * seconds - 16) / 10)
    patches = build().patches(torch.zeros(1, 16_000 * seconds))
    assert patches.shape == (1, along_time * along_mel, 256)


def test_audioset_clips_have_1212_patches():
    assert AstConfig().position_grid == (101, 12)
    assert build(input_frames=1024).patches(torch.zeros(1, 160_000)).shape[1] == 1212


@pytest.mark.parametrize("prefix_tokens", [1, 2])
def test_logits_use_the_mean_of_the_prefix_tokens(prefix_tokens):
    model = build(prefix_tokens=prefix_tokens)
    source = speech_like(16_000)[None]
    prefix = model.encode(source).prefix
    assert prefix.shape == (1, prefix_tokens, 24)
    normed = nn.functional.layer_norm(
        prefix.mean(1), (24,), model.head.layer_norm.weight, model.head.layer_norm.bias
    )
    expected = normed @ model.head.linear.weight.T + model.head.linear.bias
    assert_close(model.logits(source), expected, rtol=0, atol=1e-5)
    assert_close(model(source), model.logits(source), rtol=0, atol=0)


def test_bfloat16_logits_are_float32_and_close():
    exact, model = build(), build(precision="bfloat16")
    source = speech_like(16_000)[None]
    logits = model.logits(source)
    assert logits.dtype == torch.float32
    assert_close(logits, exact.logits(source), rtol=0, atol=0.05)
