import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from trainyard_shared import plotting, report
from trainyard_shared.errors import DataError

SUMMARY: dict[str, Any] = {
    "package": "torchdist-cifar",
    "config": "cpu",
    "config_changed": ["learning_rate"],
    "state": "finished",
    "data": {"kind": "real", "name": "CIFAR-10", "source": "an archive", "num_train": 45000, "num_test": 10000},
    "metrics": {
        "test_accuracy": {
            "value": 0.9123,
            "unit": "fraction",
            "protocol": "whole test set, each image once",
            "interval": [0.9066, 0.9177],
        },
        "test_loss": {"value": "nan", "unit": "nats"},
    },
    "world_size": 2,
    "device": "cpu",
    "wall_time_s": 95.3,
    "throughput": {"images_per_second": 1234.5},
    "phases_s": {"start_up": 5.5, "train": 80.0},
    "memory": {
        "peak_bytes": 3 * 2**28,
        "peak_of": "whole process",
        "predicted_bytes": {"parameters": 2**20, "gradients": 2**20},
        "measured_bytes": {"parameters": 2**20, "gradients": 1.5 * 2**20, "optimizer": 2**21},
        "measured_bytes_per_rank": [{"parameters": 2**20}, {"parameters": 2**22, "peak_bytes": 2**30}],
    },
    "per_class": [
        {"name": "<script>alert('cat')</script>", "precision": 0.5, "recall": "nan", "f1": 0.25, "support": 1000},
    ],
    "versions": {"torch": "2.13.0"},
    "git_commit": "2d860ae0f3b1",
    "command": "train --config cpu --learning-rate 0.4",
    "started_at": "2026-11-21T07:00:00+00:00",
    "notes": ["2 processes share 2 cores & are slow"],
}
RECORDS = [
    {"kind": "train", "step": 20, "epoch": 0.4, "loss": 1.9, "learning_rate": 0.1},
    {"kind": "val", "step": 50, "epoch": 1, "loss": 1.23456, "accuracy": 0.5},
]


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots")
    plotting.confusion_matrix(np.eye(2, dtype=int), ["a", "b"], folder / "confusion_matrix.png")
    plotting.training_curves(RECORDS, folder / "curves.png")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path, plots: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "config.yaml").write_text("epochs: 10\nlearning_rate: 0.4\ndata_dir: null\naugment: [flip, crop]\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    shutil.copytree(plots, run / "plots")
    return run


class Page(HTMLParser):
    """The words of a page as a reader sees them, and its tags with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)


def rewrite(run_dir: Path, **changes: Any) -> None:
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | changes))


def test_report_shows_what_the_run_left(run_dir: Path) -> None:
    path = report.write_report(run_dir)
    assert path == run_dir / "report.html"
    text = Page(path).text
    for words in (
        "torchdist-cifar · cpu finished",
        "test accuracy 91.23 % 95 % interval: 90.66 % to 91.77 % whole test set, each image once",
        "test loss NaN",
        "processes 2",
        "wall time 1 min 35 s",
        "images per second 1,234",
        "time to train 1 min 20 s",
        "peak 768 MiB counted for the peak whole process",
        "gradients 1 MiB 1.5 MiB 150.0 %",
        "optimizer – 2 MiB –",
        "rank parameters 0 1 MiB 1 4 MiB",
        "training samples 45,000",
        "torch 2.13.0",
        "50 1 1.235 50.00 %",
        "epochs 10 learning_rate changed 0.4 data_dir null augment [flip, crop]",
        "train --config cpu --learning-rate 0.4",
        "2d860ae0f3b1",
        "2 processes share 2 cores & are slow",
    ):
        assert words in text
    assert "Generated sample" not in text
    assert sum(attributes.get("class") == "changed" for _, attributes in Page(path).tags) == 1


def test_text_from_files_is_escaped(run_dir: Path) -> None:
    page = Page(report.write_report(run_dir))
    assert "script" not in [tag for tag, _ in page.tags]
    assert html.escape("<script>alert('cat')</script>", quote=False) in page.source.replace("&#39;", "'")
    assert "<script>alert('cat')</script> 50.00 % – 25.00 % 1,000" in page.text


def test_sample_data_cannot_be_missed(run_dir: Path) -> None:
    rewrite(run_dir, data={"kind": "sample"}, next_command="train --config full")
    text = Page(report.write_report(run_dir)).text
    banner = text.index("Generated sample data")
    assert banner < text.index("91.23 %")
    assert "The figures on this page say nothing about the real task. For the real thing: train --config full" in text


def test_report_needs_nothing_from_outside(run_dir: Path) -> None:
    page = Page(report.write_report(run_dir))
    references = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(references) == 3  # two pictures and the empty icon
    assert all(str(reference).startswith("data:") for reference in references)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"base64,[^\"]*", "", page.source))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == ["curves", "confusion matrix"]


def test_long_tables_are_folded_up(run_dir: Path) -> None:
    rewrite(
        run_dir, per_class=[{"name": f"c{i}", "precision": 1, "recall": 1, "f1": 1, "support": 5} for i in range(100)]
    )
    page = Page(report.write_report(run_dir))
    by_class, validation = (attributes for tag, attributes in page.tags if tag == "details")
    assert "open" not in by_class
    assert "open" in validation


def test_conclusions_and_tables_of_a_project_are_shown(run_dir: Path) -> None:
    table = {
        "title": "Forecasters & more",
        "columns": ["name", "error"],
        "rows": [["a < b", "1.5"]],
        "note": "smaller is better",
    }
    extended = SUMMARY | {"conclusions": ["Nothing beats <today>."], "tables": [table]}
    (run_dir / "summary.json").write_text(json.dumps(extended))
    page = report.write_report(run_dir).read_text()
    assert "<li>Nothing beats &lt;today&gt;.</li>" in page
    assert "<h2>Forecasters &amp; more</h2>" in page
    assert '<td>a &lt; b</td><td class="number">1.5</td>' in page
    assert "smaller is better" in page
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"tables": ["no table"]}))
    with pytest.raises(DataError, match="'tables' must hold objects, found no table"):
        report.write_report(run_dir)


def test_every_part_of_the_summary_may_be_absent(run_dir: Path) -> None:
    for name in SUMMARY:
        (run_dir / "summary.json").write_text(json.dumps({key: SUMMARY[key] for key in SUMMARY if key != name}))
        assert "</html>" in report.write_report(run_dir).read_text()


def test_a_run_without_summary_has_a_report_of_what_is_there(run_dir: Path) -> None:
    (run_dir / "summary.json").unlink()
    shutil.rmtree(run_dir / "plots")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "val", "st')
    page = Page(report.write_report(run_dir))
    assert "run no summary yet" in page.text
    assert "1 records step epoch loss accuracy 50 1 1.235 50.00 %" in page.text
    assert "img" not in [tag for tag, _ in page.tags]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", '{"state": ', "summary.json: cannot be read"),
        ("summary.json", "[1]", "summary.json: must hold one JSON object"),
        ("summary.json", '{"metrics": [0.9]}', "summary.json: 'metrics' must be an object, found list"),
        ("summary.json", '{"metrics": {"test_accuracy": 0.9}}', "summary.json: 'metrics' must hold objects, found 0.9"),
        ("summary.json", '{"notes": "slow"}', "summary.json: 'notes' must be a list, found str"),
        ("config.yaml", "epochs: [1", "config.yaml: cannot be read as YAML"),
        ("config.yaml", "- 1", "config.yaml: must hold one mapping"),
        ("metrics.jsonl", 'x\n{"kind": "val"}\n', "metrics.jsonl, line 1"),
    ],
)
def test_a_broken_file_is_named_and_the_old_report_stays(run_dir: Path, name: str, content: str, words: str) -> None:
    (run_dir / "report.html").write_text("the old report")
    (run_dir / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(words)):
        report.write_report(run_dir)
    assert (run_dir / "report.html").read_text() == "the old report"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run folder"):
        report.write_report(tmp_path)


COMPARISON: dict[str, Any] = {
    "title": "Sharded against plain",
    "protocol": "Same data, seeds and global batch size of 128.",
    "metrics": {
        "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set"},
        "peak_bytes": {"unit": "bytes", "higher_is_better": False},
        "steps": {},
    },
    "rows": [
        {"variant": "plain", "values": {"test_accuracy": [0.90, 0.92], "peak_bytes": [2**30, 2**30], "steps": [5]}},
        {
            "variant": "sharded <2>",
            "description": "two processes",
            "values": {"test_accuracy": [0.91, 0.93], "peak_bytes": [2**29, 2**29], "steps": [7]},
        },
        {"variant": "diverged", "values": {"test_accuracy": [0.8, float("nan")]}},
    ],
    "commands": ["train --seed 0", "train --seed 1"],
    "conclusions": ["Sharding halves the memory."],
}


def best_cells(page: Page) -> int:
    return sum(tag == "td" and "best" in (attributes.get("class") or "") for tag, attributes in page.tags)


def test_comparison_marks_the_best_only_where_the_spread_allows_it(tmp_path: Path) -> None:
    page = Page(report.write_comparison_report(tmp_path, COMPARISON))
    assert best_cells(page) == 1
    for words in (
        "plain 91.00 % ± 1.41 % 90.00 % to 92.00 %, n = 2 1 GiB ± 0 bytes 1 GiB to 1 GiB, n = 2 5 n = 1",
        "sharded <2> two processes 92.00 % ± 1.41 %",
        "512 MiB ± 0 bytes best 512 MiB to 512 MiB, n = 2",
        "diverged not finite in 1 of 2",
        "test accuracy: no clear difference at 2 seeds.",
        "peak: sharded <2> is best: its worst seed is better than the best seed of every other variant.",
        "Same data, seeds and global batch size of 128.",
        "test accuracy: whole test set",
        "train --seed 0 train --seed 1",
        "Sharding halves the memory.",
    ):
        assert words in page.text
    assert "steps:" not in page.text


def test_comparison_of_single_seeds_marks_nothing(tmp_path: Path) -> None:
    rows = [{"variant": name, "values": {"test_accuracy": [value]}} for name, value in (("a", 0.1), ("b", 0.9))]
    page = Page(report.write_comparison_report(tmp_path, COMPARISON | {"rows": rows}))
    assert best_cells(page) == 0
    assert "test accuracy: no clear difference at 1 seed: the spread is not known." in page.text


def test_comparison_of_sample_data_says_so(tmp_path: Path) -> None:
    comparison = COMPARISON | {"data": {"kind": "sample"}, "next_command": "compare --config full"}
    assert (
        "For the real thing: compare --config full" in Page(report.write_comparison_report(tmp_path, comparison)).text
    )


def test_importing_is_quick() -> None:
    code = "import sys, trainyard_shared.report; assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.network
def test_the_wheel_has_the_templates(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed: no wheel to look into")
    project = Path(__file__).parents[1]
    subprocess.run([uv, "build", "-q", "--wheel", "--out-dir", tmp_path, project], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/templates/" in name}
    assert shipped == {path.name for path in (project / "src/trainyard_shared/templates").iterdir()}


def in_chromium(page: Path, profile: Path) -> tuple[str, str]:
    """Return the page's DOM after loading, and what the browser had to say on its console."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: the report is not tried in a browser")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    )
    done = subprocess.run(
        [chromium, *flags.split(), f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_browser_has_no_complaint(run_dir: Path, tmp_path: Path) -> None:
    dom, console = in_chromium(report.write_report(run_dir), tmp_path / "profile")
    assert "91.23&nbsp;%" in dom or "91.23 %" in dom
    assert console == ""


def test_the_browser_shows_the_pictures_in_their_size(run_dir: Path, tmp_path: Path) -> None:
    page = report.write_report(run_dir).read_text()
    # The report forbids scripts; the copy that measures its pictures has to allow one.
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page)
    script = "document.title = [...document.images].map(i => i.naturalWidth + 'x' + i.naturalHeight).join(' ')"
    probe = tmp_path / "probe.html"
    probe.write_text(page.replace("</body>", f"<script>onload = () => {{ {script} }}</script></body>"))
    dom, _ = in_chromium(probe, tmp_path / "profile")
    sizes = [imread(run_dir / "plots" / f"{name}.png").shape for name in ("curves", "confusion_matrix")]
    assert f"<title>{' '.join(f'{width}x{height}' for height, width, _ in sizes)}</title>" in dom
