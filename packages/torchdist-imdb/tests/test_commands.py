"""Search and predict as commands, and what a user may get wrong with them: one clear message each."""

import csv
import json
import sqlite3
import time
from pathlib import Path

import pytest
from trainyard_shared.results import read_json
from trainyard_shared.testing import kill_tree, run, run_folder, script, start_command

TINY = (
    "num_sample_reviews: 300\nnum_val: 60\nhidden_size: 32\nmax_length: 64\nlog_every: 1\nnum_layers: 1\nepochs: 2\n"
    "learning_rate: 0.005\n"
)
SEARCH = ["--config", "tiny.yaml", "--nproc", "1", "--num-threads", "1", "--num-unpruned", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    finished = run([script("train"), "--config", "tiny.yaml", "--nproc", "1", "--num-threads", "1"], folder)
    assert finished.status == 0, finished.stderr
    return run_folder(folder / "results")


def test_predict_says_the_sentiment_of_a_text(trained: Path, tmp_path: Path) -> None:
    finished = run([script("predict"), "--run", str(trained), "--text", "A wonderful film.<br />"], tmp_path)
    assert finished.status == 0, finished.stderr
    assert finished.stdout.startswith(("positive, probability 0.", "negative, probability 0."))


def test_predict_has_a_row_for_each_review_of_a_file(trained: Path, tmp_path: Path) -> None:
    long = "dull and slow " * 7200  # 100,000 characters
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["review"], ["Great, truly great."], [" "], [long]])
    flags = ["--run", str(trained), "--file", "reviews.csv", "--out", "out.csv"]
    finished = run([script("predict"), *flags], tmp_path)
    assert finished.status == 0, finished.stderr
    csv.field_size_limit(1_000_000)
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["review"] for row in rows] == ["Great, truly great.", " ", long]
    assert rows[0]["label"] in ("positive", "negative")
    assert float(rows[0]["probability"]) >= 0.5
    assert rows[0]["tokens_cut"] == "0"
    assert rows[1]["label"] == "", "an empty review has no sentiment"
    assert int(rows[2]["tokens_cut"]) > 10_000
    assert "1 of 3 texts are longer than the 64 tokens" in finished.stderr
    assert "1 of 3 reviews are empty" in finished.stderr


def test_predict_complains_clearly(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Ein schöner Film".encode("latin-1"))
    (tmp_path / "other.csv").write_text("text\ngood\n")
    for flags, status, words in (
        ([], 2, "predict needs --text or --file"),
        (["--text", "  "], 2, "the text is empty"),
        (["--file", "latin.txt"], 1, "latin.txt"),
        (["--file", "other.csv"], 1, "expected review"),
        (["--file", "nowhere.txt"], 1, "nowhere.txt"),
    ):
        finished = run([script("predict"), "--run", str(trained), *flags], tmp_path)
        assert finished.status == status, (flags, finished)
        assert words in finished.stderr, (flags, finished.stderr)
        assert "Traceback" not in finished.stderr


def test_the_model_folder_is_one_of_transformers(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(trained / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(trained / "model", local_files_only=True)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model(**tokenizer("A fine film.", return_tensors="pt")).logits.shape == (1, 2)


def test_report_shows_the_worst_mistakes(trained: Path) -> None:
    summary = read_json(trained / "summary.json")
    (table,) = [table for table in summary["tables"] if "mistake" in json.dumps(table).lower()]
    assert table["rows"]
    assert "mistake" in (trained / "report.html").read_text().lower()


def test_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    process = start_command([script("search"), *SEARCH, "--num-trials", "3"], tmp_path)
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not list(tmp_path.glob("results/*/*/runs/trial-001/*/*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
    finally:
        kill_tree(process.pid)
    (folder,) = (tmp_path / "results" / "torchdist-imdb").iterdir()
    assert not (folder / "report.html").exists()
    finished = run([script("search"), "--resume", str(folder)], tmp_path)
    assert finished.status == 0, finished.stderr
    with (folder / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 3
    assert {trial["state"] for trial in trials} <= {"finished", "pruned"}
    with sqlite3.connect(folder / "study.db") as study:
        states = [state for (state,) in study.execute("select state from trials order by number")]
    assert states.count("FAIL") == 1, "the one that was running when the search was killed"
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert all("test_accuracy" not in summary.get("metrics", {}) for summary in summaries), "the test set is left alone"
    assert (folder / "plots" / "search_history.png").is_file()
    assert "Trials, best first" in (folder / "report.html").read_text()
    best = run([script("train"), "--config", str(folder / "best.yaml"), "--epochs", "1", "--out-dir", "best"], tmp_path)
    assert best.status == 0, best.stderr


def test_search_complains_clearly(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    for flags, words in (
        (["--learning-rate", "0.1", "0.01"], "learning-rate: 0.1 is more than 0.01"),
        (["--resume", "nowhere"], "nowhere"),
    ):
        finished = run([script("search"), "--config", "tiny.yaml", *flags], tmp_path)
        assert finished.status == 2, finished
        assert words in finished.stderr
        assert "Traceback" not in finished.stderr
