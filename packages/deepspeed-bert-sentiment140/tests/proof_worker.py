"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed_bert_sentiment140 import evaluate, train, weights
from deepspeed_bert_sentiment140.config import TrainConfig
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records

CPU = torch.device("cpu")


def make_fault(fault: str | None, run: train.Run) -> None:
    """What the marked lines of train.py guard against, to see that the proofs would notice it."""
    if fault == "clip by stage":
        for parameter in run.engine.module.parameters():
            parameter.model_parallel = False
    elif fault == "divide by passes":
        backward = run.engine.backward
        run.engine.backward = lambda loss, scale_wrt_gas: backward(loss)
    elif fault == "own dropout":
        torch.manual_seed(run.rank)
    else:
        assert fault is None


def drift(run: train.Run) -> float:
    """How far apart the weights are that all processes should hold alike under tensor parallelism."""
    furthest = 0.0
    for layer in run.engine.module.modules():
        if not hasattr(layer, "gather_params"):
            for parameter in layer.parameters(recurse=False):
                first = parameter.detach().clone()
                dist.broadcast(first, src=0)
                furthest = max(furthest, (parameter - first).abs().max().item())
    return furthest


def main(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)
    deepspeed = train.start_deepspeed(CPU, 100.0)
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        run = train.Run(Parsed(config, name, (), resume=run_dir), deepspeed, CPU)
        make_fault(case.get("fault"), run)
        progress = console.TrainingProgress(run.total_tweets, show=False)
        num_passes = [len(micro_batches) for _, micro_batches in run.batches.epoch(0)]
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.epoch, run.used = run.epoch + 1, 0
        state = weights.gather(run.engine, run.names, config.parallel, deepspeed)
        run.whole.load_state_dict(state)
        index = run.test_index[:19]
        logits = evaluate.predict(run.whole, run.tweets.sequences, index, run.tokenizer, config, CPU).logits
        apart = [None] * dist.get_world_size()
        dist.all_gather_object(apart, drift(run) if config.parallel == "tensor" else 0.0)
        outcome[name] = {
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "logits": logits.tolist(),
            "weights": {key: tensor.tolist() for key, tensor in state.items()},
            "num_passes": num_passes,
            "trained_tweets": run.trained_tweets,
            "trained_tokens": run.trained_tokens,
            "tokens": int(run.batches.lengths.sum()) * config.epochs,
            "bytes": run.held,
            "predicted": run.predicted_bytes(),
            "drift": max(apart),
        }
        run.engine.destroy()
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
