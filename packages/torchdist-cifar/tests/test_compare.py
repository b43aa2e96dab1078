"""`compare`: the variants it runs, what it writes, and that it can go on where it stopped."""

from pathlib import Path

import pytest
from torchdist_cifar.compare import conclusions
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_trains_every_variant_and_reports(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_images: 600\nnum_val: 20\nwidths: [8, 8, 8]\nlog_every: 1\nmicro_batch_size: 16\n"
    )
    compare = [script("compare"), "--config", "tiny.yaml", "--seeds", "1", "--epochs", "1", "--nproc", "1", "2"]
    finished = run(compare, tmp_path)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "torchdist-cifar").iterdir()
    summaries = {p.parents[2].name: read_json(p) for p in folder.glob("runs/*/*/*/summary.json")}
    assert {name: s["world_size"] for name, s in summaries.items()} == {"1-process-seed0": 1, "2-processes-seed0": 2}
    assert {s["global_batch_size"] for s in summaries.values()} == {32}
    assert {s["threads_per_process"] for s in summaries.values()} == {1}
    assert "2 processes" in (folder / "report.html").read_text()
    assert (folder / "plots" / "scaling.png").is_file()
    assert "times the throughput" in finished.stdout
    assert "One seed says nothing" in finished.stdout
    again = run([*compare, "--resume", str(folder)], tmp_path)
    assert again.status == 0, again.stderr
    assert again.stdout.count("finished before") == 2


def test_batch_that_cannot_be_shared_out(tmp_path: Path) -> None:
    finished = run([script("compare"), "--nproc", "3", "5"], tmp_path)
    assert finished.status == 2
    assert "the global batch of 320 images does not divide by 3" in finished.stderr


@pytest.mark.parametrize(
    ("alone", "together", "words"),
    [([0.90, 0.92], [0.91, 0.93], "ranges overlap"), ([0.90, 0.91], [0.80, 0.85], "ranges do not overlap")],
)
def test_conclusions_speak_of_differences_only_beyond_the_spread(
    alone: list[float], together: list[float], words: str
) -> None:
    rows = [
        {"variant": "1 process", "values": {"images_per_second": [100.0, 110.0], "test_accuracy": alone}},
        {"variant": "2 processes", "values": {"images_per_second": [150.0, 165.0], "test_accuracy": together}},
    ]
    sentences = conclusions(rows, [1, 2])
    assert sentences[0] == "2 processes: 1.50 times the throughput, an efficiency of 75%."
    assert words in sentences[1]
