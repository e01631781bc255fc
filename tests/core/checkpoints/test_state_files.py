"""Files that are not checkpoints are refused with a one-line message naming their kind."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import nn

from mae_ast.core.checkpoints.reader import CheckpointError, read_checkpoint
from mae_ast.core.checkpoints.state_files import read_state
from mae_ast.core.io.file_kinds import describe


def html(path: Path) -> None:
    path.write_bytes(b"\n<!-- saved -->\n<!DOCTYPE html>\n<html><body>404</body></html>")


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 347000000\n")


def onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", [info], [info])
    onnx.save(onnx.helper.make_model(graph), path)


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())


def zip_of_others(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/readme.txt", "text")


def torch_script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def wav(path: Path) -> None:
    soundfile.write(path, np.zeros(100), 16_000, format="WAV")


KINDS = {
    "web page": html,
    "Git LFS pointer": git_lfs_pointer,
    "XML": lambda path: path.write_text('<?xml version="1.0"?><Error>AccessDenied</Error>'),
    "ONNX": onnx,
    "JSON": lambda path: path.write_text('{"hidden_size": 768}'),
    "text file": lambda path: path.write_text("see https://example.org für die Gewichte\n" * 200),
    "an empty file": lambda path: path.touch(),
    "compressed": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "archive; unpack": tar,
    "ZIP archive that torch.save did not write": zip_of_others,
    ".npz": npz,
    "NumPy array": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}"),
    "HDF5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600)),
    "SavedModel": lambda path: path.write_bytes(b"\x08\x01\x12\x80\x02\x0a" + bytes(300)),
    "TensorFlow Lite": lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(300)),
    "audio": wav,
    "TorchScript": torch_script,
}


def one_line(path: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "\033" not in message
    assert "weights_only" not in message
    return message


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_formats_are_named(tmp_path, capsys, kind, suffix):
    path = tmp_path / f"a{suffix}"
    KINDS[kind](path)
    message = one_line(path)
    assert "not a checkpoint but " in message
    assert kind in message
    assert capsys.readouterr().err == ""


def test_tensorflow_checkpoint_is_recognised_by_name(tmp_path):
    path = tmp_path / "model.ckpt.data-00000-of-00001"
    path.write_bytes(np.random.default_rng(0).bytes(1_000))
    assert "part of a TensorFlow checkpoint" in one_line(path)


def test_random_bytes_and_truncated_checkpoints_are_damaged(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": {"a": torch.zeros(1_000)}}, path)
    assert describe(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:2_000])
    assert "damaged or incomplete, or not a checkpoint (2,000 bytes)" in one_line(path)
    path.write_bytes(pickle.dumps({"a": 1})[:-3])
    assert "damaged or incomplete" in one_line(path)


class Network(nn.Module):
    """A module defined in user code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)


def test_pickled_module_gets_advice_to_save_its_state_dict(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(Network(), path)
    expected = f"holds a pickled module ({Network.__module__}.Network); save its state_dict() "
    assert expected in one_line(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_that_could_run_code_are_named(tmp_path, is_zip):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "a.pt"
    torch.save({"model": {}, "x": Payload()}, path, _use_new_zipfile_serialization=is_zip)
    assert "holds objects that could run code (posix.mkdir)" in one_line(path)
    assert not (tmp_path / "ran").exists()


def test_object_arrays_cannot_run_code(tmp_path):
    """NumPy's reconstruction is allowed, but the contents of arrays are checked as well."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "a.pt"
    torch.save({"x": np.array([Payload()], dtype=object)}, path)
    assert "could run code (posix.mkdir)" in one_line(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "u1", "?"])
def test_numpy_numbers_are_read(tmp_path, dtype):
    value = np.ones(3, dtype)
    torch.save({"scalar": value[0], "array": value}, tmp_path / "a.pt")
    found = read_state(tmp_path / "a.pt")
    assert found["model"].keys() == {"scalar", "array"}
    assert found["model"]["scalar"] == value[0]
    assert np.array_equal(found["model"]["array"].numpy(), value)


def test_format_is_recognised_by_content(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file; .* model\.pt"):
        read_checkpoint(tmp_path / "model.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "has no 'cfg'" in one_line(tmp_path / "model.safetensors")


def test_safetensors_of_another_model_are_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(CheckpointError, match=r"of this project; its model_type is 'wav2vec2'$"):
        read_checkpoint(tmp_path)
