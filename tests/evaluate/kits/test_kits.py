"""Adapters fulfil the contract of each kit, by its own checker where it is installed.

``make test-kits`` installs the kits; without them, their documented rules are tested alone.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mae_ast.evaluate.kits import evar, hear, mteb, xares
from mae_ast.evaluate.kits.embedder import Embedder
from tests.sounds import speech_like


def noise(count: int, seconds: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, int(seconds * 16_000), generator=generator) * 2 - 1


def test_hear_api(folder):
    """The rules of hear-validator."""
    model = hear.load_model(folder)
    assert isinstance(model, nn.Module)
    assert model.sample_rate in (16_000, 22_050, 44_100, 48_000)
    assert isinstance(model.scene_embedding_size, int)
    assert isinstance(model.timestamp_embedding_size, int)
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(3, 2.0), model)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.shape[:2] == timestamps.shape
    assert embeddings.shape[2] == model.timestamp_embedding_size
    steps = timestamps.diff()
    assert_close(steps, torch.full_like(steps, model.step_ms), rtol=0, atol=1e-3)
    assert timestamps[0, 0] == pytest.approx(87.5 if model.step_ms > 20 else 17.5)  # milliseconds
    scenes = hear.get_scene_embeddings(noise(2, 3.74), model)
    assert scenes.dtype == torch.float32
    assert scenes.shape == (2, model.scene_embedding_size)


def test_hear_validator(folder):
    validate = pytest.importorskip("hearvalidator.validate", reason="make test-kits")
    validate.ValidateModel("mae_ast.evaluate.kits.hear", folder, "cpu")()


def test_hear_takes_the_model_of_the_environment(folders, monkeypatch):
    monkeypatch.setenv("MAE_AST_MODEL", folders["ast"])
    monkeypatch.setenv("MAE_AST_LAYERS", "-1")
    model = hear.load_model()
    assert (model.source, model.layers) == (folders["ast"], (2,))


def test_xares_encoder(folder, monkeypatch):
    """The rules of check_audio_encoder, and of the program that finds the class."""
    names = [name for name in dir(xares) if name.endswith("Encoder")]
    assert names == ["MaeAstEncoder"]
    monkeypatch.setenv("MAE_AST_MODEL", folder)
    encoder = xares.MaeAstEncoder()
    assert isinstance(encoder, nn.Module)
    assert encoder.sampling_rate == 16_000
    audio = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))  # beyond [-1, 1]
    found = encoder(audio)
    assert found.shape[::2] == (2, encoder.output_dim)
    missing_ms = 50_000 / 16 - found.shape[1] * encoder.hop_size_in_ms
    assert 0 <= missing_ms < 2 * max(encoder.hop_size_in_ms, 80)
    assert_close(encoder(audio[1]), found[1:], rtol=0, atol=1e-5)


def test_xares_checker(folder):
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="make test-kits")
    assert checker.check_audio_encoder(xares.MaeAstEncoder(folder)) is True


def recordings() -> list[dict[str, Any]]:
    return [
        {"array": speech_like(9_000).double().numpy(), "sampling_rate": 16_000},
        {"array": speech_like(20_000).double().numpy(), "sampling_rate": 44_100},
    ]


def test_mteb_encoder(folder):
    """The rules of EncoderProtocol."""
    encoder = mteb.MaeAstEncoder(folder, device="cpu")
    loader = type("Loader", (list,), {"collate_fn": None})([{"audio": recordings()}] * 2)
    found = encoder.encode(
        loader, task_metadata=None, hf_split="test", hf_subset="default", batch_size=2
    )
    assert found.dtype == np.float32
    assert found.shape == (4, encoder.embedder.width)
    wave = torch.from_numpy(recordings()[0]["array"])
    assert_close(torch.from_numpy(found[0]), encoder.embedder.clips([wave])[0], rtol=0, atol=1e-5)
    collated = loader.collate_fn([{"audio": 1, "label": 2}, {"audio": 3, "label": 4}])
    assert collated == {"audio": [1, 3], "label": [2, 4]}

    pairs = encoder.similarity(found[:3], found)
    assert pairs.shape == (3, 4)
    assert_close(encoder.similarity_pairwise(found[:2], found[2:]), torch.ones(2))
    assert_close(pairs[0, 1], torch.cosine_similarity(*torch.from_numpy(found[:2]), dim=0))
    with pytest.raises(ValueError, match="a batch of text; only audio can be embedded"):
        encoder.encode([{"text": ["a"]}])


def test_mteb_files_results_by_configuration_weights_and_layers(folders):
    folder = folders["mae_ast patch"]
    names = [
        *((folder, None), (folder, "1"), (folders["mae_ast frame"], None)),
        (folders["ssast patch"], None),
    ]
    revisions = {mteb.fingerprint(Embedder(*arguments)) for arguments in names}
    assert len(revisions) == len(names)
    assert mteb.fingerprint(Embedder(folder)) in revisions


def test_mteb_protocol_and_meta(folder):
    pytest.importorskip("mteb", reason="make test-kits")
    protocols = importlib.import_module("mteb.models.models_protocols")
    encoder = mteb.MaeAstEncoder(folder, device="cpu")
    assert isinstance(encoder, protocols.EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.embed_dim, meta.modalities) == (encoder.embedder.width, ["audio"])
    assert meta.revision == encoder.revision


def test_mteb_evaluates(folders, tmp_path):
    kit = pytest.importorskip("mteb", reason="make test-kits")
    datasets = importlib.import_module("datasets")
    tasks = importlib.import_module("mteb.mocks.mock_tasks.classification")

    class Task(tasks.MockAudioClassification):
        def load_data(self, **options: Any) -> None:  # without torchcodec
            rows = {"audio": recordings() * 5, "label": [1, 2] * 5}
            split = datasets.Dataset.from_dict(rows)
            self.dataset = datasets.DatasetDict({"train": split, "test": split})
            self.data_loaded = True

    encoder = mteb.MaeAstEncoder(folders["mae_ast patch"], device="cpu")
    found = kit.evaluate(encoder, [Task()], cache=kit.ResultCache(tmp_path))
    (result,) = found.task_results
    assert result.get_score() == 1.0


class BaseAudioRepr(nn.Module):
    """EVAR's base class, as far as its wrappers rely on it."""

    def __init__(self, cfg: Any, filename_mode: bool = False) -> None:
        super().__init__()
        self.cfg = cfg.copy()


@pytest.fixture
def in_evar(monkeypatch):
    """The adapter, imported where EVAR is importable."""
    base = ModuleType("evar.ar_base")
    base.BaseAudioRepr = BaseAudioRepr
    monkeypatch.setitem(sys.modules, "evar", ModuleType("evar"))
    monkeypatch.setitem(sys.modules, "evar.ar_base", base)
    yield importlib.reload(evar)
    monkeypatch.undo()
    importlib.reload(evar)


def test_evar_representation(folder, in_evar):
    width = Embedder(folder).width
    cfg = {"weight_file": folder, "layers": "1,2", "feature_d": width, "sample_rate": 16_000}
    representation = in_evar.AR_MaeAst(cfg)
    assert isinstance(representation, BaseAudioRepr)
    representation.precompute(torch.device("cpu"), None)
    audio = noise(3, 1.5)
    found = nn.DataParallel(representation)(audio)
    frames = representation.encode_frames(audio)
    assert found.shape == (3, width)
    assert frames.shape[:2] == (3, width)
    assert_close(frames.mean(2), found, rtol=0, atol=1e-5)


def test_evar_configuration_that_does_not_suit_the_model(folders):
    assert issubclass(evar.AR_MaeAst, nn.Module)  # without EVAR
    folder = folders["mae_ast patch"]
    with pytest.raises(ValueError, match="feature_d: 768 in EVAR's configuration; must be 192"):
        evar.AR_MaeAst({"weight_file": folder, "feature_d": 768})
    with pytest.raises(ValueError, match="sample_rate: 32000 in EVAR's configuration"):
        evar.AR_MaeAst({"weight_file": folder, "sample_rate": 32_000})
