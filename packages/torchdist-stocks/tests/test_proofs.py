"""Distributed training computes the same numbers as training in one process: loss by loss, forecast by forecast."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BASE = {
    "num_sample_tickers": 3,
    "num_sample_days": 300,
    "test_days": 50,
    "val_days": 20,
    "window": 8,
    "horizon": 3,
    "hidden_size": 8,
    "epochs": 2,
    "patience": 2,
    "baselines": "simple",
    "log_every": 1,
    "learning_rate": 0.01,
}
# Per world size, the same global batch of 32 windows in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "lstm": {"micro_batch_size": 32},
        "gru": {"micro_batch_size": 32, "model": "gru"},
        "embedded log prices": {"micro_batch_size": 32, "target": "log_price", "ticker_embedding_size": 2},
        "clipped": {"micro_batch_size": 32, "max_grad_norm": 0.01},
        "warm": {"micro_batch_size": 32, "warm_start": True},
        "impatient": {"micro_batch_size": 32, "epochs": 6, "patience": 1, "learning_rate": 0.2, "warm_start": True},
    },
    2: {
        "lstm": {"micro_batch_size": 16},
        "gru": {"micro_batch_size": 16, "model": "gru"},
        "embedded log prices": {"micro_batch_size": 16, "target": "log_price", "ticker_embedding_size": 2},
        "clipped": {"micro_batch_size": 16, "max_grad_norm": 0.01},
    },
}


def run_group(world_size: int, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `proof_worker.py` in a group of processes and return what it wrote."""
    (folder / f"cases-{world_size}.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = Path(__file__).with_name("proof_worker.py")
    command = [sys.executable, str(worker), str(folder), str(folder / f"cases-{world_size}.json")]
    environment = os.environ | {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(world_size)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"outcome-{world_size}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proofs")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[int, dict[str, Any]]:
    """Losses and forecasts of all cases, by number of processes."""
    found = {}
    for world_size, named in CASES.items():
        cases: dict[str, Any] = {
            name: {"config": BASE | overrides, "run_dir": f"{name}-{world_size}"} for name, overrides in named.items()
        }
        if world_size == 1:
            cases["altered"] = {"config": BASE | CASES[1]["lstm"], "alter": True, "run_dir": "altered"}
        else:
            checkpoints = {"config": BASE | {"micro_batch_size": 16, "checkpoint_every": 3}, "save": True}
            cases["undisturbed"] = checkpoints | {"run_dir": "undisturbed"}
        found[world_size] = run_group(world_size, cases, folder)
    return found


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


@pytest.mark.parametrize("case", CASES[2])
def test_two_processes_equal_one_with_the_double_batch(outcomes: dict, case: str) -> None:
    one, two = outcomes[1][case], outcomes[2][case]
    assert len(losses(one)) >= 30
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)
    assert len(set(losses(one))) > 10, "it learns, so there is something that could differ"
    for a, b in zip(one["forecasts"], two["forecasts"], strict=True):
        assert b == pytest.approx(a, abs=1e-4)


def test_settings_change_the_losses(outcomes: dict) -> None:
    # So the test above speaks of different trainings.
    all_losses = [tuple(losses(outcomes[1][case])) for case in CASES[1]]
    assert len(set(all_losses)) == len(all_losses)


def test_features_computed_in_shares_are_those_of_one_process(outcomes: dict) -> None:
    assert outcomes[1]["lstm"]["features"] == outcomes[2]["lstm"]["features"]
    assert outcomes[1]["lstm"]["features_computed_here"] == ["GEN00", "GEN01", "GEN02"]
    assert outcomes[2]["lstm"]["features_computed_here"] == ["GEN00", "GEN02"], "rank 0; the other stock is rank 1's"


def test_baselines_computed_in_shares_are_those_of_one_process(outcomes: dict) -> None:
    assert outcomes[1]["lstm"]["baselines"] == outcomes[2]["lstm"]["baselines"]


def test_warm_start_begins_where_the_fold_before_ended(outcomes: dict) -> None:
    fresh, warm = outcomes[1]["lstm"], outcomes[1]["warm"]
    end = max(step for fold, step, _ in fresh["val"] if fold == 1)
    assert losses(warm)[:end] == losses(fresh)[:end]
    assert losses(warm)[end] != losses(fresh)[end]


def test_fold_without_progress_ends_early_and_keeps_its_best_weights(outcomes: dict) -> None:
    val = outcomes[1]["impatient"]["val"]
    for fold in (1, 2):
        of_fold = [loss for number, _, loss in val if number == fold]
        assert len(of_fold) < 6, "the learning rate is far too high for progress in every epoch"
        assert of_fold[-1] > min(of_fold)
        assert outcomes[1]["impatient"]["chosen_val"][fold - 1] == pytest.approx(min(of_fold), rel=1e-5)
        assert of_fold.index(min(of_fold)) == len(of_fold) - 2, "ended one epoch after the best, as patience says"


def test_training_does_not_depend_on_test_prices(outcomes: dict) -> None:
    """Prices after the first test day are altered: weights, scaling and losses of the first fold stay, bit for bit."""
    one, altered = outcomes[1]["lstm"], outcomes[1]["altered"]
    assert one["features"] != altered["features"]
    assert one["weights"][0] == altered["weights"][0]
    assert [loss for fold, _, loss in one["val"] if fold == 1] == [loss for f, _, loss in altered["val"] if f == 1]
    assert one["weights"][1] != altered["weights"][1], "the second fold has learned from them"


@pytest.mark.parametrize("world_size", [1, 2])
def test_predicted_memory_is_what_is_held(outcomes: dict, world_size: int) -> None:
    outcome = outcomes[world_size]["lstm"]
    for name, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.01), name


def test_run_killed_in_an_epoch_continues_with_another_number_of_processes(outcomes: dict, folder: Path) -> None:
    """In the second fold, so that the weights of the first have to come from the checkpoint."""
    undisturbed = outcomes[2]["undisturbed"]
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "undisturbed/checkpoints").iterdir())
    # As if it had been killed right after the older of the two checkpoints that are kept.
    shutil.rmtree(folder / "undisturbed/checkpoints" / f"step-{steps[1]:08d}")
    config = BASE | {"micro_batch_size": 32, "checkpoint_every": 3}
    continued = run_group(1, {"one": {"config": config, "run_dir": "undisturbed"}}, folder)["one"]
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert continued["weights"][0] == undisturbed["weights"][0]
    for a, b in zip(continued["forecasts"], undisturbed["forecasts"], strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    assert "resumed with 1 processes and a global batch of 32; before: 2 and 32" in continued["notes"][-1]
