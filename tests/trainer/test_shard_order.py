"""Epochs by groups of shards, and training on remote shards whose server fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.remote import fetch, patience
from mae_ast.core.io.remote.cache import GB
from mae_ast.data.shard_order import ShardOrder
from mae_ast.prepare.pack import pack
from mae_ast.trainer.fairseq_patches import training_loop
from tests.web_server import Handler, WebServer, gives, resets

from .conftest import ONLY_TRAINING, sound, write_manifest
from .test_dataset import load, task_with

NUM_SHARDS, PER_SHARD = 6, 4
SHARD_BYTES = 150_000  # four WAV files of a second, not five

Train = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module", autouse=True)
def _patched_fairseq() -> None:
    training_loop.apply()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of six shards with four clips of about a second each."""
    folder = tmp_path_factory.mktemp("shards")
    lengths = np.random.default_rng(0).permutation(NUM_SHARDS * PER_SHARD) * 10 + 16_000
    rows = [(f"{number}.wav", length, 16_000) for number, length in enumerate(lengths.tolist())]
    for number, (name, length, rate) in enumerate(rows):
        soundfile.write(folder / name, sound(length / rate, number), rate)
    write_manifest(folder / "train.tsv", rows)
    pack(Manifest.load(folder / "train.tsv"), folder / "packed", SHARD_BYTES)
    assert len(list((folder / "packed").glob("*.tar"))) == NUM_SHARDS
    return folder / "packed"


@pytest.fixture
def server(shards: Path) -> Iterator[WebServer]:
    with WebServer() as server:
        for path in shards.iterdir():
            server.url(f"/{path.name}", gives(path.read_bytes()))
        yield server


@pytest.fixture
def remote(
    shards: Path, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Folder whose train.tsv names the shards on the server; the cache holds two of them."""
    text = (shards / "train.tsv").read_text()
    (tmp_path / "train.tsv").write_text(
        text.replace(".\n", f"http://127.0.0.1:{server.server_port}\n", 1)
    )
    monkeypatch.setenv("MAE_AST_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_GB", str(2.1 * SHARD_BYTES / GB))
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "60")
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(patience, "_given_up", {})
    monkeypatch.setattr(fetch, "_sums", {})
    return tmp_path


def iterator(data: Path, epoch: int = 1, **options: Any) -> Any:
    keys = ("shards_at_once", "rebuild_batches")
    settings = {key: options.pop(key) for key in keys if key in options}
    task = task_with(data, "train", 1, **settings)
    return task.get_batch_iterator(
        task.dataset("train"), max_sentences=2, seed=1, epoch=epoch, **options
    )


def rows_of(epoch: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in epoch]


def groups_of(batches: list[list[int]]) -> list[set[int]]:
    """Return the shards of consecutive groups of batches, checking that these do not mix."""
    shards = [{row // PER_SHARD for row in batch} for batch in batches]
    groups: list[set[int]] = []
    for at in range(0, len(shards), PER_SHARD):  # two shards: four batches of two clips
        groups.append(set().union(*shards[at : at + PER_SHARD]))
    assert all(len(group) == 2 for group in groups)
    assert set().union(*groups) == set(range(NUM_SHARDS))
    return groups


def test_epochs_consist_of_groups_of_shards(shards: Path) -> None:
    epochs = iterator(shards, shards_at_once=2)
    seen, groups = [], []
    for _ in range(4):
        batches = rows_of(epochs.next_epoch_itr())
        assert sorted(chain(*batches)) == list(range(NUM_SHARDS * PER_SHARD))
        groups.append(groups_of(batches))
        seen.append(batches)
    assert len({str(found) for found in groups}) > 2  # other groups in each epoch
    assert len({frozenset(group) for found in groups for group in found}) > NUM_SHARDS // 2
    lengths = load(shards).lengths
    mean = [lengths[np.array(batch)].mean() for batch in seen[0][:PER_SHARD]]
    assert mean not in (sorted(mean), sorted(mean)[::-1])  # shuffled within the group
    assert seen == [rows_of(iterator(shards, n, shards_at_once=2).next_epoch_itr())
                    for n in range(1, 5)]  # fmt: skip


def test_without_groups_all_shards_are_shuffled(shards: Path) -> None:
    assert load(shards).shard_order is None
    batches = rows_of(iterator(shards).next_epoch_itr())
    with pytest.raises(AssertionError):
        groups_of(batches)


def test_ranks_read_the_same_groups(shards: Path) -> None:
    whole = rows_of(iterator(shards, shards_at_once=2).next_epoch_itr())
    for rank in range(2):
        part = iterator(shards, shards_at_once=2, num_shards=2, shard_id=rank)
        assert rows_of(part.next_epoch_itr()) == whole[rank::2]


def test_blocks_of_all_ranks_stay_together(shards: Path) -> None:
    """Use ``dataset.grouped_shuffling``."""
    alone = iterator(shards, shards_at_once=2, num_shards=2, grouped_shuffling=True)
    sorted_batches = [list(batch) for batch in alone.frozen_batches]
    batches = alone.ordered_batches(1, False, True)
    places = [sorted_batches.index(list(batch)) for batch in batches]
    assert sorted(places) == list(range(0, len(sorted_batches), 2))


@pytest.mark.parametrize("epoch", [1, 3])
def test_resuming_within_an_epoch(shards: Path, epoch: int) -> None:
    first = iterator(shards, epoch, shards_at_once=2)
    batches = first.next_epoch_itr()
    for _ in range(5):
        next(batches)
    state = first.state_dict()
    left, following = rows_of(batches), rows_of(first.next_epoch_itr())
    second = iterator(shards, state["epoch"], shards_at_once=2)
    second.load_state_dict(state)
    assert rows_of(second.next_epoch_itr()) == left
    assert rows_of(second.next_epoch_itr()) == following


def test_kept_batches_are_shuffled_within_their_groups(shards: Path) -> None:
    epochs = iterator(shards, shards_at_once=2, rebuild_batches=False)
    first, second = (rows_of(epochs.next_epoch_itr()) for _ in range(2))
    assert groups_of(first) == groups_of(second)
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_batch_of_two_groups_stays_between_them(shards: Path) -> None:
    task = task_with(shards, "train", 1, shards_at_once=2)
    for epoch in range(1, 6):
        epochs = task.get_batch_iterator(
            task.dataset("train"), max_sentences=3, seed=1, epoch=epoch, disable_iterator_cache=True
        )
        rows = [row for batch in rows_of(epochs.next_epoch_itr()) for row in batch]
        changes = [a // PER_SHARD != b // PER_SHARD for a, b in pairwise(rows)]
        groups = [{row // PER_SHARD for row in rows[at : at + 8]} for at in (0, 8, 16)]
        assert [len(group) for group in groups] == [2, 2, 2]
        assert sum(changes) > 3


def test_validation_keeps_the_order_of_the_manifest(shards: Path) -> None:
    task = task_with(shards, "train", 1, train_subset="other", shards_at_once=2)
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=2, seed=1)
    found = rows_of(batches.next_epoch_itr(shuffle=False))
    assert groups_of(found) == [{0, 1}, {2, 3}, {4, 5}]


def order(shards: Path, **options: Any) -> ShardOrder:
    found = load(shards, shards_at_once=2, **options).shard_order
    assert found is not None
    return found


def test_lengths_of_neighbouring_groups_meet(shards: Path) -> None:
    groups = order(shards)
    arranged = np.concatenate(groups.groups(np.arange(NUM_SHARDS * PER_SHARD), 1))
    falls = [second < first for first, second in pairwise(arranged)]
    at_limits = falls[7::8]
    assert [key for key, _ in groupby(falls[:7] + falls[8:15] + falls[16:])] == [False, True, False]
    assert len(at_limits) == 2


def test_companions_and_measured_clips_are_in_the_shards_at_hand(shards: Path) -> None:
    groups = order(shards)
    everything = np.arange(NUM_SHARDS * PER_SHARD)
    for epoch in (1, 2):
        arranged = np.concatenate(groups.groups(everything, epoch))
        for index in (int(arranged[0]), int(arranged[-1])):
            group = set(arranged[:8].tolist() if index in arranged[:8] else arranged[-8:].tolist())
            assert {groups.companion(index, drawn) for drawn in range(100)} == group
        if epoch == 1:
            measured = groups.spread(3).tolist()
            assert len(measured) == 3
            assert set(measured) <= set(arranged[:8].tolist())
            assert len({index // PER_SHARD for index in measured}) == 1
    repeats = np.array([3, 5, 3 + len(everything)])  # of balanced draws
    assert sorted(np.concatenate(groups.groups(repeats, 1)).tolist()) == repeats.tolist()


# --- remote -------------------------------------------------------------------------------------


def test_each_remote_shard_is_fetched_once_per_epoch(remote: Path, server: WebServer) -> None:
    epochs = iterator(remote, shards_at_once=1, num_workers=1)
    assert not server.requests
    for epoch in range(1, 4):
        batches = rows_of(epochs.next_epoch_itr())
        assert sorted(chain(*batches)) == list(range(NUM_SHARDS * PER_SHARD))
        for number in range(NUM_SHARDS):
            fetched = server.asked(f"/train-{number:05d}.tar")
            assert 1 <= len(fetched) <= epoch
    assert len(server.asked("/train-00000.tar") + server.asked("/train-00003.tar")) > 2


def test_the_next_group_is_fetched_ahead(remote: Path, server: WebServer) -> None:
    task = task_with(remote, "train", 1, shards_at_once=1)
    clips = task.dataset("train")
    arranged = np.concatenate(clips.shard_order.groups(np.arange(len(clips)), 1))
    for index in arranged[:2].tolist():
        clips.read_part(index, None)
        clips.shard_order._prefetcher.wait()
    asked = {path for path, _ in server.requests if path.endswith(".tar")}
    numbers = {arranged[0] // PER_SHARD, arranged[PER_SHARD] // PER_SHARD}
    assert asked == {f"/train-{number:05d}.tar" for number in numbers}


def test_a_cache_too_small_for_two_groups_is_refused(remote: Path) -> None:
    expected = (
        r"/train\.tsv: 16 shards of up to .* GB, two groups of task\.shards_at_once=8, need "
        r".* GB; raise MAE_AST_SHARD_CACHE_GB, or lower task\.shards_at_once$"
    )
    with pytest.raises(ValueError, match=expected):
        load(remote)


@pytest.mark.slow
def test_training_waits_for_the_server_and_ends_in_one_line_if_it_stays_away(
    remote: Path,
    server: WebServer,
    train_here: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_down, given, refused = threading.Event(), [], []

    refusals = [0]  # after as many the server is back

    def goes_down(whole: Callable[[Handler], None]) -> Callable[[Handler], None]:
        def behave(request: Handler) -> None:
            if is_down.is_set():
                refused.append(request.path)
                if len(refused) == refusals[0]:
                    is_down.clear()
                resets(request)
                return
            given.append(request.path)
            if len(given) == 4:
                is_down.set()
            whole(request)

        return behave

    for path, (whole,) in list(server.scripts.items()):
        if path.endswith(".tar"):
            server.url(path, goes_down(whole))
    options = (
        "task.shards_at_once=1",
        "dataset.max_tokens=null",
        "dataset.batch_size=4",
        "dataset.disable_validation=true",
        "optimization.max_update=12",
    )
    assert ONLY_TRAINING[1] in options
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "1")
    with pytest.raises(SystemExit) as ended:
        train_here(remote, *options, "dataset.num_workers=1")
    message = str(ended.value)
    assert message.startswith(f"mae-ast: error: http://127.0.0.1:{server.server_port}/train-0000")
    assert "not fetched for 1 s" in message
    assert "the same command resumes" in message
    assert "\n" not in message
    assert not [r for r in caplog.records if "skipping bad file" in r.getMessage()]
    numbers = [int(r["num_updates"]) for r in _updates(caplog)]

    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "60")
    patience._given_up.clear()
    refused.clear()
    refusals[0] = 6
    logged = train_here(remote, *options, "dataset.num_workers=0")
    assert not is_down.is_set()
    assert "waiting for the server, for up to 60 s" in caplog.text
    assert "answers again" in caplog.text
    resumed = [int(stats["num_updates"]) for stats in logged]
    assert numbers
    assert numbers + resumed == list(range(1, 13))
    assert len(given) <= 2 * NUM_SHARDS


def _updates(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    import json

    return [json.loads(r.getMessage()) for r in caplog.records if r.name == "train_inner"]
