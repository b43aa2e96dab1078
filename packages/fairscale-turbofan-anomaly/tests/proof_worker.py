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
from fairscale.nn.checkpoint import checkpoint_wrapper
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale_turbofan_anomaly import checkpointing, data, evaluate, sharding
from fairscale_turbofan_anomaly.config import TrainConfig
from fairscale_turbofan_anomaly.model import build_model
from fairscale_turbofan_anomaly.train import Run
from torch import nn
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records
from trainyard_shared.tensors.quick_start import postpone_dynamo


class ChunksThatOwnWeights(nn.Module):
    """What one would write first: the module that is checkpointed holds the weights, and runs once for each chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.step = checkpoint_wrapper(nn.GRU(14, 8, batch_first=True))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        state = windows.new_zeros(1, len(windows), 8)
        for piece in windows.split(8, dim=1):
            _, state = self.step(piece, state)
        return state.sum(dim=(0, 2))


def error_of_gradients(model: nn.Module) -> float:
    """Return by how much a gradient after ShardedDataParallel differs from the mean of all processes' gradients.

    As a share of the largest gradient, over all processes.
    """
    windows = torch.randn(4, 32, 14, generator=torch.Generator().manual_seed(dist.get_rank()))
    model(windows).square().mean().backward()
    means = [parameter.grad.clone() for parameter in model.parameters()]
    for mean in means:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    largest = max(mean.abs().max() for mean in means)
    model.zero_grad()
    sharded = sharding.Oss(model, TrainConfig(), torch.device("cpu"))
    sharded.parallel(windows).square().mean().backward()
    pairs = [(p.grad, mean) for p, mean in zip(model.parameters(), means, strict=True) if p.grad is not None]
    error = torch.stack([(grad - mean).abs().max() for grad, mean in pairs]).max() / largest
    dist.all_reduce(error, dist.ReduceOp.MAX)
    return error.item()


def make_fault(fault: str | None, run: Run) -> None:
    """What the code guards against, to see that the proofs would notice it."""
    if fault == "default buckets":
        run.sharded.parallel = ShardedDataParallel(run.sharded.parallel.module, run.sharded.optimizer)
    elif fault == "reduce every micro-batch":
        run.sharded.parallel.no_sync = contextlib.nullcontext
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
        run.whole.load_state_dict(run.weights())
        before = evaluate.score(run.whole, run.parts.val, config, torch.device("cpu"))
        progress = console.TrainingProgress(run.total_windows, show=False)
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.epoch, run.used = run.epoch + 1, 0
        outcome[name] = {
            "weights": {name: tensor.tolist() for name, tensor in run.weights().items()},
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "scores_before": before[:101].tolist(),
            "bytes": run.sharded.held_bytes(),
            "predicted": run.predicted_bytes,
            "notes": run.notes,
        }
    torch.manual_seed(0)
    config = TrainConfig(checkpointing="fairscale", chunk=8, hidden_size=8, num_layers=1)
    outcome["error of gradients"] = {
        "segments": error_of_gradients(checkpointing.apply(build_model(config, 14), "fairscale")),
        "chunks that own weights": error_of_gradients(ChunksThatOwnWeights()),
    }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
