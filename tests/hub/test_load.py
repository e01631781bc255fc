"""``mae_ast.load``: all kinds of sources, and one-line errors for the rest."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.testing import assert_close

import mae_ast
from mae_ast.core.checkpoints.mae_ast_release import to_released
from mae_ast.core.checkpoints.reader import CheckpointError
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.hub import load as pretrained
from mae_ast.hub import offline
from mae_ast.hub.download import name_from_url
from mae_ast.hub.load import PretrainedMaeAst, hub_class
from mae_ast.hub.registry import RELEASED
from tests.sounds import speech_like


@pytest.fixture
def model(small_config) -> PretrainedMaeAst:
    """Build a model trained in bfloat16, with its own decoder width and input statistics."""
    model = PretrainedMaeAst(small_config(decoder_embed_dim=48, precision="bfloat16"), "chunk_mask")
    model.batch_norm.running_mean.fill_(-6.5)
    return model.eval()


@pytest.fixture
def file(model, tmp_path) -> Path:
    """Save the model as the trainer does."""
    path = tmp_path / "checkpoint_last.pt"
    config = {"_name": "mae_ast", **dataclasses.asdict(model.config)}
    cfg = {"model": config, "task": {"_name": "mae_ast_pretraining", "mask_type": "chunk_mask"}}
    state = {"cfg": cfg, "model": model.state_dict(), "optimizer_history": [{}]}
    torch.save(state, path)
    return path


def assert_same(found: PretrainedMaeAst, model: PretrainedMaeAst) -> None:
    assert found.config == model.config
    assert found.mask_type == model.mask_type
    assert not found.training
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [str, Path])
def test_file_is_loaded(file, model, kind):
    found = mae_ast.load(kind(file))
    assert_same(found, model)


def test_features_of_a_loaded_model_are_float32(file):
    model = mae_ast.load(file)
    found = model.extract_features([speech_like(16_000), speech_like(40_000)], 16_000)
    assert found.time_steps[-1].shape == (2, 15, 8 * 32)
    # float32, although the model was trained in bfloat16
    alone = model.hidden_states(speech_like(40_000).unsqueeze(0))[-1]
    assert alone.dtype == torch.float32
    assert_close(found.hidden_states[-1][1:], alone, rtol=0, atol=1e-5)


def test_safetensors_folder_round_trip(model, tmp_path):
    folder = tmp_path / "hub"
    model.save_pretrained(folder)
    assert {"model.safetensors", "config.json", "README.md"} == {p.name for p in folder.iterdir()}
    assert_same(mae_ast.load(folder), model)
    assert_same(mae_ast.load(folder / "model.safetensors"), model)
    assert_same(PretrainedMaeAst.from_pretrained(folder), model)


SMALL = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_attention_heads": 4}
CARDS = {
    "mae_ast": (("MAE-AST", "2 + 2 (decoder)", "`chunk_mask`, `random_mask_prob=0.75`"), {}),
    "ssast": (("SSAST", "`random_mask`"), {}),
    "ast": (
        ("AST", "10.24 s", r"3 (softmax): a; b\|c; d", "mae-ast predict"),
        {"num_classes": 3, "input_frames": 1024},
    ),
    "audio_mae": (("Audio-MAE", "2 + 16 (decoder)"), {}),
    "vit": (("Spectrogram transformer encoder",), {}),
}


@pytest.mark.parametrize("name", CARDS)
def test_model_card_is_filled_in(name, tmp_path):
    words, fields = CARDS[name]
    config = SYSTEMS[name].config(**SMALL, **fields)
    mask_type = {"mae_ast": "chunk_mask", "vit": None, "ast": None}.get(name, "random_mask")
    labels = ("a", "b|c", "d") if name == "ast" else None
    model = hub_class(name)(config, mask_type, labels, independent=labels is None)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "[More Information Needed]" not in card
    assert "{{" not in card.partition("```bibtex")[0]
    for word in (*words, f"| `{name}` |", "(recordings, tokens, 32)", "library_name: mae-ast"):
        assert word in card
    assert ("Paper: https://arxiv.org/abs/" in card) == (name != "vit")
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    assert str(model.generate_model_card(title="My model")).count("# My model") == 1


def test_hub_id_is_loaded(model, tmp_path, monkeypatch):
    """Replace the hub's client by one that returns the files pushed before."""
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **_):
            pushed[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
            return "done"

    def hf_hub_download(repo_id, filename, **_):
        if filename not in pushed[repo_id]:
            raise LocalEntryNotFoundError(filename)
        path = tmp_path / repo_id.replace("/", "_") / filename
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pushed[repo_id][filename])
        return str(path)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(pretrained, "hf_hub_download", hf_hub_download)
    model.push_to_hub("someone/mae-ast-small")
    assert_same(mae_ast.load("someone/mae-ast-small"), model)


@pytest.mark.parametrize("kind", [OSError, LocalEntryNotFoundError])
def test_unavailable_hub_id_is_a_one_line_error(monkeypatch, kind):
    def refuse(*_, **__):
        raise kind("we are off line\nand more")

    monkeypatch.setattr(offline, "_try_once", lambda url: None)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", refuse)
    monkeypatch.setattr(pretrained, "hf_hub_download", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"^someone/model: no such file, and not .*off line\)$"
    ):
        mae_ast.load("someone/model")


def test_released_names_and_urls_are_downloaded(model, file, monkeypatch):
    asked = []

    def download(urls, name, sha256=None):
        asked.append((list(urls), name))
        return file

    monkeypatch.setattr(pretrained, "download", download)
    assert_same(mae_ast.load("mae_ast_patch"), model)
    assert_same(mae_ast.load("https://example.org/models/a.pt"), model)
    (mirrors, name), ((url,), other) = asked
    assert mirrors == list(RELEASED["mae_ast_patch"].urls)
    assert name == "chunk_patch_75_12LayerEncoder.pt"
    assert url == "https://example.org/models/a.pt"
    assert other == name_from_url(url)


def test_safetensors_and_config_are_downloaded_from_a_url(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "server")
    asked = []

    def download(urls, name, sha256=None, folder=None):
        (url,) = urls
        asked.append(url)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tmp_path / "server" / url.rpartition("/")[2]).read_bytes())
        return folder / name

    monkeypatch.setattr(pretrained, "download", download)
    monkeypatch.setenv("MAE_AST_CACHE", str(tmp_path / "cache"))
    assert_same(mae_ast.load("https://example.org/a/model.safetensors"), model)
    assert asked == [f"https://example.org/a/{n}" for n in ("config.json", "model.safetensors")]


def test_released_layout_is_loaded(small_config, tmp_path):
    model = PretrainedMaeAst(small_config(), "random_mask").eval()
    path = tmp_path / "released.pt"
    torch.save(to_released(model.config, "random_mask", model.state_dict()), path)
    assert_same(mae_ast.load(path), model)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (
            *("mae_ast_pach", ValueError),
            r"'mae_ast_pach' is not a file.*mae_ast_frame; did you mean mae_ast_patch",
        ),
        ("runs/none.pt", FileNotFoundError, r"runs/none\.pt: no such checkpoint"),
        (Path("runs/none"), FileNotFoundError, "runs/none: no such checkpoint"),
        ("runs/none.ckpt", FileNotFoundError, r"runs/none\.ckpt: no such checkpoint"),
        ("./runs", FileNotFoundError, r"\./runs: no such checkpoint"),
        ("runs/a/model", FileNotFoundError, "runs/a/model: no such checkpoint; runs does not"),
        ("mae_ast/none", FileNotFoundError, "mae_ast/none: no such checkpoint"),
        ("test/model", FileNotFoundError, "test/model: no such file; this folder has tests, "),
        ("tests/sound.pt", FileNotFoundError, "; tests has sounds.py"),
        ("", ValueError, "is not a file"),
    ],
)
def test_unknown_source_is_an_error(source, kind, message, monkeypatch):
    """Run in the repository's root; only hub ids are looked up on the hub, which is offline."""
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(offline, "_try_once", lambda url: "off line")
    with pytest.raises(kind, match=message):
        mae_ast.load(source)


def test_folder_without_checkpoint_lists_its_files(tmp_path):
    neither = r"neither checkpoints/checkpoint_last\.pt nor model\.safetensors, but "
    with pytest.raises(FileNotFoundError, match=neither + "nothing$"):
        mae_ast.load(tmp_path)
    for name in ("saved_model.pb", "keras_metadata.pb", "assets", "variables"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=neither + r"assets, ker\S+, sav\S+ and 1 more$"):
        mae_ast.load(tmp_path)


def test_checkpoint_folder_of_a_run_is_loaded(file, model):
    assert_same(mae_ast.load(file.parent), model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json: .*JSON"),
        (b"[]", r"config\.json: .* a model of this project$"),
        (b'{"model_type": "bert"}', "model_type is 'bert'"),
        (
            b'{"system": "bert", "mask_type": "a"}',
            "unknown system 'bert'; must be one of mae_ast, ssast, ast",
        ),
        (b'{"system": "mae_ast"}', "mask_type"),
        (b'{"system": "mae_ast", "mask_type": "a", "encoder_layers": 0}', "encoder_layers=0"),
    ],
)
def test_invalid_config_is_named(model, tmp_path, content, message):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        mae_ast.load(tmp_path)


def test_truncated_and_mismatching_safetensors_are_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: not a readable safetensors file"
    ):
        mae_ast.load(tmp_path)
    path.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layers\.2\.\S+, .* more$"):
        PretrainedMaeAst.from_pretrained(tmp_path)


def test_help_shows_the_arguments_of_extract_features(file):
    model = mae_ast.load(file)
    assert list(inspect.signature(model.extract_features).parameters) == [
        *("waveforms", "sample_rate", "layers", "pooled_only", "folder"),
        *("window_s", "overlap_s", "batch_s", "precision"),
    ]
    text = " ".join(pydoc.render_doc(model.extract_features, renderer=pydoc.plaintext).split())
    assert "sample_rate: 'int' = 16000, *, layers: " in text
    assert "Extract features of recordings" in text
    assert "counted from 1, -1 being the last" in text


def test_loading_needs_no_fairseq(file):
    program = (
        "import sys\n"
        "for name in ('fairseq', 'hydra', 'omegaconf', 's3prl', 'tensorboardX', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import mae_ast, torch\n"
        "model = mae_ast.load(sys.argv[1])\n"
        "print(model.extract_features(torch.zeros(16000)).pooled.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 2, 256])"
