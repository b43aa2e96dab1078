"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torchdist_imdb import data, evaluate
from torchdist_imdb.config import TrainConfig
from torchdist_imdb.train import Run
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records


def main(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), torch.device("cpu"))
        reviews = data.encode_together(data.Encoder(run.tokenizer, config), run.dataset.test_texts[:19])

        def logits(run: Run = run, reviews: data.Sequences = reviews, config: TrainConfig = config) -> list:
            pad_id = run.tokenizer.pad_token_id
            return evaluate.predict(run.model, reviews, pad_id, config, torch.device("cpu")).logits.tolist()

        before = logits()
        progress = console.TrainingProgress(run.total_reviews, show=False)
        num_micro_batches = [len(micro_batches) for _, micro_batches in run.batches.epoch(0)]
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.epoch, run.used = run.epoch + 1, 0
        outcome[name] = {
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "logits_before": before,
            "logits_after": logits(),
            "num_micro_batches": num_micro_batches,
            "trained_reviews": run.trained_reviews,
            "trained_tokens": run.trained_tokens,
            "gradient_norm": float(
                torch.stack([p.grad.norm() for p in run.model.parameters() if p.requires_grad]).norm()
            ),
            "tokens": int(run.reviews.lengths.sum()) * config.epochs,
            "bytes": run.measured_bytes(),
            "predicted": run.predicted_bytes(),
            "notes": run.notes,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
