"""Written files have the mode given by the umask, even if written to a temporary name first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.core.models.config import AstConfig
from mae_ast.evaluate import extract as extraction
from mae_ast.hub import export, export_onnx
from mae_ast.hub.download import download
from mae_ast.hub.export_transformers import to_transformers
from mae_ast.hub.load import PretrainedAst, PretrainedMaeAst
from mae_ast.prepare.pack import pack
from tests.sounds import speech_like
from tests.web_server import WebServer, gives

pytestmark = pytest.mark.slow

Write = Callable[[PretrainedMaeAst, Path], object]


@pytest.fixture
def umask() -> Iterator[int]:
    """Set an unusual umask, which no writer assumes."""
    wanted = 0o027
    before = os.umask(wanted)
    yield wanted
    os.umask(before)


def _atomic_write(model: PretrainedMaeAst, folder: Path) -> None:
    """Replace the temporary file by a private one, as some writers do."""
    with atomic_write(folder / "file") as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))


def _transformers(model: PretrainedMaeAst, folder: Path) -> None:
    config = AstConfig(
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=1,
        position_frames=64,
        input_frames=64,
        num_classes=2,
    )
    to_transformers(PretrainedAst(config), folder / "hf")
    to_transformers(model, folder / "own")


def _onnx(model: PretrainedMaeAst, folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    export_onnx.to_onnx(model, folder / "a.onnx")


def _manifest(model: PretrainedMaeAst, folder: Path) -> Manifest:
    soundfile.write(folder / "a.flac", speech_like(16_000).numpy(), 16_000)
    write_manifest(folder / "valid.tsv", ".", [("a.flac", 16_000, 16_000)])
    (folder / "train.tsv").write_text(".\na.flac\t16000\n")
    return Manifest.load(folder / "train.tsv")  # which caches its sample rates


def _extraction(model: PretrainedMaeAst, folder: Path) -> None:
    listed = _manifest(model, folder)
    extraction.extract(model, listed, folder / "out", extraction.Extraction(1, False, False, 0, 1))


def _pack(model: PretrainedMaeAst, folder: Path) -> None:
    pack(_manifest(model, folder), folder / "shards", 10**6)


def _download(model: PretrainedMaeAst, folder: Path) -> None:
    with WebServer() as server:
        download([server.url("/file", gives(b"weights" * 100))], "model.pt", None, folder / "cache")


def _checkpoint(model: PretrainedMaeAst, folder: Path) -> None:
    patches = "mae_ast.trainer.fairseq_patches"
    checkpoint_saving = pytest.importorskip(f"{patches}.checkpoint_saving", reason="needs fairseq")
    path = str(folder / "checkpoint_1_1.pt")
    checkpoint_saving._save_atomically(lambda *_: None)({"model": model.state_dict()}, path)
    checkpoint_saving.link_or_copy(path, str(folder / "checkpoint_last.pt"))


WRITERS: dict[str, Write] = {
    "atomic_write": _atomic_write,
    "released": lambda model, folder: export.to_released_file(model, folder / "a.pt"),
    "safetensors": lambda model, folder: export.to_safetensors(model, folder / "hub"),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder / "hub"),
    "transformers": _transformers,
    "onnx": _onnx,
    "manifest": _manifest,
    "labels": lambda model, folder: Labels(("a",), ("a",)).write(folder / "labels.csv"),
    "extraction": _extraction,
    "hidden states": lambda model, folder: model.extract_features(
        speech_like(16_000), folder=folder / "states"
    ),
    "pack": _pack,
    "download": _download,
    "checkpoint": _checkpoint,
}


def assert_modes(folder: Path, umask: int) -> None:
    found = [path for path in folder.rglob("*") if path.suffix != ".flac"]
    assert any(path.is_file() for path in found)
    for path in found:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert oct(path.stat().st_mode & 0o777) == oct(wanted), path


@pytest.mark.parametrize("name", WRITERS)
def test_written_files_have_the_mode_of_the_umask(
    small_config, tmp_path: Path, umask: int, name: str
) -> None:
    model = PretrainedMaeAst(small_config(), "random_mask").eval()
    WRITERS[name](model, tmp_path)
    assert_modes(tmp_path, umask)
