"""The core works without the packages that only other parts of the project need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mae_ast.core

pytestmark = pytest.mark.slow

FOREIGN = (
    *("fairseq", "fairseq_cli", "hydra", "omegaconf", "s3prl", "tensorboard", "tensorboardX"),
    *("matplotlib", "tqdm", "typer"),
)
CORE = Path(mae_ast.core.__file__).parent
FILES = sorted(CORE.rglob("*.py"))

PROGRAM = """
import importlib, pkgutil, sys

blocked = set(sys.argv[1].split(","))

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for name in blocked:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not hidden")

import torch, mae_ast.core
for module in pkgutil.walk_packages(mae_ast.core.__path__, "mae_ast.core."):
    importlib.import_module(module.name)

from mae_ast.core.frontend.collate import Clip, Collater, clip_generator
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.mae_ast import MaeAst

config = MaeAstConfig(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64,
                      encoder_attention_heads=2, decoder_layers=1, decoder_embed_dim=32,
                      dropout=0.0, attention_dropout=0.0)
torch.manual_seed(0)
samples = (torch.randn(2, 8000) * 3000).to(torch.int16)
clips = [Clip.of(n, row, seed=0, epoch=0) for n, row in enumerate(samples)]
batch = Collater(config, "chunk_mask")(clips)
model = MaeAst(config)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
losses = []
for _ in range(5):
    p = model(batch.source, batch.lengths, batch.mask)
    loss = 10 * reconstruction_loss(p.reconstruction, p.target)
    loss = (loss + info_nce_loss(p.classification, p.target).loss) / batch.num_masked
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0], losses
found = sorted(name for name in sys.modules if name.split(".")[0] in blocked)
print("trained", found)
"""


def test_trains_without_foreign_packages():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(FOREIGN)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "trained []"


def imported(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_neither_foreign_packages_nor_adapters(path):
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & set(FOREIGN)
    own = {name for name in names if name.split(".")[0] == "mae_ast"}
    assert all(name.startswith("mae_ast.core") for name in own)


def test_all_files_are_checked():
    paths = {str(path.relative_to(CORE)) for path in FILES}
    assert {"models/mae_ast.py", "io/audio.py", "frontend/masking.py"} <= paths
    assert "torch" in imported(CORE / "models" / "mae_ast.py")
