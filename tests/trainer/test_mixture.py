"""Mixtures of corpora: shares, clips of an epoch, repeats, settings, and a run that resumes."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_ast.data.mixed_dataset import MixedDataset
from mae_ast.data.mixture import Mixture
from mae_ast.tasks.audio_task import data_folders
from mae_ast.tasks.mae_ast_classification import (
    MaeAstClassificationConfig,
    MaeAstClassificationTask,
)
from mae_ast.trainer import ranks

from .conftest import write_clips
from .test_dataset import batches, task_with
from .test_metrics_log import exact

NAMES = ("a", "b", "c")


def mixture(*shares: float) -> Mixture:
    return Mixture(NAMES[: len(shares)], shares)


# --- shares -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "shares", "counts"),
    [
        ((800, 200), (0.7, 0.3), [700, 300]),
        ((800, 200), (7, 3), [700, 300]),  # of any sum
        ((29, 71), (0.29, 0.71), [29, 71]),  # 0.29 * 100 is less than 29
        ((5, 5), (1, 2), [3, 7]),  # 3.33, 6.67
        ((1, 1, 1), (1, 1, 1), [1, 1, 1]),
        ((3, 3, 4), (1, 1, 1), [4, 3, 3]),  # of equal remainders, the first
        ((10, 20), (0, 1), [0, 30]),
        ((2_000_000, 280_000), (0.5, 0.5), [1_140_000, 1_140_000]),
    ],
)
def test_counts_follow_the_shares_and_add_up(sizes, shares, counts) -> None:
    assert mixture(*shares).counts(np.array(sizes)).tolist() == counts


def test_temperature_makes_shares_more_equal() -> None:
    sizes = np.array([900, 100])
    assert Mixture(("a", "b")).counts(sizes).tolist() == [900, 100]
    assert Mixture(("a", "b"), None, 2.0).counts(sizes).tolist() == [750, 250]  # roots: 30, 10
    assert Mixture(("a", "b"), None, float("inf")).counts(sizes).tolist() == [500, 500]
    assert Mixture(("a", "b"), None, 0.01).counts(sizes).tolist() == [1000, 0]


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.2, 0.8), (0.05, 0.95), (0, 1), (0.5, 0.5)])
def test_each_clip_is_drawn_floor_or_ceil_of_its_rate(shares: tuple[float, float]) -> None:
    """In one epoch and over any number of epochs, so a subsampled corpus is seen as a whole."""
    sizes = np.array([37, 11])
    drawn = mixture(*shares)
    counts = drawn.counts(sizes)
    total = np.zeros(48, dtype=np.int64)
    for epoch in range(1, 60):
        times = drawn.times(sizes, 5, epoch)
        total += times
        for own, sums, size, count in (
            (times[:37], total[:37], 37, counts[0]),
            (times[37:], total[37:], 11, counts[1]),
        ):
            assert own.sum() == count
            assert set(own) <= {count // size, -(-count // size)}
            assert set(sums) <= {epoch * count // size, -(-epoch * count // size)}


def test_draws_depend_on_seed_and_epoch_only() -> None:
    sizes, drawn = np.array([40, 10]), mixture(0.5, 0.5)
    one = drawn.times(sizes, 1, 3)
    assert one.tolist() == drawn.times(sizes, 1, 3).tolist()
    assert one.tolist() != drawn.times(sizes, 1, 4).tolist()
    assert one.tolist() != drawn.times(sizes, 2, 3).tolist()


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "shares", "temperature", "message"),
    [
        (("a",), [1.0], 1, r"task\.mixture=\[1\]: there is only one data folder, .*/a; name"),
        (("a",), None, 2, r"task\.mixture_temperature=2: there is only one data folder"),
        (("a", "b"), [0.5, 0.3, 0.2], 1, r"shares is 3, that of data folders 2 \(a, b\); one"),
        (("a", "b"), [1.5, -0.5], 1, r"task\.mixture=\[1\.5,-0\.5\]: shares must be 0 or greater"),
        (("a", "b"), [float("nan"), 1], 1, "shares must be 0 or greater"),
        (("a", "b"), [float("inf"), 1], 1, "shares must be 0 or greater"),
        (("a", "b"), [0, 0], 1, "and not all 0"),
        (("a", "b"), [1, 1], 2, "both set the shares; set only one of them"),
        (("a", "b", "../x/a"), None, 1, "/a is given twice"),
        (("1/Birds", "2/birds"), None, 1, "1/Birds and .*2/birds have the same name in logs"),
        (("a b", "a_b"), None, 1, "have the same name in logs, a_b; rename"),
        (("a", "per_s"), None, 1, "clips_per_s is another logged value; rename"),
    ],
)
def test_invalid_settings_give_one_line(tmp_path, folders, shares, temperature, message) -> None:
    root = tmp_path / "x"
    with pytest.raises(ValueError, match=message) as raised:
        Mixture.of([root / folder for folder in folders], shares, temperature)
    assert "\n" not in str(raised.value)


def test_a_link_to_another_folder_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="/b is given twice"):
        Mixture.of([tmp_path / "a", tmp_path / "b"], None, 1)


def test_a_single_folder_is_no_mixture(tmp_path: Path) -> None:
    assert Mixture.of([tmp_path], None, 1.0) is None


# --- the data set -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two corpora: ``large`` of 12 clips, ``small`` of 4; each has a validation clip."""
    folder = tmp_path_factory.mktemp("two")
    for number, (name, count) in enumerate((("large", 12), ("small", 4))):
        (folder / name).mkdir()
        seconds = [0.6 + 0.02 * clip for clip in range(count)]
        write_clips(folder / name, "train", seconds, first_seed=100 * number)
        write_clips(folder / name, "valid", [0.7], first_seed=100 * number + 50)
    return folder


def task_of(two: Path, split: str = "train", seed: int = 1, **options: Any) -> Any:
    options.setdefault("max_sample_size", 9_000)
    return task_with([two / "large", two / "small"], split, seed, **options)


def drawn_rows(epoch: list[dict[str, Any]]) -> Counter[int]:
    return Counter(row for batch in epoch for row in batch["id"].tolist())


def test_epochs_have_the_shares_and_rotate(two: Path) -> None:
    task = task_of(two, mixture=[0.25, 0.75])
    seen: Counter[int] = Counter()
    for epoch in batches(task, "train", 3):
        rows = drawn_rows(epoch)
        assert [sum(n for row, n in rows.items() if (row >= 12) == b) for b in (0, 1)] == [4, 12]
        assert all(rows[row] == 3 for row in range(12, 16))
        of_epoch = task.dataset("train").clips_of_epoch()
        assert of_epoch.tolist() == sorted(rows.elements())
        assert sum(batch["clips_of"]["large"] for batch in epoch) == 4
        assert sum(batch["clips_of"]["small"] for batch in epoch) == 12
        seen += rows
    assert all(seen[row] == 1 for row in range(12))  # 3 epochs of 4
    # An epoch does not depend on the epochs before it, and differs with the seed.
    orders = []
    for seed in (1, 1, 2):
        (third,) = batches(task_of(two, seed=seed, mixture=[0.25, 0.75]), "train", 1, first=3)
        orders.append([batch["id"].tolist() for batch in third])
    assert orders[0] == orders[1] == [batch["id"].tolist() for batch in epoch]
    assert orders[2] != orders[0]


def test_without_shares_each_clip_is_drawn_once(two: Path) -> None:
    for epoch in batches(task_of(two), "train", 2):
        assert drawn_rows(epoch) == Counter(range(16))


def test_repeats_have_other_crops_and_masks(two: Path) -> None:
    """The draws of a clip do not depend on the order in which its repeats are read."""
    dataset = task_of(two, mixture=[0.25, 0.75]).dataset("train")
    dataset.set_epoch(1)
    first, *repeats = (dataset[13 + 16 * repeat] for repeat in range(3))
    assert [clip.id for clip in (first, *repeats)] == [13] * 3
    states = [clip.mask_generator.get_state().numpy().tobytes() for clip in (first, *repeats)]
    assert len(set(states)) == 3
    assert len({clip.samples.numpy().tobytes() for clip in (first, *repeats)}) == 3
    assert (dataset[13].samples == first.samples).all()
    assert dataset.collater([first, *repeats])["files"].good == [13]


def test_two_ranks_share_the_clips_of_an_epoch(two: Path) -> None:
    (whole,) = batches(task_of(two, mixture=[0.25, 0.75]), "train", 1, max_sentences=2)
    parts: Counter[int] = Counter()
    for shard in range(2):
        task, options = task_of(two, mixture=[0.25, 0.75]), {"num_shards": 2, "shard_id": shard}
        (part,) = batches(task, "train", 1, max_sentences=2, **options)
        parts += drawn_rows(part)
    assert parts == drawn_rows(whole)


def test_shares_hold_among_the_clips_that_fit_into_a_batch(two: Path) -> None:
    """Four clips of each corpus fit."""
    dataset = task_of(two, mixture=[0.25, 0.75], max_sample_size=None).dataset("train")
    assert isinstance(dataset, MixedDataset)
    order, too_long = dataset.filter_indices_by_size(dataset.ordered_indices(), 10_600)
    assert too_long == [4, 5, 6, 7, 8, 9, 10, 11]
    assert Counter((order % 16 >= 12).tolist()) == {False: 2, True: 6}
    assert (dataset.num_tokens_vec(order) <= 10_600).all()
    again, _ = dataset.filter_indices_by_size(dataset.ordered_indices(), 10_600)
    assert again.tolist() == order.tolist()
    dataset.sizes[:12] = 20_000
    with pytest.raises(ValueError, match=r"large/train\.tsv: all clips are skipped for their len"):
        dataset.filter_indices_by_size(order, 10_600)


def test_another_rank_takes_the_rates_of_all_corpora_from_rank_0(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(two, tmp_path / "two")
    for path in folder.glob("*/train.tsv"):  # without sample rates
        path.write_text(path.read_text().replace("\t16000\n", "\n"))
    sent: list[bytes] = []
    monkeypatch.setattr(ranks, "from_first", lambda key, compute: sent.append(compute()) or sent[0])
    first = task_of(folder).dataset("train").manifest
    monkeypatch.setattr(ranks, "from_first", lambda key, compute: sent[0])
    other = task_of(folder).dataset("train").manifest
    assert other.sample_rates.tolist() == [16_000] * 16
    assert [each.sample_rates.sum() for each in other.manifests] == [0, 0]  # it read no headers
    assert other.digest() == first.digest()


def test_validation_reads_all_clips_once(two: Path) -> None:
    (epoch,) = batches(task_of(two, "valid", mixture=[1, 0]), "valid", 1)
    assert drawn_rows(epoch) == Counter(range(2))
    assert "clips_of" not in epoch[0]


def test_a_corpus_whose_clips_are_all_skipped_is_an_error(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.9), ("b", 0.5)):
        (tmp_path / name).mkdir()
        write_clips(tmp_path / name, "train", [seconds] * 2)
    folders = [tmp_path / name for name in "ab"]
    with pytest.raises(ValueError, match=r"b/train\.tsv: all clips are skipped for their length"):
        task_with(folders, "train", 1, min_sample_size=12_000)
    options = {"min_sample_size": 12_000, "mixture": [1, 0]}
    assert len(task_with(folders, "train", 1, **options).dataset("train")) == 2


def test_batches_must_be_rebuilt(two: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.rebuild_batches=false: a mixture"):
        task_of(two, rebuild_batches=False)


def test_fine_tuning_refuses_several_folders(two: Path) -> None:
    folders = [str(two / "large"), str(two / "small")]
    with pytest.raises(ValueError, match=r"^task\.data lists 2 folders; fine-tuning reads one"):
        MaeAstClassificationTask(MaeAstClassificationConfig(data=folders, seed=1))


@pytest.mark.parametrize("data", [None, [], [None]])
def test_data_without_a_folder_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"^task\.data=(null|\[\]|\[None\]); a folder is needed"):
        data_folders(data)


# --- a run --------------------------------------------------------------------------------------

RUN = (
    *("task.mixture=[0.3,0.7]", "dataset.batch_size=4", "task.max_sample_size=9000"),
    *("dataset.num_workers=0", "optimization.max_update=9", "checkpoint.save_interval_updates=6"),
    *("checkpoint.keep_interval_updates=-1", "model.input_stats=fixed"),
)


def test_a_run_logs_its_corpora_and_resumes_within_an_epoch(
    two: Path,
    tmp_path: Path,
    train_here: Callable[..., list[dict[str, str]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An epoch has 4 updates: 5 clips of large, 11 of small, 2 or 3 of them of a bad file."""
    data = shutil.copytree(two, tmp_path / "data")
    (data / "small" / "train_03.flac").write_bytes(b"no sound")
    folders: Any = f"[{data}/large,{data}/small]"

    train_here(folders, *RUN)
    text = caplog.text
    assert "clips per epoch: 5 of large (each of 12 clips 0.417 times), 11 of small" in text
    (skipped,) = re.findall("skipping bad file: .*", text)
    assert skipped.endswith(f"({data}/small/train.tsv:5)")
    warning = f"clips of {data}/large/train.tsv and {data}/small/train.tsv has mean"
    assert warning in text
    assert "mae-ast stats" not in text  # it reads a single manifest
    whole = exact(tmp_path)
    counts = [
        (line["clips_large"], line["clips_small"]) for line in whole if line["kind"] == "train"
    ]
    assert set(counts[:2]) <= {(5, 8), (5, 9)}
    by_update = [line for line in whole if line["kind"] == "train_inner"]
    assert sum(line["clips_small"] for line in by_update[:8]) == counts[0][1] + counts[1][1]

    checkpoints = tmp_path / "checkpoints"
    shutil.copy(checkpoints / "checkpoint_2_6.pt", checkpoints / "checkpoint_last.pt")
    train_here(folders, *RUN)
    assert exact(tmp_path) == whole
