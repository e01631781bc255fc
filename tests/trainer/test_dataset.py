"""Dataset for pretraining: selection, order, crops and masks of clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

import mae_ast.models.pretraining  # noqa: F401  (registers the models)
from mae_ast.core.frontend.collate import Collater
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.data.pretraining_dataset import PretrainingDataset
from mae_ast.tasks.mae_ast_pretraining import MaeAstPretrainingConfig, MaeAstPretrainingTask
from mae_ast.trainer.fairseq_patches import training_loop

from .conftest import sound, write_clips, write_manifest

# Waveform, visible ids and masked ids of each row, as bytes.
Contents = dict[int, tuple[bytes, bytes, bytes]]


@pytest.fixture(scope="module", autouse=True)
def _patched_fairseq() -> None:
    """Apply the patches of a training; without them each loader's workers take 5 s to stop."""
    training_loop.apply()


def load(data: Path, split: str = "train", seed: int = 1, **options: Any) -> PretrainingDataset:
    """Load a split as ``fairseq-hydra-train`` does."""
    return task_with(data, split, seed, **options).dataset(split)


def task_with(
    data: Path | Sequence[Path], split: str, seed: int, train_subset: str = "train", **options: Any
) -> MaeAstPretrainingTask:
    options.setdefault("mask_type", "chunk_mask")
    options.setdefault("fp16", True)  # the filterbank is left to the model
    task = MaeAstPretrainingTask(
        MaeAstPretrainingConfig(
            data=str(data) if isinstance(data, Path) else [str(folder) for folder in data],
            seed=seed,
            cpu=True,
            train_subset=train_subset,
            tensorboard_logdir=None,
            **options,
        )
    )
    model = MODEL_DATACLASS_REGISTRY["mae_ast"](
        encoder_layers=1, decoder_layers=1, encoder_embed_dim=8, encoder_attention_heads=2
    )
    model._name = "mae_ast"
    task.build_model(OmegaConf.structured(model))
    task.load_dataset(split)
    return task


def batches(
    task: MaeAstPretrainingTask, split: str, num_epochs: int, first: int = 1, **options: Any
) -> Iterator[list[dict[str, Any]]]:
    """Yield the batches of each epoch from the trainer's iterator."""
    iterator = task.get_batch_iterator(
        task.dataset(split), max_tokens=64_000, seed=1, epoch=first, data_buffer_size=2, **options
    )
    for _ in range(num_epochs):
        yield list(iterator.next_epoch_itr(shuffle=split == "train"))


def contents(epoch: list[dict[str, Any]]) -> Contents:
    """Return the contents of an epoch's batches by row, checking that each row occurs once."""
    clips: Contents = {}
    for batch in epoch:
        inputs = batch["net_input"]
        for position, row in enumerate(batch["id"].tolist()):
            assert row not in clips
            parts = (inputs["source"], inputs["mask"].visible_ids, inputs["mask"].masked_ids)
            clips[row] = tuple(part[position].numpy().tobytes() for part in parts)
    return clips


# --- sizes --------------------------------------------------------------------------------------


@pytest.fixture
def two_rates(tmp_path: Path) -> Path:
    """Clips of 0.5, 1, 2 and 3 s at 16 kHz and at 48 kHz."""
    for split, columns in (("train", 3), ("valid", 2)):  # valid.tsv lists no rates: read from files
        rows = []
        for rate in (16_000, 48_000):
            for seconds in (0.5, 1, 2, 3):
                name = f"{split}_{rate}_{seconds}.flac"
                samples = sound(seconds, int(seconds * 2), rate)
                soundfile.write(tmp_path / name, samples, rate)
                rows.append((name, len(samples), rate)[:columns])
        write_manifest(tmp_path / f"{split}.tsv", rows)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "valid"])
def test_sizes_are_in_samples_at_16_khz(two_rates: Path, split: str) -> None:
    assert load(two_rates, split).sizes.tolist() == [8_000, 16_000, 32_000, 48_000] * 2

    long_enough = load(two_rates, split, min_sample_size=16_000)
    assert long_enough.sizes.tolist() == [16_000, 32_000, 48_000] * 2
    assert load(two_rates, split, min_sample_size=16_001).sizes.tolist() == [32_000, 48_000] * 2

    assert (
        load(two_rates, split, max_keep_size=32_000).sizes.tolist() == [8_000, 16_000, 32_000] * 2
    )
    assert load(two_rates, split, max_keep_size=31_999).sizes.tolist() == [8_000, 16_000] * 2

    cropped = load(two_rates, split, max_sample_size=20_000)
    assert cropped.sizes.tolist() == [8_000, 16_000, 20_000, 20_000] * 2
    assert [len(cropped[index].samples) for index in range(8)] == cropped.sizes.tolist()
    assert [cropped.num_tokens(index) for index in range(8)] == cropped.sizes.tolist()


def test_48_khz_clips_are_resampled(two_rates: Path) -> None:
    data = load(two_rates, max_sample_size=20_000, random_crop=False)
    for at_16, at_48 in zip(range(4), range(4, 8), strict=True):
        # The noise differs, but the tone is far louder.
        a, b = data[at_16].samples.double(), data[at_48].samples.double()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.95


# --- random draws -------------------------------------------------------------------------------


def test_epochs_do_not_depend_on_workers(corpus: Path) -> None:
    epochs = {}
    for num_workers in (0, 1, 3):
        task = task_with(corpus, "train", seed=1, max_sample_size=16_000)
        epochs[num_workers] = list(batches(task, "train", 3, num_workers=num_workers))
    for num_workers in (1, 3):
        for one, other in zip(epochs[0], epochs[num_workers], strict=True):
            assert [b["id"].tolist() for b in one] == [b["id"].tolist() for b in other]
            assert contents(one) == contents(other)


def test_crops_and_masks_differ_by_epoch_and_seed(corpus: Path) -> None:
    task = task_with(corpus, "train", seed=1, max_sample_size=12_000)
    first, second, third = map(contents, batches(task, "train", 3, num_workers=2))
    for one, other in ((first, second), (second, third)):
        assert sorted(one) == sorted(other) == list(range(26))
        for row in one:
            assert one[row][0] != other[row][0], "same crop"
            assert one[row][2] != other[row][2], "same mask"

    # An epoch does not depend on the epochs before it.
    task = task_with(corpus, "train", seed=1, max_sample_size=12_000)
    (again,) = map(contents, batches(task, "train", 1, first=3, num_workers=0))
    assert again == third

    task = task_with(corpus, "train", seed=2, max_sample_size=12_000)
    (other_seed,) = map(contents, batches(task, "train", 1, first=3, num_workers=0))
    assert all(other_seed[row][0] != third[row][0] for row in third)
    assert all(other_seed[row][2] != third[row][2] for row in third)


def test_training_crops_at_the_beginning_without_random_crop(corpus: Path) -> None:
    task = task_with(corpus, "train", seed=1, max_sample_size=12_000, random_crop=False)
    for epoch in batches(task, "train", 2):
        for row, (source, _, _) in contents(epoch).items():
            samples, _ = soundfile.read(corpus / f"train_{row:02d}.flac", dtype="int16")
            assert source == samples[:12_000].tobytes()


def test_validation_epochs_are_equal(corpus: Path) -> None:
    task = task_with(corpus, "valid", seed=1, max_sample_size=12_000)
    epochs = list(batches(task, "valid", 2, num_workers=2))
    epochs += list(batches(task, "valid", 1, first=7, num_workers=0))
    orders = [[batch["id"].tolist() for batch in epoch] for epoch in epochs]
    assert orders[0] == orders[1] == orders[2]
    assert contents(epochs[0]) == contents(epochs[1]) == contents(epochs[2])
    assert sorted(contents(epochs[0])) == list(range(5))


def test_two_ranks_read_each_clip_once(corpus: Path) -> None:
    task = task_with(corpus, "train", seed=1, max_sample_size=16_000)
    (whole,) = batches(task, "train", 1, first=2)
    parts = []
    for shard in range(2):
        task = task_with(corpus, "train", seed=1, max_sample_size=16_000)
        (part,) = batches(task, "train", 1, first=2, num_shards=2, shard_id=shard)
        assert len(part) == 4
        parts += part
    assert contents(parts) == contents(whole)
    assert sorted(contents(whole)) == list(range(26))


@pytest.mark.parametrize("max_sentences", [1, 2])
def test_clips_of_equal_length_are_shuffled(tmp_path: Path, max_sentences: int) -> None:
    write_clips(tmp_path, "train", [0.3] * 12)
    task = task_with(tmp_path, "train", seed=1)
    orders = [
        np.concatenate([batch["id"] for batch in epoch]).tolist()
        for epoch in batches(task, "train", 3, max_sentences=max_sentences)
    ]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert list(range(12)) not in orders


@pytest.mark.parametrize("split", ["train", "unbalanced"])
def test_train_subset_of_any_name_is_shuffled(tmp_path: Path, split: str) -> None:
    write_clips(tmp_path, split, [0.5] * 4)
    data = load(tmp_path, split, train_subset=split, max_sample_size=4_000)
    data.set_epoch(1)
    first = data[0].samples
    data.set_epoch(2)
    assert not torch.equal(first, data[0].samples)


def test_an_epoch_does_not_depend_on_earlier_bad_files(tmp_path: Path) -> None:
    write_clips(tmp_path, "train", [1.0, 4.0, 1.0])
    half = tmp_path / "train_01.flac"  # truncated: some crops begin after its end
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])

    def read(first: int, num_epochs: int) -> list[Contents]:
        task = task_with(tmp_path, "train", seed=1, max_sample_size=16_000, min_sample_size=8_000)
        return list(map(contents, batches(task, "train", num_epochs, first=first)))

    all_epochs = read(1, 8)
    assert [sorted(epoch) for epoch in all_epochs] == [[0, 1, 2]] * 8
    assert all_epochs == [read(epoch, 1)[0] for epoch in range(1, 9)]


# --- batches without clips ----------------------------------------------------------------------


def test_batch_without_usable_clips_has_zero_weight() -> None:
    batch = Collater(MaeAstConfig(), "chunk_mask")([])
    assert batch.num_masked == 0
    assert batch.num_samples == 0
    assert batch.num_visible == 0
