"""Test the settings of the tasks, and the checks of data and arguments before training."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mae_ast.superb import compat, run, tasks
from mae_ast.superb.environment import atomic_saves
from mae_ast.superb.run import config_dir
from tests.superb.conftest import write_iemocap, write_speech_commands, write_voxceleb


def start(task, data, tmp_path, **options):
    (tmp_path / "model.pt").touch()
    given = {"checkpoint": str(tmp_path / "model.pt"), "out": tmp_path / "out", "mode": "train"}
    given |= {"steps": None, "fold": 1, "device": None, "arguments": [], "layout": "time_steps"}
    run.run(task, data=data, **{**given, **options})


def test_settings_are_those_of_the_paper():
    expected = {  # steps, learning rate, batch, accumulation
        "ks": (10_000, 1e-5, 512, 1),
        "sid": (60_000, 1e-4, 4, 4),
        "er": (3_000, 1e-4, 6, 5),
    }
    assert sorted(path.stem for path in config_dir().glob("*.yaml")) == sorted(expected)
    for name, (steps, rate, batch, accumulation) in expected.items():
        config = yaml.safe_load((config_dir() / f"{name}.yaml").read_text())
        runner, expert = config["runner"], config["downstream_expert"]
        assert runner["total_steps"] == steps
        assert runner["gradient_accumulate_steps"] == accumulation
        assert runner["gradient_clipping"] == 1
        assert runner["max_keep"] >= 2
        assert (config["optimizer"]["torch_optim_name"], config["optimizer"]["lr"]) == (
            "Adam",
            rate,
        )
        datarc = expert["datarc"]
        assert datarc.get("batch_size", datarc.get("train_batch_size")) == batch
        assert expert["modelrc"]["projector_dim"] == 256
        assert expert["modelrc"]["UtteranceLevel"] == {"pooling": "MeanPooling"}
        for key in ("save_step", "eval_step"):
            assert steps % runner[key] == 0


@pytest.mark.parametrize("archive", ["speech_commands_v0.01", "speech_commands_test_set_v0.01"])
def test_rejects_incomplete_speech_commands(tmp_path, archive):
    data = write_speech_commands(tmp_path)
    shutil.rmtree(data / archive / "yes")
    with pytest.raises(FileNotFoundError, match=rf"no \*\.wav in yes.*{archive}\.tar\.gz"):
        start("ks", data, tmp_path)
    shutil.rmtree(data / archive)
    with pytest.raises(FileNotFoundError, match=rf"{archive}: no such folder; it is http://"):
        start("ks", data, tmp_path)


def test_rejects_a_test_set_with_another_class(tmp_path):
    data = write_speech_commands(tmp_path)
    (data / "speech_commands_test_set_v0.01" / "zero").mkdir()
    with pytest.raises(ValueError, match=r"zero: .*12 classes"):
        start("ks", data, tmp_path)


def test_rejects_incomplete_voxceleb(tmp_path):
    data = write_voxceleb(tmp_path)
    listed = data / "iden_split.txt"
    listed.rename(data / "veri_test_class.txt")
    assert tasks.locate_sid(data, tmp_path)["meta_data"].endswith("veri_test_class.txt")
    (data / "veri_test_class.txt").rename(listed)
    shutil.rmtree(data / "test")
    with pytest.raises(FileNotFoundError, match=r"iden_split.txt:3: id10270/.*vox1_test_wav.zip"):
        start("sid", data, tmp_path)
    listed.write_text("1 id10001/1zcIwhmdeo4/00000.wav\n")
    with pytest.raises(ValueError, match="no development clips, which start with 2"):
        start("sid", data, tmp_path)
    for line in ("id10001/1zcIwhmdeo4/00000.wav", "1 id09999/a/0.wav", "4 id10001/a/0.wav"):
        listed.write_text(f"{line}\n")
        with pytest.raises(
            ValueError, match=r"iden_split.txt:1: .*is not a split \(1, 2 or 3\) and a clip"
        ):
            start("sid", data, tmp_path)
    listed.unlink()
    with pytest.raises(FileNotFoundError, match=r"iden_split.txt: no such file; it is https"):
        start("sid", data, tmp_path)


def test_iemocap_lists_equal_those_of_s3prl(tmp_path):
    compat.install()
    from s3prl.downstream.emotion.IEMOCAP_preprocess import preprocess

    data = write_iemocap(tmp_path / "IEMOCAP")
    for stray in data.rglob("._*"):  # s3prl fails on these files
        stray.unlink()
    sessions = [f"Session{number}" for number in range(1, 6)]
    tasks.write_er_lists(data, tmp_path / "ours")
    for session in sessions:
        rest = [other for other in sessions if other != session]
        for split, of in (("train", rest), ("test", [session])):
            preprocess(str(data), of, str(tmp_path / "theirs.json"))
            theirs = json.loads((tmp_path / "theirs.json").read_text())
            name = tmp_path / "ours" / session / f"{split}_meta_data.json"
            ours = json.loads(name.read_text())
            assert ours["labels"] == theirs["labels"]
            by_path = sorted(theirs["meta_data"], key=lambda clip: clip["path"])
            assert sorted(ours["meta_data"], key=lambda clip: clip["path"]) == by_path
            assert len(by_path) == 8 * len(of)


def test_rejects_incomplete_iemocap(tmp_path):
    data = write_iemocap(tmp_path / "IEMOCAP")
    found = tasks.locate_er(data, tmp_path / "out")
    assert found["meta_data"] == str(tmp_path / "out" / "meta_data")
    shutil.copytree(tmp_path / "out" / "meta_data", data / "meta_data")
    assert tasks.locate_er(data, tmp_path / "out")["meta_data"] == str(data / "meta_data")
    next(data.glob("Session3/sentences/wav/*/*M000.wav")).unlink()
    with pytest.raises(FileNotFoundError, match=r"Session3/.*M000.wav: no such file; .* lists it"):
        start("er", data, tmp_path)
    (data / "meta_data" / "Session4" / "test_meta_data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_meta_data.json: no such file; it is one of"):
        start("er", data, tmp_path)
    shutil.rmtree(data / "meta_data")
    shutil.rmtree(data / "Session2" / "dialog")
    with pytest.raises(FileNotFoundError, match=r"Session2/dialog/EmoEvaluation: no \*.txt"):
        start("er", data, tmp_path)
    shutil.rmtree(data / "Session5" / "sentences")
    with pytest.raises(FileNotFoundError, match=r"Session5/sentences/wav: no such folder"):
        start("er", data, tmp_path)


def test_rejects_invalid_arguments(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no_such: no such task; .*ks, sid, er or a downstream"):
        start("no_such", None, tmp_path)
    with pytest.raises(ValueError, match=r"asr\.expert: no such task"):
        start("asr.expert", None, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"asr\.yaml: no such file; .*settings of asr"):
        start("asr", None, tmp_path)
    with pytest.raises(ValueError, match="ks needs --data"):
        start("ks", None, tmp_path)
    with pytest.raises(ValueError, match=r"--steps 251 has no divisor .*save_step=100.* 300 steps"):
        start("ks", write_speech_commands(tmp_path / "data"), tmp_path, steps=251)
    with pytest.raises(FileNotFoundError, match="nothing to evaluate yet; train first"):
        start("ks", tmp_path / "data", tmp_path, mode="evaluate")
    with pytest.raises(ValueError, match=r"-o config.a: .*config.KEY.KEY=VALUE"):
        start("ks", tmp_path / "data", tmp_path, arguments=["-o", "config.a"])
    with pytest.raises(ValueError, match=r"old\[1\]: .*\[, \], \* or \? in its name"):
        start("ks", tmp_path / "data", tmp_path, out=tmp_path / "old[1]")
    with pytest.raises(FileNotFoundError, match=r"no\.pt: no such checkpoint"):
        start("ks", tmp_path / "data", tmp_path, checkpoint="no.pt")
    monkeypatch.setitem(sys.modules, "s3prl.run_downstream", None)  # as if not installed
    with pytest.raises(ValueError, match=r"pip install 'mae-ast\[superb\]'"):
        start("ks", tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("steps", "expected"), [(10_000, 100), (250, 50), (60, 60), (1, 1), (200, 100)]
)
def test_the_last_step_is_saved(steps, expected):
    runner = {"total_steps": steps, "save_step": 100, "eval_step": 100}
    found = run._intervals(runner)
    assert found["config.runner.save_step"] == found["config.runner.eval_step"] == expected


@pytest.mark.parametrize("path", ["/a b/c", "/a=b", "/a,,b,c", "/it's", '/"q"', "/ä\\=x", "/[x]"])
def test_any_path_survives_s3prls_override(path):
    from s3prl.utility.helper import override

    config = {}
    override(run._joined("config.x=1", {"config.a.path": path, "config.n": 3}), None, config)
    assert config == {"x": 1, "a": {"path": path}, "n": 3}


def test_overrides_are_parsed_as_by_s3prl():
    from s3prl.utility.helper import override

    text = " config.a.b=1e-5,, config.c='x y' ,,config.d=plain,,args.seed=3"
    ours, theirs = {}, {}
    run._override(ours, text)
    override(text, type("Args", (), {}), theirs)
    assert ours == theirs


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "states-1.ckpt"
    with atomic_saves():
        torch.save({"Step": 1}, path)
        with pytest.raises(Exception, match="pickle"):
            torch.save({"Step": 2, "bad": lambda: None}, path)
        stream = io.BytesIO()
        torch.save({"Step": 3}, stream)
    assert torch.load(path) == {"Step": 1}
    assert torch.load(io.BytesIO(stream.getvalue())) == {"Step": 3}


def test_settings_are_found_in_an_installed_package(monkeypatch, tmp_path):
    assert config_dir() == Path(__file__).parents[2] / "s3prl" / "config"
    (tmp_path / "superb_config").mkdir()
    monkeypatch.setattr(run, "PACKAGE", tmp_path)
    assert config_dir() == tmp_path / "superb_config"
