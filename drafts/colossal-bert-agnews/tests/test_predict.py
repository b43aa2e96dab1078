"""`predict`: a text, a file, and what may be wrong with them; the exported model; the report of a run."""

import csv
from pathlib import Path

import pytest
import torch
import transformers
from colossal_bert_agnews import data, evaluate, predict
from colossal_bert_agnews.cli import predict as command
from colossal_bert_agnews.config import PredictConfig, TrainConfig
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json, read_records

CLASSES = {"World", "Sports", "Business", "Sci/Tech"}


def test_model_folder_is_one_of_transformers(trained: Path) -> None:
    # Loaded by transformers alone, it says what the project says; nothing is left of the filled up vocabulary.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    assert set(model.config.id2label.values()) == CLASSES
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    config = load_preset(TrainConfig, trained / "config.yaml")
    texts = ["the bank raised its forecast", "the striker took the gold medal in Athens"]
    articles = data.encode(texts, tokenizer, config)
    ours = evaluate.predict(model, articles, tokenizer.pad_token_id, config, torch.device("cpu")).logits
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_text(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["--run", str(trained), "--text", "the champions won " * 40]) == 0
    said = capfd.readouterr()
    assert said.out.split(",")[0] in CLASSES
    assert "1 of 1 articles fill the 32 tokens that the model reads" in said.err


def test_files(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [("1", "Troops", "crossed the border"), ("2", "", ""), ("3", 'He said "no"', "twice"), ("4", "caf\xe9", "")]
    with (tmp_path / "news.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    predict.predict(trained, PredictConfig(file=tmp_path / "news.csv", out=tmp_path / "out.csv", device="cpu"))
    said = capfd.readouterr()
    assert "4 articles" in said.out
    assert "1 of 4 articles are empty: no prediction for them" in said.err
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["text"].strip() for row in found] == ["Troops crossed the border", "", 'He said "no" twice', "caf\xe9"]
    assert found[1]["label"] == found[1]["probability"] == ""
    for row in (found[0], found[2], found[3]):
        assert row["label"] in CLASSES
        assert 0.25 <= float(row["probability"]) <= 1
    # Printed instead of written, and from a text file, the answers are the same.
    (tmp_path / "news.txt").write_text("Troops crossed the border\ncaf\xe9\n", encoding="utf-8")
    predict.predict(trained, PredictConfig(file=tmp_path / "news.txt", device="cpu"))
    printed = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert [row["label"] for row in printed] == [found[0]["label"], found[3]["label"]]


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "predict needs --text or --file, and not both"),
        (["--text", "a", "--file", "b.txt"], 2, "predict needs --text or --file, and not both"),
        (["--text", "  "], 2, "--text: the text is empty"),
        (["--text", "a", "--out", "b.csv"], 2, "--out goes with --file"),
        (["--file", "none.txt"], 1, "none.txt"),
        (["--file", "empty.txt"], 1, "empty.txt"),
        (["--file", "columns.csv"], 1, "columns.csv, line 1: 1 columns, 'headline'"),
        (["--file", "class.csv"], 1, "class.csv, line 1: the class is '7', expected one of 1 (World)"),
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
    Path("columns.csv").write_text("headline\ngood\n")
    Path("class.csv").write_text('"7","title","text"\n')
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
        "baseline_accuracy",
    }
    assert {row["name"] for row in summary["per_class"]} == CLASSES
    page = (trained / "report.html").read_text()
    for title in ("Worst mistakes", "Which process holds what", "Augmentation: eda"):
        assert title in page
    plots = {path.name for path in (trained / "plots").iterdir()}
    assert plots == {"confusion_matrix.png", "curves.png", "memory.png"}
    record = next(r for r in read_records(trained) if r["kind"] == "train")
    assert record["peak_bytes_rank_0"] > 2**20
    assert record["tokens_per_second"] > 0
