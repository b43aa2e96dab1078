"""What a user may get wrong, and what may break: one clear message each."""

from pathlib import Path

import pytest
from trainyard_shared.datasets.wikitext import make_sample
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import run, run_folder, script

TINY = ["--epochs", "1", "--hidden-size", "32", "--num-layers", "1", "--log-every", "1", "--nproc", "1"]
SMALL = ["--num-sample-articles", "20", "--num-prompts", "0"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "test"), ("", "test.txt is empty"), (" \n \n", "test.txt is empty")],
    ids=["missing", "empty", "white space"],
)
def test_text_that_is_missing_or_empty(tmp_path: Path, content: str | None, words: str) -> None:
    folder = make_sample(tmp_path / "data", seed=0, num_articles=20)
    (folder / "test.txt").unlink()
    if content is not None:
        (folder / "test.txt").write_text(content)
    finished = run([script("train"), *TINY, "--data", "real", "--data-dir", str(folder), "--out-dir", "out"], tmp_path)
    assert finished.status == 1
    assert words in finished.stderr
    assert str(folder) in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    flags = ["--learning-rate", "1e30", "--out-dir", "out"]
    finished = run([script("train"), *TINY, *SMALL, *flags], tmp_path)
    assert finished.status == 1
    assert "the training loss is nan at step" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"


def test_another_sharding_whose_state_does_not_fit(tmp_path: Path) -> None:
    assert run([script("train"), *TINY, *SMALL, "--sharding", "fsdp2", "--out-dir", "out"], tmp_path).status == 0
    folder = run_folder(tmp_path / "out")
    steps = len(read_records(folder))
    finished = run([script("train"), "--resume", str(folder), "--sharding", "oss", "--epochs", "2"], tmp_path)
    assert finished.status == 2
    assert "continue with --sharding fsdp2" in finished.stderr
    assert len(read_records(folder)) == steps


def test_generate_shows_temperatures_side_by_side(trained: Path, tmp_path: Path) -> None:
    flags = ["--run", str(trained), "--prompt", "The town", "--temperatures", "0", "1", "--max-new-tokens", "8"]
    finished = run([script("generate"), *flags], tmp_path, COLUMNS="80")
    assert finished.status == 0, finished.stderr
    assert "temperature 0" in finished.stdout
    assert "temperature 1" in finished.stdout
    assert "continues: The town" in finished.stdout
    again = run([script("generate"), *flags], tmp_path, COLUMNS="80")
    assert again.stdout == finished.stdout, "the same seed, the same words"


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--prompt", "word " * 80], 2, "are to follow, but this model sees at most 64 tokens: shorten one of them"),
        (["--prompt", "short", "--max-new-tokens", "64"], 2, "and 64 are to follow"),
        (["--file", "empty.txt"], 1, "--file empty.txt: is empty"),
        (["--file", "nowhere.txt"], 1, "--file nowhere.txt: cannot be read"),
    ],
    ids=["long prompt", "too many new tokens", "empty file", "no file"],
)
def test_generate_says_what_is_wrong(trained: Path, tmp_path: Path, flags: list[str], status: int, words: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    finished = run([script("generate"), "--run", str(trained), *flags], tmp_path)
    assert finished.status == status, finished.stderr
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("generate", ["--prompt", " "], "--prompt: the text is empty"),
        ("generate", ["--prompt", "a", "--file", "b"], "--prompt and --file exclude each other"),
        ("generate", ["--top-p", "0"], "--top-p: 0 is not allowed: must be greater than 0"),
        ("evaluate", ["--run", "a", "--model", "b"], "--run and --model exclude each other"),
    ],
)
def test_wrong_flags_of_the_other_commands(tmp_path: Path, command: str, flags: list[str], words: str) -> None:
    finished = run([script(command), *flags], tmp_path)
    assert finished.status == 2
    assert words in finished.stderr


def test_a_folder_that_holds_no_gpt2(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    finished = run([script("evaluate"), "--model", "bert", "--data-dir", str(tmp_path), "--nproc", "1"], tmp_path)
    assert finished.status == 1, "the text is looked for first"
    assert "No WikiText-2 (raw form, test)" in finished.stderr
    make_sample(tmp_path / "data", seed=0, num_articles=20)
    finished = run([script("evaluate"), "--model", "bert", "--data-dir", "data", "--nproc", "1"], tmp_path)
    assert finished.status == 1
    assert "is a model of type bert, not GPT-2" in finished.stderr
    flags = ["--model", str(trained / "model"), "--data-dir", "data", "--context-length", "128", "--nproc", "1"]
    finished = run([script("evaluate"), *flags], tmp_path)
    assert finished.status == 2
    assert "context_length: 128 is not allowed" in finished.stderr
    assert not list((tmp_path / "results").glob("*/*")), "an evaluation that never began leaves no folder"
