"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed_vit_fsdp import data, evaluate
from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.train import Run, deepspeed_settings, start
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records

CPU = torch.device("cpu")


def make_fault(fault: str | None, run: Run) -> None:
    """What would be wrong, to see that the proofs would notice it."""
    if fault == "not divided by the accumulation":
        backward = run.engine.backward
        run.engine.backward = lambda loss: backward(loss, scale_wrt_gas=False)
    elif fault == "weights of the library under zero.Init":
        import deepspeed
        from deepspeed_vit_fsdp import model

        settings = run.settings_for(run.whole)
        torch.manual_seed(run.config.seed)
        with deepspeed.zero.Init(config_dict_or_path=settings):
            run.model = model.make_tiny(run.module_config, "standard")
        run.make_engine(None)
    else:
        assert fault is None


def main(folder: Path, cases: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    start(CPU, 100.0)
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        os.environ["TRAINYARD_RUN_DIR"] = str(run_dir)
        settings = deepspeed_settings(config, dist.get_world_size(), CPU)
        run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), CPU, settings)
        make_fault(case.get("fault"), run)
        images = torch.from_numpy(run.dataset.train_images[:101])
        initial = run.gather_weights()
        run.whole.load_state_dict(initial)
        before = evaluate.predict(run.whole, run.preparation, images, config.precision, CPU).logits
        progress = console.TrainingProgress(run.total_images, show=False)
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.epoch, run.used = run.epoch + 1, 0
        weights = run.gather_weights()
        outcome[name] = {
            "initial": {name: float(tensor.double().sum()) for name, tensor in initial.items()},
            "spread": {name: float(tensor.std()) for name, tensor in initial.items() if tensor.numel() > 1},
            "weights": {name: tensor.flatten().tolist() for name, tensor in weights.items()},
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "logits_before": before.tolist(),
            "grad_norm": float(run.engine.get_global_grad_norm()) if config.engine == "deepspeed" else None,
            "bytes": {**run.held, "activations": run.measured_activations()},
            "predicted": run.predicted_bytes,
            "sent": run.communication,
            "notes": run.notes,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
