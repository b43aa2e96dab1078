"""The blinded sheet and what comes back: agreement by a published example, means, and messages."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from deepspeed_gpt2_pile import rate
from deepspeed_gpt2_pile.rate import Item, Rating
from trainyard_shared.testing import run, script

NAN = float("nan")
# Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, example C: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level: str, alpha: float) -> None:
    assert rate.agreement(PUBLISHED, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_not_defined_for_one_rater_or_one_rating() -> None:
    assert rate.agreement(PUBLISHED[:1], "ordinal") is None
    assert rate.agreement(np.array([[3.0, 3.0], [3.0, 3.0]]), "ordinal") is None
    assert rate.agreement(np.array([[1.0, NAN], [NAN, 2.0]]), "ordinal") is None


def test_means_are_over_texts_each_with_the_mean_of_its_raters() -> None:
    ratings = np.array([[1, 5, 3, NAN], [3, NAN, 5, NAN]], dtype=float)
    found = rate.summarize(ratings, ["a", "a", "b", "b"])
    assert found["a"].mean == pytest.approx((2 + 5) / 2)
    assert found["b"].mean == 4
    assert (found["a"].num_ratings, found["b"].num_ratings) == (3, 2)


def test_conclusions() -> None:
    apart = {"a": Rating(4.0, 3.8, 4.2, 9), "b": Rating(2.0, 1.5, 2.5, 9)}
    assert rate.conclusions(apart, 0.8, 3, "ordinal") == [
        "a is rated higher than b: their intervals do not overlap.",
        "Agreement of 3 raters: Krippendorff's alpha (ordinal) 0.800, enough to go by.",
    ]
    close = {"a": Rating(2.1, 1.8, 4.2, 9), "b": Rating(2.0, 1.5, 2.5, 9)}
    assert rate.conclusions(close, None, 1, "ordinal") == [
        "a and b cannot be told apart: their intervals overlap.",
        "Agreement cannot be measured: there is one rater.",
    ]


def test_the_page_escapes_texts() -> None:
    page = rate.page([Item("secret-model", "<b>", "<script>alert(1)</script>")], 5)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "secret-model" not in page


def test_a_sheet_goes_out_blinded_and_comes_back(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-model"
    other.symlink_to(trained / "model")
    flags = ["--run", str(trained), str(other), "--prompts", "What is 3 + 4?", "def add_", "--num-samples", "3"]
    made = run([script("rate"), *flags, "--max-new-tokens", "20", "--out", "sheet"], tmp_path)
    assert made.status == 0, made.stderr
    key = json.loads((tmp_path / "sheet" / "key.json").read_text())
    assert sorted(key["models"].values()) == ["other-model"] * 6 + [trained.name] * 6
    assert list(key["models"].values()) != sorted(key["models"].values()), "shuffled"
    for name in ("sheet.csv", "sheet.html"):
        content = (tmp_path / "sheet" / name).read_text()
        assert "other-model" not in content
        assert trained.name not in content
    again = run([script("rate"), *flags, "--out", "sheet"], tmp_path)
    assert again.status == 2
    assert "there is a sheet already" in again.stderr

    rows = list(csv.DictReader((tmp_path / "sheet" / "sheet.csv").open(newline="")))
    assert len(rows) == 12
    for rater in (0, 1):
        with (tmp_path / f"rater{rater}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rate.COLUMNS)
            writer.writeheader()
            for row in rows:
                better = key["models"][row["number"]] == "other-model"
                writer.writerow(row | {"rating": 5 - (int(row["number"]) + rater) % 2 if better else 1 + rater % 2})
    collected = run([script("rate"), "--collect", "rater0.csv", "rater1.csv", "--out", "sheet"], tmp_path)
    assert collected.status == 0, collected.stderr
    assert f"other-model is rated higher than {trained.name}: their intervals do not overlap" in collected.stdout
    outcome = json.loads((tmp_path / "sheet" / "ratings.json").read_text())
    assert outcome["models"]["other-model"]["mean"] == pytest.approx(4.5)
    assert outcome["models"][trained.name]["mean"] == pytest.approx(1.5)
    assert 0.5 < outcome["krippendorff_alpha"] < 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("number,score\n1,3\n", "no column 'rating'"),
        ("number,rating\n1,6\n", "line 2: rating is '6', expected 1 to 5"),
        ("number,rating\n1,3\n9,3\n", "line 3: number is '9', expected 1 to 2"),
        ("number,rating\n1,3\n1,4\n", "line 3: text 1 is rated twice"),
        ("number,rating\n1,\n", "no text is rated"),
    ],
)
def test_wrong_sheets_are_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "rating").mkdir()
    (tmp_path / "rating" / "key.json").write_text(json.dumps({"scale": 5, "models": {"1": "a", "2": "b"}}))
    (tmp_path / "filled.csv").write_text(content)
    finished = run([script("rate"), "--collect", "filled.csv"], tmp_path)
    assert finished.status == 1
    assert f"filled.csv{',' if 'line' in words else ':'} {words}" in finished.stderr


def test_rate_says_what_it_needs(tmp_path: Path) -> None:
    finished = run([script("rate")], tmp_path)
    assert finished.status == 2
    assert "rate needs --run RUN ... to make a sheet, or --collect" in finished.stderr
    (tmp_path / "a.csv").write_text("number,rating\n1,1\n")
    lost = run([script("rate"), "--collect", "a.csv"], tmp_path)
    assert lost.status == 1
    assert "no key.json there" in lost.stderr
