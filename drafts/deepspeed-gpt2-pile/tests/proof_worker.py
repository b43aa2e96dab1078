"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed_gpt2_pile import data, evaluate, model
from deepspeed_gpt2_pile.config import TrainConfig
from deepspeed_gpt2_pile.train import Run, deepspeed_settings, start
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records


def make_fault(fault: str | None, run: Run) -> None:
    """What the proofs are to notice."""
    if fault == "loss not divided":
        run.engine.gradient_accumulation_steps = lambda: 1  # of which backward would divide by 2
    elif fault == "same data everywhere":
        run.batches = data.TrainBatches(
            run.files, run.config, run.tokenizer, data.start_cursors(run.config), 0, run.world_size
        )
    else:
        assert fault is None


def main(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)
    start(torch.device("cpu"), 100)
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        settings = deepspeed_settings(config, dist.get_world_size(), torch.device("cpu"))
        run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), torch.device("cpu"), settings)
        make_fault(case.get("fault"), run)
        before = run.gather_weights()
        progress = console.TrainingProgress(run.total_steps, show=False)
        while run.step < run.total_steps:
            run.train_epoch(progress)
        after = run.gather_weights()
        model.set_weights(run.whole, before)
        measured = evaluate.measure(run.whole, run.tokenizer, run.files.test, 13, config, torch.device("cpu"))
        outcome[name] = {
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "weights": {name: tensor.flatten().tolist() for name, tensor in after.items()},
            "changed": {name: bool((after[name] != before[name]).any()) for name in before},
            "bytes": run.held,
            "predicted": run.predicted_bytes,
            "nats": measured.nats.tolist(),
            "counted": [measured.tokens.tolist(), measured.bytes.tolist(), measured.component],
            "notes": run.notes,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
