"""Dataset for classification: sampling, augmentation and batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import data_utils

from mae_ast.core.frontend.augment import Augmentation
from mae_ast.core.io.labels import ClipLabels
from mae_ast.core.io.manifest import Manifest
from mae_ast.data.classification_dataset import ClassificationDataset, sampling_weights
from mae_ast.trainer.fairseq_patches import training_loop

from .classification import LABELS, write_corpus, write_tones

PATCH_SAMPLES = 2_800


@pytest.fixture(scope="module", autouse=True)
def _patched_fairseq() -> None:
    """Apply the patches of a training; without them each loader's workers take 5 s to stop."""
    training_loop.apply()


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 clips: 20 low tones, 4 middle tones, and one with a high and a low tone."""
    folder = tmp_path_factory.mktemp("uneven")
    LABELS.write(folder / "labels.csv")
    write_tones(folder, "train", [[0]] * 20 + [[1]] * 4 + [[2, 0]])
    return folder


def load(folder: Path, split: str = "train", **options: Any) -> ClassificationDataset:
    manifest = Manifest.load(folder / f"{split}.tsv")
    labels = ClipLabels.read(folder / f"{split}.lbl", LABELS, len(manifest))
    options = {"patch_samples": PATCH_SAMPLES, "seed": 1, "shuffle": True} | options
    return ClassificationDataset(manifest, labels, **options)


def order(data: ClassificationDataset, epoch: int) -> np.ndarray:
    """Return the order of an epoch, seeded as fairseq does."""
    with data_utils.numpy_seed(1 + epoch):
        return data.ordered_indices()


def same(one: Any, other: Any) -> bool:
    return (
        torch.equal(one.samples, other.samples)
        and torch.equal(one.target, other.target)
        and torch.equal(one.hidden, other.hidden)
    )


ALL_KINDS = Augmentation(
    mixup=0.5, freq_mask=40, time_mask=20, shift_samples=1_000, noise_snr_db=20.0
)


def test_validation_clips_are_unchanged(tones: Path) -> None:
    data = load(tones, "valid", shuffle=False, augmentation=ALL_KINDS, balanced=True)
    assert sorted(order(data, 1).tolist()) == list(range(9))
    for row in range(9):
        clip = data[row]
        assert clip is not None
        assert clip.target.tolist() == np.eye(3)[row % 3].tolist()
        assert len(clip.samples) == data.manifest.lengths[row]
        assert clip.hidden.sum() == 0
    batch = data.collater([data[0], data[4]])
    assert batch["net_input"]["hidden"] is None


def test_augmentation_depends_on_epoch_and_clip_only(tones: Path) -> None:
    data, again = (load(tones, augmentation=ALL_KINDS, max_samples=4_000) for _ in range(2))
    for each in (data, again):
        each.set_epoch(3)
    backwards = {row: again[row] for row in reversed(range(24))}
    assert all(same(data[row], backwards[row]) for row in range(24))
    data.set_epoch(4)
    assert not any(same(data[row], backwards[row]) for row in range(24))
    # A second draw of a clip in the same epoch differs from the first.
    repeats = [data[row + 24] for row in range(24)]
    assert not any(same(data[row], repeats[row]) for row in range(24))
    assert [clip.id for clip in repeats] == list(range(24))


def test_mixup_targets_match_the_mixing_ratio(tones: Path) -> None:
    mixup = Augmentation(mixup=0.5)
    data, plain = load(tones, augmentation=mixup), load(tones)
    targets = []
    for epoch in range(1, 16):
        data.set_epoch(epoch)
        for row in range(24):
            clip, own = data[row], plain[row]
            targets.append(clip.target.numpy())
            assert clip.target.sum() == pytest.approx(1)
            assert torch.equal(clip.samples, own.samples) == (
                torch.equal(clip.target, own.target)
                and torch.allclose(clip.samples.float(), own.samples.float(), atol=1)
            )
            if clip.target.max() < 0.999:  # two classes: the clip's tone is scaled by the ratio
                first = int(own.target.argmax())
                a, b = clip.samples.double(), own.samples.double()
                ratio = float((a @ b) / (b @ b))
                assert ratio == pytest.approx(float(clip.target[first]), abs=0.1)
    two_classes = np.mean([target.max() < 0.999 for target in targets])
    assert two_classes == pytest.approx(0.5 * 2 / 3, abs=0.07)  # the partner has another class


def test_balanced_sampling_draws_all_classes_equally_often(uneven: Path) -> None:
    data = load(uneven, balanced=True)
    # 1 / 21 for each low tone, 1 / 4 for each middle tone, 1 + 1 / 21 for the clip with both.
    weights = np.array([1 / 21] * 20 + [1 / 4] * 4 + [22 / 21])
    np.testing.assert_allclose(sampling_weights(data.labels, data.rows), weights / weights.sum())
    orders = [order(data, epoch) for epoch in range(1, 201)]
    assert all(len(each) == 25 for each in orders)
    drawn = np.bincount(np.concatenate(orders) % 25, minlength=25) / (200 * 25)
    assert drawn[:20].sum() == pytest.approx(20 / 21 / 3, abs=0.03)
    assert drawn[20:24].sum() == pytest.approx(1 / 3, abs=0.03)
    assert drawn[24] == pytest.approx(22 / 21 / 3, abs=0.03)
    for each in orders[:20]:
        assert len(set(each.tolist())) == 25  # each draw of a clip has its own index
        for row in set((each % 25).tolist()):
            repeats = sorted(each[each % 25 == row] // 25)
            assert repeats == list(range(len(repeats)))
    assert np.array_equal(orders[0], order(load(uneven, balanced=True), 1))
    sizes = data.num_tokens_vec(orders[0])
    assert np.array_equal(sizes, data.sizes[orders[0] % 25])
    kept, skipped = data.filter_indices_by_size(orders[0], int(np.median(sizes)))
    assert len(kept) + len(skipped) == 25
    assert data.num_tokens_vec(kept).max() <= np.median(sizes)


def test_batches_are_zero_padded_and_keep_exact_targets(tones: Path) -> None:
    data = load(tones, augmentation=ALL_KINDS)
    clips = [data[row] for row in range(4)]
    batch = data.collater([clips[0], None, *clips[1:]])
    assert batch["nsentences"] == 4
    longest = max(len(clip.samples) for clip in clips)
    source, lengths = batch["net_input"]["source"], batch["net_input"]["lengths"]
    assert source.shape == (4, longest)
    assert lengths.tolist() == [len(clip.samples) for clip in clips]
    assert batch["num_samples"] == lengths.sum()
    for row, clip in zip(source, clips, strict=True):
        assert torch.equal(row[: len(clip.samples)], clip.samples)
        assert not row[len(clip.samples) :].any()
    assert torch.equal(
        batch["target"].view(torch.float32), torch.stack([clip.target for clip in clips])
    )


def test_batch_without_usable_clips_has_zero_weight(tones: Path) -> None:
    batch = load(tones, augmentation=ALL_KINDS).collater([None, None])
    assert batch["nsentences"] == batch["num_samples"] == len(batch["id"]) == 0
    assert batch["target"].shape == (0, 3)
    assert batch["net_input"]["source"].shape == (1, PATCH_SAMPLES)


def test_clip_drawn_repeatedly_is_counted_once(tones: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tones, tmp_path / "tones")
    data = load(folder, balanced=True)
    Path(data.manifest.audio_path(2)).write_bytes(b"no music")
    data.batch_by_size(np.array([1, 2, 25, 26, 50]), max_sentences=1)
    assert data.num_used == 2
    files = data.collater([data[index] for index in (1, 2, 25, 26, 50)])["files"]
    assert files.good == [1]
    assert [(file.id, file.repeat) for file in files.bad] == [(2, 0), (2, 1), (2, 2)]
    data.bad_files.add(files)
    assert data.bad_files.counts() == (1, 2)


def test_epochs_do_not_depend_on_workers(tones: Path) -> None:
    loaded = []
    for workers in (0, 1):
        data = load(tones, augmentation=ALL_KINDS, max_samples=4_000)
        data.set_epoch(2)
        loader = torch.utils.data.DataLoader(
            data, 6, collate_fn=data.collater, num_workers=workers, shuffle=False
        )
        loaded.append(list(loader))
    for one, other in zip(*loaded, strict=True):
        for key in ("source", "hidden"):
            assert torch.equal(one["net_input"][key], other["net_input"][key])
        assert torch.equal(one["target"], other["target"])
