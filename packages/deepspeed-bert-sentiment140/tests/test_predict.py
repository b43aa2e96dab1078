"""`predict`: a text, a file, and what may be wrong with them; the exported model; the report of a run."""

import csv
from pathlib import Path

import pytest
import torch
import transformers
from deepspeed_bert_sentiment140 import data, evaluate, predict
from deepspeed_bert_sentiment140.cli import predict as command
from deepspeed_bert_sentiment140.config import PredictConfig, TrainConfig
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json
from trainyard_shared.tensors.lengths import Sequences


def test_model_folder_is_one_of_transformers(trained: Path) -> None:
    # Loaded by transformers alone, it says what the project says.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    config = load_preset(TrainConfig, trained / "config.yaml")
    texts = ["the exam was awful", "so happy about the weekend, life is good"]
    ids, lengths = data.encode(texts, tokenizer, config)
    tweets = Sequences(torch.from_numpy(ids), torch.from_numpy(lengths))
    ours = evaluate.predict(model, tweets, torch.arange(2), tokenizer, config, torch.device("cpu")).logits
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_text(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["--run", str(trained), "--text", "so happy " * 100]) == 0
    said = capfd.readouterr()
    assert said.out.startswith(("positive, probability 0.", "negative, probability 0."))
    assert "1 of 1 tweets fill the 32 tokens that the model reads" in said.err


def test_files(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["so happy today", "", 'he said ""no"", twice', "caf\xe9"]
    rows = "".join(f'"4","1","d","q","u","{text}"\n' for text in texts)
    (tmp_path / "tweets.csv").write_bytes(rows.encode("latin-1"))
    predict.predict(trained, PredictConfig(file=tmp_path / "tweets.csv", out=tmp_path / "out.csv", device="cpu"))
    said = capfd.readouterr()
    assert "4 tweets" in said.out
    assert "1 of 4 tweets are empty: no prediction for them" in said.err
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["text"] for row in found] == ["so happy today", "", 'he said "no", twice', "caf\xe9"]
    assert found[1]["label"] == found[1]["probability"] == ""
    for row in (found[0], found[2], found[3]):
        assert row["label"] in ("negative", "positive")
        assert 0.5 <= float(row["probability"]) <= 1
    # Printed instead of written, and from a text file, the answers are the same.
    (tmp_path / "tweets.txt").write_text("so happy today\ncaf\xe9\n", encoding="utf-8")
    predict.predict(trained, PredictConfig(file=tmp_path / "tweets.txt", device="cpu"))
    printed = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert [row["label"] for row in printed] == [found[0]["label"], found[3]["label"]]
    assert float(printed[0]["probability"]) == pytest.approx(float(found[0]["probability"]), abs=2e-4)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "predict needs --text or --file, and not both"),
        (["--text", "a", "--file", "b.txt"], 2, "predict needs --text or --file, and not both"),
        (["--text", "  "], 2, "--text: the text is empty"),
        (["--text", "a", "--out", "b.csv"], 2, "--out goes with --file"),
        (["--file", "none.txt"], 1, "none.txt"),
        (["--file", "empty.txt"], 1, "empty.txt"),
        (["--file", "latin.txt"], 1, "latin.txt, line 1"),
        (["--file", "columns.csv"], 1, "columns.csv, line 1: 1 fields, expected 6"),
    ],
)
def test_what_cannot_be_predicted(
    flags: list[str],
    status: int,
    words: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("Das Café war schön".encode("latin-1"))
    Path("columns.csv").write_text("text\ngood\n")
    assert command(["--run", str(trained), *flags]) == status
    said = capfd.readouterr().err
    assert words in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


def test_run_without_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["--run", str(tmp_path), "--text", "good"]) == 1
    assert f"{tmp_path}: no model/: the run has not finished; continue it with train --resume" in capfd.readouterr().err


def test_report_says_what_came_out(trained: Path) -> None:
    summary = read_json(trained / "summary.json")
    assert set(summary["metrics"]) == {
        "test_accuracy",
        "test_precision",
        "test_recall",
        "test_f1",
        "test_loss",
        "test_roc_auc",
        "baseline_accuracy",
    }
    assert [row["name"] for row in summary["per_class"]] == ["negative", "positive"]
    assert summary["deepspeed"]["zero_optimization"]["stage"] == 1
    page = (trained / "report.html").read_text()
    for title in ("Worst mistakes", "Cleaning", "Splits by user", "0 users are in two splits"):
        assert title in page
    assert {path.name for path in (trained / "plots").iterdir()} == {
        "confusion_matrix.png",
        "curves.png",
        "roc_curve.png",
    }
