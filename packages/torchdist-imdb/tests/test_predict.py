"""`predict`: a text, a file, and what may be wrong with them."""

import csv
from pathlib import Path

import pytest
import torch
import transformers
from torchdist_imdb import data, evaluate, predict
from torchdist_imdb.cli import predict as command
from torchdist_imdb.config import PredictConfig
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json

LONG = "good " * 20_000  # 100,000 characters


def test_model_folder_is_one_of_transformers(trained: Path) -> None:
    # Loaded by transformers alone, it says what the project says.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    config = load_preset(evaluate.TrainConfig, trained / "config.yaml")
    texts = ["The acting is superb.", "I found the plot dull, and so is the cast."]
    reviews, _ = data.Encoder(tokenizer, config)(texts)
    ours = evaluate.predict(model, reviews, tokenizer.pad_token_id, config, torch.device("cpu")).logits
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_long_text(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["--run", str(trained), "--text", LONG]) == 0
    said = capfd.readouterr()
    assert said.out.startswith(("positive, probability 0.", "negative, probability 0."))
    assert "1 of 1 texts are longer than the 32 tokens that the model reads: only beginning counted" in said.err


def test_file_of_reviews(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reviews = ["The acting is superb.", "", 'He said "no", <br />twice.', LONG]
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "review"], *([str(i), text] for i, text in enumerate(reviews))])
    config = PredictConfig(file=tmp_path / "reviews.csv", out=tmp_path / "out.csv", device="cpu")
    predict.predict(trained, config)
    said = capfd.readouterr()
    assert "4 reviews" in said.out
    assert "1 of 4 texts are longer" in said.err
    assert "1 of 4 reviews are empty: no prediction for them" in said.err
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["review"] for row in rows] == reviews, "one row for each review, in their order"
    assert rows[1]["label"] == rows[1]["probability"] == ""
    for row in (rows[0], rows[2], rows[3]):
        assert row["label"] in ("negative", "positive")
        assert 0.5 <= float(row["probability"]) <= 1
    assert int(rows[3]["tokens_cut"]) == 20_000 - 30
    # Printed instead of written, and from a text file, the answers are the same.
    (tmp_path / "reviews.txt").write_text("\n".join([reviews[0], reviews[2]]) + "\n")
    predict.predict(trained, PredictConfig(file=tmp_path / "reviews.txt", device="cpu"))
    printed = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert [row["label"] for row in printed] == [rows[0]["label"], rows[2]["label"]]
    assert float(printed[0]["probability"]) == pytest.approx(float(rows[0]["probability"]), abs=2e-4)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "predict needs --text or --file, and not both"),
        (["--text", "a", "--file", "b.txt"], 2, "predict needs --text or --file, and not both"),
        (["--text", "  "], 2, "--text: the text is empty"),
        (["--text", "a", "--out", "b.csv"], 2, "--out goes with --file"),
        (["--file", "none.txt"], 1, "none.txt"),
        (["--file", "empty.txt"], 1, "empty.txt: holds no review"),
        (["--file", "latin.txt"], 1, "latin.txt"),
        (["--file", "columns.csv"], 1, "expected review and sentiment"),
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
    Path("empty.txt").write_text("\n <br />\n")
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
    assert set(summary["metrics"]) == {"test_accuracy", "test_f1", "test_roc_auc", "test_loss"}
    page = (trained / "report.html").read_text()
    assert "Worst mistakes" in page
    assert {path.name for path in (trained / "plots").iterdir()} == {
        "confusion_matrix.png",
        "curves.png",
        "roc_curve.png",
    }
