"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import contextlib
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale_gpt2_accumulation import data, evaluate
from fairscale_gpt2_accumulation.config import TrainConfig
from fairscale_gpt2_accumulation.train import Run
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records


class Held:
    """A tensor that autograd keeps; it counts itself for as long as it is kept."""

    live = 0
    peak = 0
    kept: dict[int, int] = {}  # noqa: RUF012 - by storage: how often it is kept

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.storage, self.bytes = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if not Held.kept.setdefault(self.storage, 0):
            Held.live += self.bytes
            Held.peak = max(Held.peak, Held.live)
        Held.kept[self.storage] += 1

    def __del__(self) -> None:
        Held.kept[self.storage] -= 1
        if not Held.kept[self.storage]:
            Held.live -= self.bytes


@contextlib.contextmanager
def activation_peak(model: torch.nn.Module) -> Any:
    """Measure the most bytes that autograd keeps at any time within the block, parameters not counted."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    Held.live = Held.peak = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor if tensor.untyped_storage()._cdata in own else Held(tensor),
        lambda held: held.tensor if isinstance(held, Held) else held,
    )
    with hooks:
        yield


def make_fault(fault: str | None, run: Run) -> None:
    """What the loop and `sharding.py` guard against, to see that the proofs would notice it."""
    if fault == "default buckets":
        run.sharded.parallel = ShardedDataParallel(run.sharded.parallel.module, run.sharded.optimizer)
    elif fault == "reduce every micro-batch":
        run.sharded.no_sync = contextlib.nullcontext  # type: ignore[method-assign]
    elif fault == "mean of means":
        # Each micro-batch has the weight of any other, however many tokens it has.
        forward = run.sharded.parallel.forward

        def mean(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            share = run.config.micro_batch_size / run.order.global_batch_size
            return forward(inputs, targets) / (targets >= 0).sum() * run.step_tokens * share

        tokens = run.order.num_tokens

        def num_tokens(step: torch.Tensor) -> int:
            run.step_tokens = tokens(step)
            return run.step_tokens

        run.order.num_tokens, run.sharded.parallel.forward = num_tokens, mean  # type: ignore[method-assign]
    else:
        assert fault is None


def watch_gain(run: Run) -> list[dict[str, float]]:
    """Record, at each step of AdaScale, its estimates and what its definition gives from single gradients.

    The gradient of each micro-batch of each process is taken by itself, on every process, from a copy of the model.
    """
    found: list[dict[str, float]] = []
    clip, share = run.sharded.clip_grad_norm, run.order.batches.share
    step_blocks: list[torch.Tensor] = []

    def remember(step: torch.Tensor) -> Any:
        step_blocks[:] = [step]
        return share(step)

    def clip_and_record(max_norm: float) -> None:
        model = copy.deepcopy(run.sharded.whole())  # AdaScale's hooks are on the parameters of the other one
        gradients, total = [], run.order.num_tokens(step_blocks[0])
        num = run.world_size * run.config.gradient_accumulation_steps
        for rank in range(run.world_size):
            run.order.batches.rank = rank
            for index, _ in share(step_blocks[0]):
                inputs, targets = data.micro_batch(run.blocks, index, 0, run.device)
                grads = torch.autograd.grad(model(inputs, targets) * num / total, list(model.parameters()))
                gradients.append(torch.cat([g.flatten() for g in grads]).double())
        run.order.batches.rank = run.rank
        each = torch.stack(gradients)
        mean = each.mean(dim=0)
        # Appendix B.3 of the paper: unbiased variance of a single gradient, squared norm of the true one.
        variance = float((each - mean).pow(2).sum() / (num - 1))
        found.append({"variance": variance, "norm": max(float(mean.pow(2).sum()) - variance / num, 0.0)})
        found[-1]["gain"] = float(run.sharded.gain() or 0)
        found[-1]["factor"] = float(run.sharded.adascale.smoothing)  # type: ignore[attr-defined]
        clip(max_norm)

    run.order.batches.share = remember  # type: ignore[method-assign]
    run.sharded.clip_grad_norm = clip_and_record  # type: ignore[method-assign]
    return found


def main(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    outcome = {}
    for name, case in cases.items():
        began = time.perf_counter()
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), torch.device("cpu"))
        make_fault(case.get("fault"), run)
        gains = watch_gain(run) if config.adascale else []
        tokens = run.val_tokens[:102]  # 101 tokens: 7 windows of 16, the last one shorter
        before = evaluate.likelihood(run.sharded.whole(), tokens, 16, 16, "fp32", torch.device("cpu"))
        progress = console.TrainingProgress(run.total_blocks, show=False)
        with activation_peak(run.sharded.parallel):
            while run.epoch < config.epochs:
                run.train_epoch(progress)
                run.epoch, run.used = run.epoch + 1, 0
        outcome[name] = {
            "weights": {name: tensor.tolist() for name, tensor in run.gather_weights().items()},
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
            "learning_rates": {r["step"]: r["learning_rate"] for r in read_records(run_dir)},
            "nll_before": before.nll,
            "bytes": run.sharded.held_bytes() | {"activations": run.activation_bytes},
            "activation_peak": Held.peak,
            "predicted": run.predicted_bytes,
            "notes": run.notes,
            "gains": gains,
            "lengths": run.blocks.lengths.tolist(),
            "seconds": time.perf_counter() - began,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
