"""Demo corpus, with three words."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.audio import probe_audio, read_audio
from mae_ast.core.io.manifest import Manifest
from scripts.demo import corpus

pytest.importorskip("espeakng_loader", reason="the demo's synthesiser is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "WORDS", ("yes", "no", "marvin"))
        folder = tmp_path_factory.mktemp("corpus")
        corpus.make_corpus(folder, takes=2, jobs=2, progress=lambda items, total: items)
        yield folder


def test_splits_have_no_voice_in_common(made):
    assert len(set(corpus.voices())) >= 30
    speakers = {}
    for split in ("train", "valid", "test"):
        listed = Manifest.load(made / f"{split}.tsv")
        names = [listed.row_path(row) for row in range(len(listed))]
        speakers[split] = {name.split("_")[1] for name in names}
        words = Counter(name.split("_")[0] for name in names)
        assert set(words.values()) == {2 * len(speakers[split])}
    assert not speakers["train"] & (speakers["valid"] | speakers["test"])
    assert not speakers["valid"] & speakers["test"]
    assert sum(map(len, speakers.values())) == len(corpus.voices())
    assert len(speakers["valid"]) == len(speakers["test"]) == 4


def test_clips_are_one_second_of_speech_in_flac_and_mkv(made):
    listed = Manifest.load(made / "valid.tsv")
    suffixes = Counter()
    for row in range(len(listed)):
        path = listed.audio_path(row)
        suffixes[path.rsplit(".", 1)[1]] += 1
        assert probe_audio(path).sample_rate == listed.sample_rates[row]
        samples = read_audio(path).float() / 32768
        assert len(samples) == 16_000
        loudness = samples.unfold(0, 400, 160).square().mean(1)
        assert loudness.max() > 50 * loudness.min() > 0  # a word, and noise around it
    assert suffixes["mkv"] > 0
    assert suffixes["flac"] > suffixes["mkv"]


def synthesise_three():
    synthesiser = corpus._synthesiser()
    first, second = corpus.voices()[:2]
    return [
        synthesiser.speak("marvin", voice, speed, 50)
        for voice, speed in ((first, 120), (first, 200), (second, 120))
    ]


def test_speed_and_voice_change_the_waveform():
    # In a new process: a process forked after espeak-ng was loaded would hang.
    with ProcessPoolExecutor(1) as pool:
        slow, fast, other = pool.submit(synthesise_three).result(60)
    assert len(slow) > 1.2 * len(fast)
    length = min(len(slow), len(other))
    assert np.corrcoef(slow[:length], other[:length])[0, 1] < 0.9


def test_layout_of_speech_commands(made):
    folder = made / "speech_commands"
    lists = {
        name: (folder / f"{name}_list.txt").read_text().split()
        for name in ("validation", "testing")
    }
    wavs = {path.relative_to(folder).as_posix() for path in folder.glob("[!_]*/*.wav")}
    assert len(wavs) == 3 * 2 * len(corpus.voices())
    assert set(lists["validation"]) | set(lists["testing"]) < wavs
    assert not set(lists["validation"]) & set(lists["testing"])
    for path in (folder / "_background_noise_").glob("*.wav"):
        assert soundfile.info(path).frames == 60 * 16_000
    assert soundfile.info(folder / lists["testing"][0]).frames == 16_000


def test_existing_corpus_is_not_made_again(made, monkeypatch):
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", None)
    corpus.make_corpus(made, takes=2, jobs=2, progress=lambda items, total: items)
