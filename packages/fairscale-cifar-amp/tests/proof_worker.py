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
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale_cifar_amp import data, evaluate
from fairscale_cifar_amp.config import TrainConfig
from fairscale_cifar_amp.train import Run
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records
from trainyard_shared.tensors.quick_start import postpone_dynamo


def make_fault(fault: str | None, run: Run) -> None:
    """What the settings of `sharding.py` guard against, to see that the proofs would notice it."""
    if fault == "default buckets":
        run.sharded.parallel = ShardedDataParallel(run.sharded.parallel.module, run.sharded.optimizer)
    elif fault == "reduce every micro-batch":
        run.sharded.no_sync = contextlib.nullcontext  # type: ignore[method-assign]
    elif fault == "overflow on rank 1":
        step = run.sharded.scaler.step

        def step_with_overflow(optimizer: torch.optim.Optimizer) -> None:
            if run.step == 2 and dist.get_rank() == 1:
                next(p.grad for p in run.sharded.parallel.parameters() if p.grad is not None).fill_(float("inf"))
            step(optimizer)

        run.sharded.scaler.step = step_with_overflow  # type: ignore[method-assign]
    else:
        assert fault is None


def main(folder: Path, cases: dict) -> None:
    postpone_dynamo()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), torch.device("cpu"))
        make_fault(case.get("fault"), run)
        images = torch.from_numpy(run.dataset.train_images[:101])
        run.whole.load_state_dict(run.gather_weights())
        before = evaluate.predict(run.whole, images, config, torch.device("cpu")).logits
        progress = console.TrainingProgress(run.total_images, show=False)
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.epoch, run.used = run.epoch + 1, 0
        run.whole.load_state_dict(run.gather_weights())
        after = evaluate.predict(run.whole, images, config, torch.device("cpu")).logits
        outcome[name] = {
            "weights": {name: tensor.tolist() for name, tensor in run.gather_weights().items()},
            "scale": run.sharded.scaler.get_scale(),
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "logits_before": before.tolist(),
            "logits_after": after.tolist(),
            "bytes": run.sharded.held_bytes(),
            "predicted": run.predicted_bytes,
            "notes": run.notes,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
