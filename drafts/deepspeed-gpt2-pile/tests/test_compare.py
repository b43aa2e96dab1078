"""The comparisons run, and say in words what their figures say."""

from pathlib import Path
from typing import Any

from deepspeed_gpt2_pile.compare import ENGINES, conclusions
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_ways_to_fine_tune_are_compared(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_documents: 200\nnum_val_documents: 4\nnum_test_documents: 6\nepochs: 1\nsteps_per_epoch: 3\n"
        "context_length: 64\nlog_every: 1\n"
    )
    flags = [
        "--what",
        "tuning",
        "--model",
        str(trained / "model"),
        "--config",
        "tiny.yaml",
        "--seeds",
        "1",
        "--nproc",
        "1",
    ]
    finished = run([script("compare"), *flags], tmp_path, timeout_s=160)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "deepspeed-gpt2-pile").iterdir()
    summaries = {s["tuning"]: s for s in map(read_json, folder.glob("runs/*/*/*/summary.json"))}
    assert set(summaries) == {"full", "last", "lora"}
    assert summaries["lora"]["num_trained_parameters"] < summaries["last"]["num_trained_parameters"]
    held = {name: s["memory"]["measured_bytes"]["optimizer"] for name, s in summaries.items()}
    assert held["lora"] < held["full"]
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("full", "last layers", "LoRA"))
    assert (folder / "plots" / "state_bytes.png").is_file()
    assert "One seed says nothing" in finished.stdout
    needs = run([script("compare"), "--what", "tuning"], tmp_path)
    assert needs.status == 2
    assert "needs a pretrained --model" in needs.stderr


def test_all_stages_are_compared_with_plain_pytorch() -> None:
    assert ENGINES[0].overrides == {"engine": "ddp"}
    assert {v.overrides.get("deepspeed") for v in ENGINES[1:]} == {"zero0", "zero1", "zero2", "zero3", "zero3_offload"}


def test_conclusions_name_cost_and_saving() -> None:
    def row(name: str, bits: list[float], speed: float, size: float) -> dict[str, Any]:
        values = {"test_bits_per_byte": bits, "tokens_per_second": [speed] * 2, "state_bytes": [size] * 2}
        return {"variant": name, "values": values}

    base = row("plain PyTorch", [2.0, 2.1], 1000, 16)
    assert conclusions([base, row("zero3", [2.05, 2.0], 500, 8)], "engine") == [
        "zero3: 0.50 times the throughput of plain PyTorch, 50% of the bytes of its state.",
        "No difference in bits per byte can be seen at 2 seeds: all compute the same training.",
    ]
    best = conclusions([base, row("LoRA", [1.5, 1.6], 900, 4)], "tuning")[-1]
    assert best == "LoRA has the fewest bits per byte: at 2 seeds its worst is better than all others."
