"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from colossal_cifar_cnn import data, evaluate, plugins
from colossal_cifar_cnn.config import TrainConfig
from colossal_cifar_cnn.train import Run
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records

CPU = torch.device("cpu")


@contextlib.contextmanager
def fault(name: str | None):
    """What the code guards against, to see that the proofs would notice it."""
    load_weights = plugins.Boosted.load_weights
    if name == "masters from 16 bits":  # as a checkpoint of booster.save_model restores them

        def load_rounded(self, weights):
            load_weights(self, {key: value.bfloat16().float() for key, value in weights.items()})

        plugins.Boosted.load_weights = load_rounded
    yield
    plugins.Boosted.load_weights = load_weights


def main(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)
    plugins.launch(CPU, 0)
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        with fault(case.get("fault")):
            run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), CPU)
        images = torch.from_numpy(run.dataset.train_images[:101])
        run.whole.load_state_dict(run.boosted.weights())
        before = evaluate.predict(run.whole, images, config, CPU).logits
        progress = console.TrainingProgress(run.total_images, show=False)
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.epoch, run.used = run.epoch + 1, 0
        scaler = run.boosted.scaler()
        outcome[name] = {
            "weights": {key: tensor.tolist() for key, tensor in run.boosted.weights().items()},
            "scale": None if scaler is None else scaler.scale.item(),
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "logits_before": before.tolist(),
            "bytes": run.boosted.held_bytes(),
            "predicted": run.predicted_bytes(),
            "notes": run.notes,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
