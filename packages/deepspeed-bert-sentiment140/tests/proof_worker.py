"""Trains several small configurations in groups of processes and writes down every loss.

    python proof_worker.py GROUPS.json

Importing DeepSpeed and transformers costs more than all these trainings together: this process does it once, and every
process of every group is a fork of it. GROUPS.json is a list of {"folder", "world_size", "cases"}.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
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


def train_cases(folder: Path, cases: dict) -> None:
    """Run the cases of a group in one of its processes."""
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


def main(groups: list[dict]) -> None:
    """Run one group after the other; end with the worst status of any process."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    with train.quiet_stdout():
        import deepspeed  # noqa: F401
    transformers.BertForSequenceClassification  # noqa: B018 - is imported when it is asked for
    status = 0
    for group in groups:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        size = str(group["world_size"])
        children = []
        for rank in range(group["world_size"]):
            if not (child := os.fork()):
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
                launch.run_worker(lambda group=group: train_cases(Path(group["folder"]), group["cases"]))
            children.append(child)
        status = max([status, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)], key=abs)
    sys.exit(abs(status))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
