"""Human evaluation made practical: a blinded sheet of texts, and what the filled-in sheets say.

A sheet holds texts of several models after the same prompts, in a random order, under numbers. Which text is whose is
in a key beside it, which raters must not see. Each rater fills in the page (it works offline and saves a CSV file) or
the CSV file. `--collect` then gives the mean rating of each model and how far the raters agree: Krippendorff's alpha is
1 where they agree wholly and 0 where they agree as often as by chance (Krippendorff 2011, Computing Krippendorff's
Alpha-Reliability); not every rater has to rate every text.
"""

import csv
import io
import itertools
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from trainyard_shared.console import say
from trainyard_shared.datasets.tables import read_text
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import read_json, write_atomically

from deepspeed_gpt2_pile.config import RateConfig

SHEET, PAGE, KEY, RESULT = "sheet.csv", "sheet.html", "key.json", "ratings.json"
COLUMNS = ("number", "prompt", "text", "rating")
NUM_RESAMPLES = 2000
MIN_ALPHA = 0.667  # below it, Krippendorff (2004) would draw no conclusion


class Item(NamedTuple):
    """A text to rate."""

    model: str
    prompt: str
    text: str


class Rating(NamedTuple):
    """What the raters say of one model."""

    mean: float
    low: float
    high: float
    """ends of the 95 % bootstrap interval over texts"""
    num_ratings: int


# ----------------------------------------------------------------------------------------------------------- the sheet


def make_sheet(config: RateConfig) -> None:
    """Write texts of the models of runs as a blinded sheet, with its key.

    Raises:
        DataError: a folder holds no trained model.
        UsageError: there is a sheet already, whose ratings would lose their key.
    """
    from deepspeed_gpt2_pile import generate  # imports torch, which collecting ratings does not need

    if (config.out / KEY).exists():
        raise UsageError(f"error: --out {config.out}: there is a sheet already: choose another folder")
    prompts = generate.find_prompts(config, config.run[0])
    items = [
        Item(name, prompt, text)
        for name, folder in generate.names_of(config.run).items()
        for prompt, texts in zip(prompts, generate.written_by(folder, prompts, config), strict=True)
        for text in texts
    ]
    random.Random(config.seed).shuffle(items)
    key = {
        "scale": config.scale,
        "models": {str(number): item.model for number, item in enumerate(items, start=1)},
        "prompts": {str(number): item.prompt for number, item in enumerate(items, start=1)},
        "sampling": {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "seed")},
    }
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out / SHEET, sheet(items))
    write_atomically(config.out / PAGE, page(items, config.scale))
    write_atomically(config.out / KEY, json.dumps(key, indent=2, ensure_ascii=False))
    say(f"{len(items)} texts of {len(config.run)} model(s) to rate from 1 to {config.scale}:")
    say(f"  for raters: {config.out / PAGE}, or {config.out / SHEET}; one copy for each")
    say(f"  not for raters: {config.out / KEY}")
    say(f"then: rate --collect FILLED_IN.csv ... --out {config.out}")


def sheet(items: Sequence[Item]) -> str:
    """Return the sheet as CSV, with an empty column to fill in."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([number, item.prompt, item.text, ""] for number, item in enumerate(items, start=1))
    return file.getvalue()


def page(items: Sequence[Item], scale: int) -> str:
    """Return the sheet as an HTML page that saves the ratings as CSV; it needs no network."""
    cards = ""
    for number, item in enumerate(items, start=1):
        choices = "".join(
            f'<label><input type="radio" name="{number}" value="{value}"> {value}</label>'
            for value in range(1, scale + 1)
        )
        cards += (
            f'<section><h2>Text {number}</h2><p class="text"><span class="prompt">{escape(item.prompt)}</span>'
            f"{escape(item.text)}</p><fieldset><legend>How good is the text in black, as what follows the beginning in "
            f"grey? 1: not at all, {scale}: very</legend>{choices}</fieldset></section>\n"
        )
    return _PAGE.replace("@CARDS@", cards).replace("@COUNT@", str(len(items)))


# ------------------------------------------------------------------------------------------------------ what comes back


def collect(config: RateConfig) -> None:
    """Put filled-in sheets together: mean rating of each model, differences, agreement.

    Raises:
        DataError: a sheet or the key cannot be read, or they do not belong together.
    """
    if not (config.out / KEY).is_file():
        raise DataError(f"error: --out {config.out}: no {KEY} there, which says whose the texts are")
    key = read_json(config.out / KEY)
    ratings = np.array(
        [read_sheet(path, len(key["models"]), key["scale"]) for path in config.collect]
    )  # (raters, texts)
    unrated = int(np.isnan(ratings).all(axis=0).sum())
    models = list(key["models"].values())
    found = summarize(ratings, models)
    alpha = agreement(ratings, config.level)
    for name, rating in sorted(found.items(), key=lambda pair: -pair[1].mean):
        say(f"{name:<32} {rating.mean:.2f} of {key['scale']}  (95 % interval {rating.low:.2f} to {rating.high:.2f})")
    for sentence in conclusions(found, alpha, len(config.collect), config.level):
        say(sentence)
    if unrated:
        say(f"note: {unrated} of {len(models)} texts were rated by nobody")
    outcome = {
        "raters": len(config.collect),
        "texts": len(models),
        "texts_rated_by_nobody": unrated,
        "models": {name: rating._asdict() for name, rating in found.items()},
        "krippendorff_alpha": alpha,
        "level": config.level,
        "conclusions": conclusions(found, alpha, len(config.collect), config.level),
        "sheets": [str(path) for path in config.collect],
    }
    write_atomically(config.out / RESULT, json.dumps(outcome, indent=2, ensure_ascii=False))
    say(f"all of it: {config.out / RESULT}")


def read_sheet(path: Path, num_texts: int, scale: int) -> NDArray[np.float64]:
    """Return the ratings of one rater, (num_texts,), NaN for a text without one; DataError names file and row."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if lacking := [name for name in ("number", "rating") if name not in (rows.fieldnames or ())]:
        raise DataError(f"error: {path}: no column {lacking[0]!r}; expected {', '.join(COLUMNS)}")
    ratings = np.full(num_texts, np.nan)
    for row in rows:
        where, number, rating = f"error: {path}, line {rows.line_num}", row["number"], (row["rating"] or "").strip()
        if not number.isdecimal() or not 1 <= int(number) <= num_texts:
            raise DataError(f"{where}: number is {number!r}, expected 1 to {num_texts}: is this the sheet of this key?")
        if not rating:
            continue
        if not rating.isdecimal() or not 1 <= int(rating) <= scale:
            raise DataError(f"{where}: rating is {rating!r}, expected 1 to {scale}, or nothing")
        if not np.isnan(ratings[int(number) - 1]):
            raise DataError(f"{where}: text {number} is rated twice")
        ratings[int(number) - 1] = int(rating)
    if np.isnan(ratings).all():
        raise DataError(f"error: {path}: no text is rated: fill in the column rating")
    return ratings


def summarize(ratings: NDArray[np.float64], models: Sequence[str]) -> dict[str, Rating]:
    """Return the mean rating of each model; its interval is over texts, each with the mean of its raters.

    Args:
        ratings: (raters, texts), NaN where there is none.
        models: whose each text is.
    """
    rng = np.random.default_rng(0)
    found = {}
    for name in dict.fromkeys(models):
        own = ratings[:, [model == name for model in models]]
        own = own[:, ~np.isnan(own).all(axis=0)]
        if not own.size:
            continue
        means = np.nanmean(own, axis=0)
        drawn = means[rng.integers(len(means), size=(NUM_RESAMPLES, len(means)))].mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        found[name] = Rating(float(means.mean()), float(low), float(high), int((~np.isnan(own)).sum()))
    return found


def agreement(ratings: NDArray[np.float64], level: str) -> float | None:
    """Return Krippendorff's alpha, None where it is not defined: one rater, or the same rating everywhere.

    Args:
        ratings: (raters, texts), NaN where there is none.
        level: nominal, ordinal or interval.
    """
    import krippendorff

    both = (~np.isnan(ratings)).sum(axis=0) > 1
    if not both.any() or len(np.unique(ratings[:, both][~np.isnan(ratings[:, both])])) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement=level))


def conclusions(found: Mapping[str, Rating], alpha: float | None, raters: int, level: str) -> list[str]:
    """Say in words who is better, and whether the raters agree enough to believe it."""
    sentences = []
    ranked = sorted(found, key=lambda name: -found[name].mean)
    for better, worse in itertools.pairwise(ranked):
        apart = found[better].low > found[worse].high
        sentences.append(
            f"{better} is rated higher than {worse}: their intervals do not overlap."
            if apart
            else f"{better} and {worse} cannot be told apart: their intervals overlap."
        )
    if alpha is None:
        why = "there is one rater" if raters == 1 else "no two raters gave different ratings to the same texts"
        return [*sentences, f"Agreement cannot be measured: {why}."]
    verdict = "enough to go by" if alpha >= MIN_ALPHA else f"too little to conclude much (below {MIN_ALPHA})"
    return [*sentences, f"Agreement of {raters} raters: Krippendorff's alpha ({level}) {alpha:.3f}, {verdict}."]


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Texts to rate</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 45rem; padding: 0 1rem 5rem; color: #222 }
section { border: 1px solid #ccc; border-radius: 6px; padding: .3rem 1rem 1rem; margin: 1rem 0 }
h2 { font-size: 1rem } .text { white-space: pre-wrap; overflow-wrap: anywhere } .prompt { color: #888 }
fieldset { border: 0; padding: 0 } legend { color: #555; font-size: .9rem } label { margin-right: 1.2rem }
footer { position: fixed; bottom: 0; left: 0; right: 0; background: #f3f3f3; padding: .8rem; text-align: center }
button { font: inherit; padding: .3rem 1rem }
</style>
<h1>Texts to rate</h1>
<p>Please rate each text by itself. A text may be left out. At the end, save the ratings and send the file back.</p>
@CARDS@
<footer><span id="done">0</span> of @COUNT@ rated <button onclick="save()">Save ratings</button></footer>
<script>
const chosen = () => [...document.querySelectorAll("input:checked")];
document.addEventListener("change", () => { document.getElementById("done").textContent = chosen().length; });
function save() {
  const rows = ["number,rating", ...chosen().map(input => input.name + "," + input.value)];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.join("\\n") + "\\n"], { type: "text/csv" }));
  link.download = "ratings.csv";
  link.click();
}
</script></html>
"""
