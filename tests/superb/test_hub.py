"""Test the entry points for s3prl and torch.hub: copied, from a folder, and by URL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mae_ast.hub import download
from mae_ast.hub.download import DownloadError, name_from_url
from mae_ast.hub.registry import RELEASED
from mae_ast.superb import hub
from tests.sounds import speech_like

REPOSITORY = Path(__file__).parents[2]
ENTRIES = REPOSITORY / "s3prl" / "mae_ast"

# Runs programs in forked processes that have imported torch, which takes 3 seconds, but neither
# s3prl nor this package.
RUN_PROGRAMS = """
import json, os, sys
import torch, torchaudio, huggingface_hub, pooch

for program, folder, result in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.chdir(folder)
        exec(program)
        torch.save(upstream.eval()([torch.arange(8000) / 8000])["last_hidden_state"], result)
        os._exit(0)
    _, status = os.wait()
    assert status == 0, program
"""
FROM_HUB = """
upstream = torch.hub.load({entries!r}, "mae_ast_local", source="local", ckpt={checkpoint!r})
"""
COPIED = """
import s3prl.upstream.mae_ast.hubconf as hubconf
from s3prl.upstream.mae_ast.expert import UpstreamExpert
upstream = hubconf.mae_ast_local(ckpt={checkpoint!r}, model_config=None, refresh=False)
assert isinstance(upstream, UpstreamExpert) and hubconf.__file__.startswith(folder)
assert set(hubconf.__all__) >= set(
    "mae_ast_url mae_ast_frame mae_ast_patch mae_ast_local_tokens".split()
)
"""


def copy_of_s3prl(folder: Path) -> Path:
    """Link to the files of s3prl, except ``upstream/mae_ast``, which is copied from here."""
    import s3prl

    package = Path(s3prl.__file__).parent
    (folder / "s3prl" / "upstream").mkdir(parents=True)
    for source in (package, package / "upstream"):
        target = folder / source.relative_to(package.parent)
        for entry in source.iterdir():
            if entry.name not in ("upstream", "mae_ast", "__pycache__"):
                (target / entry.name).symlink_to(entry)
    ours = folder / "s3prl" / "upstream" / "mae_ast"
    ours.mkdir()
    for name in ("__init__.py", "expert.py", "hubconf.py"):
        text = (ENTRIES / name).read_text() if (ENTRIES / name).exists() else ""
        (ours / name).write_text(text)
    return folder


def test_no_package_shadows_s3prl():
    assert not list((REPOSITORY / "s3prl").rglob("__init__.py"))


def test_layout_is_set_by_argument_or_by_name(checkpoint):
    path = checkpoint()
    by_argument = hub.mae_ast_local(path, layout="tokens")
    by_name = hub.mae_ast_local_tokens(ckpt=path, model_config=None, refresh=False)
    assert by_argument.get_downsample_rates() == by_name.get_downsample_rates() == 320
    assert hub.mae_ast_local(path).get_downsample_rates() == 2_560


def test_upstream_works_copied_into_s3prl_and_from_a_folder(checkpoint, tmp_path):
    path = checkpoint()
    from_hub = FROM_HUB.format(entries=str(ENTRIES), checkpoint=str(path))
    programs = [
        (COPIED.format(checkpoint=str(path)), copy_of_s3prl(tmp_path / "copied")),
        (from_hub, tmp_path),
        (from_hub, REPOSITORY),
    ]
    results = [tmp_path / f"{number}.out" for number in range(len(programs))]
    request = [
        [*map(str, (*program, result))] for program, result in zip(programs, results, strict=True)
    ]
    command = [sys.executable, "-c", RUN_PROGRAMS, json.dumps(request)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = hub.mae_ast_local(path).eval()([torch.arange(8_000) / 8_000])
    for result in results:
        torch.testing.assert_close(torch.load(result), expected["last_hidden_state"])


@pytest.fixture
def fetched(checkpoint, tmp_path, monkeypatch):
    """Replace downloads by the tiny checkpoint; return the list of requests."""
    requests = []
    source = checkpoint()

    def fetch(urls, name, sha256=None, folder=None):
        target = (folder or tmp_path / "cache") / name
        if not target.exists():
            requests.append((list(urls), name, sha256))
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.with_name(f"{name}.sha256").write_text("old")
        return target

    monkeypatch.setattr(download, "download", fetch)
    monkeypatch.setenv("MAE_AST_CACHE", str(tmp_path / "cache"))
    return requests


@pytest.mark.parametrize("name", ["mae_ast_patch", "mae_ast_frame"])
def test_loads_released_models_by_name(fetched, tmp_path, name):
    entry, model = getattr(hub, name), RELEASED[name]
    for _ in range(2):
        upstream = entry(ckpt=None, model_config=None, refresh=False)
    assert fetched == [(list(model.urls), model.file_name, model.sha256)]
    assert upstream([speech_like(8_000)])["last_hidden_state"].shape == (1, 4, 256)
    (tmp_path / "cache" / f"{model.file_name}.sha256").write_text("of another file")
    entry(refresh=True)
    assert len(fetched) == 2
    assert (tmp_path / "cache" / f"{model.file_name}.sha256").read_text() == "old"


def test_loads_a_model_by_its_url(fetched):
    url = "https://example.org/models/mine.pt"
    hub.mae_ast_url(ckpt=url, model_config=None, refresh=False)
    hub.mae_ast_url(url, refresh=True)
    assert fetched == [([url], name_from_url(url), None)] * 2


def test_a_failed_refresh_keeps_the_cached_file(tmp_path, monkeypatch):
    def fail(urls, name, sha256=None, folder=None):
        raise DownloadError("no server")

    monkeypatch.setattr(download, "download", fail)
    monkeypatch.setenv("MAE_AST_CACHE", str(tmp_path))
    address = "https://example.org/models/mine.pt"
    (tmp_path / name_from_url(address)).write_bytes(b"model")
    with pytest.raises(DownloadError, match="no server"):
        hub.mae_ast_url(address, refresh=True)
    assert [p.name for p in tmp_path.iterdir()] == [name_from_url(address)]
