"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mae_ast.core.models.config import MaeAstConfig

TESTS = Path(__file__).parent
SLOW_FOLDERS = {"trainer", "superb", "golden", "scripts"}  # they train, or run s3prl


def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores, since tests wait for the programs that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow folders, and run them first, so that all processes end together."""
    for item in items:
        if _is_in_slow_folder(item):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not _is_in_slow_folder(item))


def _is_in_slow_folder(item: pytest.Item) -> bool:
    folders = item.path.relative_to(TESTS).parts if item.path.is_relative_to(TESTS) else ()
    return not SLOW_FOLDERS.isdisjoint(folders)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Restore the environment, through which a command hands values to the training it becomes."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def small_config() -> Callable[..., MaeAstConfig]:
    """Factory ``small_config(kernel=(16, 16), **fields)``: a small 2 + 1 layer model, no dropout.

    The kernel is (frames, mel bins).
    """

    def build(kernel: tuple[int, int] = (16, 16), **fields: Any) -> MaeAstConfig:
        values: dict[str, Any] = {
            "ast_kernel_size_time": kernel[0],
            "ast_kernel_stride_time": kernel[0],
            "ast_kernel_size_chan": kernel[1],
            "ast_kernel_stride_chan": kernel[1],
            "encoder_layers": 2,
            "encoder_embed_dim": 32,
            "encoder_ffn_embed_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_layers": 1,
            "decoder_embed_dim": 32,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        }
        return MaeAstConfig(**(values | fields))

    return build


@pytest.fixture
def mae_ast_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Run ``mae-ast`` in this process; return its output, and its error message if it fails."""
    from mae_ast.cli import main

    def run(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["mae-ast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main.main()
        message = end.value.code if isinstance(end.value.code, str) else ""
        assert "\n" not in message
        return capsys.readouterr().out, message

    return run


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Folder on a file system of 64 kB, or of the size given by the parameter, such as "2m"."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    size = getattr(request, "param", "64k")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
