"""Features, scores and statistics of segments equal those of the same segments as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.core.models.config import AstConfig
from mae_ast.evaluate import extract as extraction
from mae_ast.evaluate.extract import Extraction, extract
from mae_ast.evaluate.predict import score_manifest
from mae_ast.evaluate.probe_data import read_labelled
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub.load import PretrainedAst, PretrainedMaeAst
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import pcm16, speech_like

# Number of the recording, start and length at 16 kHz; some overlap, and one follows another.
SEGMENTS = (
    *((0, 0, 16_000), (1, 4_000, 20_000), (0, 16_000, 8_000), (1, 0, 300), (0, 12_345, 30_001)),
    *((1, 24_000, 24_000), (0, 40_000, 8_000), (1, 8_000, 8_000)),
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folder whose manifest lists segments of two recordings, and folder of the cut segments."""
    long, cut = tmp_path / "long", tmp_path / "cut"
    sounds = [pcm16(speech_like(48_000, number)).numpy() for number in range(2)]
    for each in (long, cut):
        each.mkdir()
        Labels(("one", "two"), ("one", "two")).write(each / "labels.csv")
        write_clip_labels(each / "valid.lbl", [[("one", "two")[n % 2]] for n in range(8)])
    rows, cuts = [], []
    for number, samples in enumerate(sounds):
        soundfile.write(long / f"{number}.flac", samples, 16_000)
    for index, (number, start, length) in enumerate(SEGMENTS):
        soundfile.write(cut / f"{index}.flac", sounds[number][start : start + length], 16_000)
        rows.append((f"{number}.flac", length, 16_000, start))
        cuts.append((f"{index}.flac", length, 16_000))
    write_manifest(long / "valid.tsv", ".", rows)
    write_manifest(cut / "valid.tsv", ".", cuts)
    return long, cut


def test_extracted_features_equal_those_of_cut_files(folders, small_config, tmp_path, monkeypatch):
    model = PretrainedMaeAst(small_config((16, 32)), "random_mask").eval()
    wanted = Extraction(layer=2, pool=False, tokens=False, shard=0, shards=1)

    def run(folder: Path, out: str) -> bytes:
        path, bad = extract(model, Manifest.read(folder / "valid.tsv"), tmp_path / out, wanted)
        assert bad == 1  # 300 samples are shorter than a patch
        return path.read_bytes() + path.with_suffix(".len").read_bytes()

    long, cut = folders
    expected = run(cut, "of cut files")
    assert run(long, "of segments") == expected

    original, calls = extraction._features, []

    def stopping(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    few = {"batch_samples": 40_000}
    batches = extraction.for_each_batch
    monkeypatch.setattr(extraction, "for_each_batch", lambda *a, **k: batches(*a, **k, **few))
    whole = run(cut, "in small batches")
    monkeypatch.setattr(extraction, "_features", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(long, "resumed")
    monkeypatch.setattr(extraction, "_features", original)
    assert run(long, "resumed") == whole


def test_other_segments_do_not_resume_an_extraction(folders, small_config, tmp_path):
    model = PretrainedMaeAst(small_config((16, 32)), "random_mask").eval()
    wanted = Extraction(layer=2, pool=True, tokens=False, shard=0, shards=1)
    path = folders[0] / "valid.tsv"
    extract(model, Manifest.read(path), tmp_path / "out", wanted)
    path.write_text(path.read_text().replace("\t12345\n", "\t12346\n"))
    with pytest.raises(ValueError, match="was started with content"):
        extract(model, Manifest.read(path), tmp_path / "out", wanted)


def test_scores_equal_those_of_cut_files(folders, tmp_path):
    config = AstConfig(**SMALL, input_frames=128, num_classes=2, input_mean=-6.0)
    model = with_random_weights(PretrainedAst(config, labels=("one", "two")))
    model.save_pretrained(tmp_path / "ast")
    classifier = load_finetuned(tmp_path / "ast")
    (ours, used), (theirs, usable) = (
        score_manifest(classifier, Manifest.load(folder / "valid.tsv")) for folder in folders
    )
    np.testing.assert_array_equal(used, usable)
    assert used.tolist() == [True] * 3 + [False] + [True] * 4
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours[used, 0])) == 7


def test_commands_read_segments(folders, mae_ast_command):
    for command in (["stats", "--max-files", "8"], ["stats", "--window", "hanning"]):
        (ours, said), (theirs, also_said) = (
            mae_ast_command(command[0], folder / "valid.tsv", *command[1:]) for folder in folders
        )
        assert ours == theirs
        assert said == also_said


def test_segments_of_a_file_are_one_group_of_a_probe(folders):
    long, cut = folders
    assert read_labelled(long / "valid.tsv").groups.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert read_labelled(cut / "valid.tsv").groups.tolist() == list(range(8))
    rows = [("0.flac", 1_000, 16_000, 1_000 * start) for start in range(8)]
    write_manifest(long / "valid.tsv", ".", rows)
    assert read_labelled(long / "valid.tsv").groups.tolist() == list(range(8))
