"""Corpus of spoken words, synthesised by espeak-ng.

The 35 words of Speech Commands V2 in 40 voices (language and variant), with random pitch and speed
and additive noise, one second each. The splits have no voice in common. Two layouts:

    corpus/{train,valid,test}.{tsv,lbl}  manifests of corpus/clips (FLAC at 16 kHz, MKV at 48 kHz)
                                         and their words; labels.csv lists the classes
    corpus/speech_commands/<word>/*.wav  layout of the Speech Commands data set, with
                                         _background_noise_, validation_list.txt and
                                         testing_list.txt
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from mae_ast.console import require
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest

WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward"),
    *("four", "go", "happy", "house", "learn", "left", "marvin", "nine", "no", "off", "on"),
    *("one", "right", "seven", "sheila", "six", "stop", "three", "tree", "two", "up", "visual"),
    *("wow", "yes", "zero"),
)
LANGUAGES = (
    *("en", "en-us", "en-029", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp"),
    *("en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)
VARIANTS = ("m1", "f1", "m3", "f2", "m7", "f3", "m2", "f4", "m5", "f5")
VOICES_PER_LANGUAGE = 5
NUM_HELD_OUT = 4  # voices in the validation split, and in the test split
MKV_RATE = 48_000
MKV_INTERVAL = 10  # every tenth clip is an MKV file
VERSION = 2  # increased when the files change, so that an old corpus is made again
DESCRIPTION_FILE = "corpus.json"
NOISES = ("room_tone", "fan", "street")
NOISE_SECONDS = 60
SNR_DB = (25.0, 40.0)

Progress = Callable[[Iterable[object], int], Iterable[object]]


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Args:
        language: language or accent, by espeak-ng's name.
        variant: kind of voice, by espeak-ng's name.
    """

    language: str
    variant: str

    @property
    def name(self) -> str:
        """Name without hyphens, for file names."""
        return f"{self.language}-{self.variant}".replace("-", "")


def voices() -> list[Voice]:
    """Return all speakers, ordered so that consecutive ones differ in language and variant."""
    return [
        Voice(language, VARIANTS[(turn + 3 * number) % len(VARIANTS)])
        for turn in range(VOICES_PER_LANGUAGE)
        for number, language in enumerate(LANGUAGES)
    ]


def split_of(number: int) -> str:
    """Return the split of a voice, given its index: four are in valid, four in test."""
    step = len(LANGUAGES) * VOICES_PER_LANGUAGE // NUM_HELD_OUT
    return {0: "valid", step // 2: "test"}.get(number % step, "train")


class Synthesiser:
    """Speech synthesis by espeak-ng, through ctypes: about 15 ms per word.

    Raises:
        ValueError: espeakng-loader is not installed.
        SystemExit: the path of its data is too long.
    """

    def __init__(self) -> None:
        require("espeakng_loader")
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        retrieve_audio, do_not_exit = 1, 0x8000
        data = espeakng_loader.get_data_path()
        self.sample_rate = self._library.espeak_Initialize(
            retrieve_audio, 0, data.encode(), do_not_exit
        )
        if self.sample_rate <= 0:
            raise SystemExit(
                f"espeak-ng does not find its voices in {data}; it accepts paths of up to 160 "
                "characters"
            )
        self._blocks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )

        def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, events: object) -> int:
            if samples and count > 0:
                self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self._collect = callback(collect)  # a reference, since the library holds the address only
        self._library.espeak_SetSynthCallback(self._collect)

    def speak(self, word: str, voice: Voice, words_per_minute: int, pitch: int) -> np.ndarray:
        """Synthesise a word.

        Args:
            word: an English word.
            voice: the speaker.
            words_per_minute: speed, 80 to 450.
            pitch: 0 to 99.

        Returns:
            (L,) float32 in [-1, 1] at ``sample_rate``, trimmed of silence.
        """
        rate_parameter, pitch_parameter, utf8 = 1, 3, 1
        self._blocks.clear()
        name = f"{voice.language}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name}")
        self._library.espeak_SetParameter(rate_parameter, words_per_minute, 0)
        self._library.espeak_SetParameter(pitch_parameter, pitch, 0)
        text = word.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, utf8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._blocks).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(samples) > 0.005)
        return samples[loud[0] : loud[-1] + 1]


def description(takes: int) -> str:
    """Return the content of :data:`DESCRIPTION_FILE`, which identifies the corpus."""
    return json.dumps(
        {"files": VERSION, "takes": takes, "voices": [voice.name for voice in voices()]}
    )


def make_corpus(folder: Path, takes: int, jobs: int, progress: Progress) -> None:
    """Synthesise the corpus, unless it exists.

    Args:
        folder: folder of the corpus.
        takes: number of times that each voice says each word.
        jobs: number of processes.
        progress: wraps the iteration over voices; called with it and its length.
    """
    done, wanted = folder / DESCRIPTION_FILE, description(takes)
    if done.exists() and done.read_text() == wanted:
        return
    done.unlink(missing_ok=True)
    noise_folder = folder / "speech_commands" / "_background_noise_"
    noise_folder.mkdir(parents=True, exist_ok=True)
    (folder / "clips").mkdir(exist_ok=True)
    for word in WORDS:
        (folder / "speech_commands" / word).mkdir(exist_ok=True)
    for number, name in enumerate(NOISES):
        noise = _noise(name, np.random.default_rng(number))
        soundfile.write(noise_folder / f"{name}.wav", noise, SAMPLE_RATE, subtype="PCM_16")

    with ProcessPoolExecutor(jobs) as pool:
        spoken = pool.map(partial(_write_voice, folder, takes), range(len(voices())))
        rows_by_voice = list(progress(spoken, len(voices())))
    rows: dict[str, list[tuple[str, int, int]]] = {"train": [], "valid": [], "test": []}
    for number, voice_rows in enumerate(rows_by_voice):
        rows[split_of(number)].extend(voice_rows)  # type: ignore[arg-type]
    for split, listed in rows.items():
        write_manifest(folder / f"{split}.tsv", "clips", listed)
        write_clip_labels(folder / f"{split}.lbl", ([name.split("_")[0]] for name, _, _ in listed))
    Labels(WORDS, WORDS).write(folder / "labels.csv")
    for split, file_name in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        names = (f"{name.split('_')[0]}/{_wav_name(name)}\n" for name, _, _ in rows[split])
        (folder / "speech_commands" / file_name).write_text("".join(names))
    done.write_text(wanted)


@lru_cache(maxsize=1)
def _synthesiser() -> Synthesiser:
    """Return the synthesiser of this process; espeak-ng cannot be initialised twice."""
    return Synthesiser()


def _write_voice(folder: Path, takes: int, number: int) -> list[tuple[str, int, int]]:
    """Write all clips of one voice, and return their manifest rows."""
    torch.set_num_threads(1)
    synthesiser = _synthesiser()
    voice = voices()[number]
    noises = [
        soundfile.read(folder / "speech_commands" / "_background_noise_" / f"{name}.wav")[0]
        for name in NOISES
    ]
    rng = np.random.default_rng(1000 + number)
    rows: list[tuple[str, int, int]] = []
    for word in WORDS:
        for take in range(takes):
            speed, pitch = int(rng.integers(130, 200)), int(rng.integers(30, 71))
            spoken = synthesiser.speak(word, voice, speed, pitch)
            samples = resample(torch.from_numpy(spoken), synthesiser.sample_rate, SAMPLE_RATE)
            clip = _add_noise(samples.numpy(), noises[rng.integers(len(noises))], rng)
            name = f"{word}_{voice.name}_{take}"
            if len(rows) % MKV_INTERVAL == 0:
                name, length, rate = f"{name}.mkv", MKV_RATE, MKV_RATE
                _write_mkv(folder / "clips" / name, clip)
            else:
                name, length, rate = f"{name}.flac", SAMPLE_RATE, SAMPLE_RATE
                soundfile.write(folder / "clips" / name, clip, rate, subtype="PCM_16")
            wav = folder / "speech_commands" / word / _wav_name(name)
            soundfile.write(wav, clip, SAMPLE_RATE, subtype="PCM_16")
            rows.append((name, length, rate))
    return rows


def _wav_name(name: str) -> str:
    """Return a clip's name in Speech Commands: ``<speaker>_nohash_<take>.wav``."""
    _, speaker, take = Path(name).stem.split("_")
    return f"{speaker}_nohash_{take}.wav"


def _add_noise(spoken: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one second of noise with the word at a random position and signal-to-noise ratio."""
    spoken = spoken[:SAMPLE_RATE]
    clip = np.zeros(SAMPLE_RATE, dtype=np.float32)
    start = int(rng.integers(SAMPLE_RATE - len(spoken) + 1))
    clip[start : start + len(spoken)] = spoken
    begin = int(rng.integers(len(noise) - SAMPLE_RATE))
    background = noise[begin : begin + SAMPLE_RATE]
    snr = 10 ** (rng.uniform(*SNR_DB) / 20)
    scale = np.sqrt(np.mean(spoken**2)) / (snr * np.sqrt(np.mean(background**2)))
    mixed = (clip + scale * background) * rng.uniform(0.4, 1.0)
    return np.asarray(np.clip(mixed, -1, 1), dtype=np.float32)


def _noise(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return a minute of coloured noise; the spectral slope depends on its name."""
    slope = dict(zip(NOISES, (0.5, 1.0, 1.5), strict=True))[name]
    length = NOISE_SECONDS * SAMPLE_RATE
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 50.0) ** (slope / 2)
    noise = np.fft.irfft(spectrum, length)
    return np.asarray(0.3 * noise / np.abs(noise).max(), dtype=np.float32)


def _write_mkv(path: Path, clip: np.ndarray) -> None:
    """Write a Matroska file at 48 kHz, as audio tracks of videos are stored."""
    samples = resample(torch.from_numpy(clip), SAMPLE_RATE, MKV_RATE).numpy()
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=MKV_RATE, layout="mono")
        pcm = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = MKV_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
