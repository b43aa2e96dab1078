"""Data parallel training with torch.distributed, walking forward through time.

Every process runs this file. What makes it distributed is marked [dist]:

    init_process_group      processes find each other through RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    all_gather_object       each process computes the features of its share of the stocks; all get those of all
    DistributedDataParallel same weights everywhere; gradients are averaged while the backward pass still runs
    all_reduce              sums of losses and counts, and whether any process was asked to stop
    checkpoints             rank 0 writes; every rank reads
"""

import datetime
import math
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared import console, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.stocks import PriceDataset
from trainyard_shared.errors import TrainyardError, UsageError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.checkpointing import newest_for_all
from trainyard_shared.tensors.images import BatchOrder
from trainyard_shared.tensors.quick_start import postpone_dynamo

from torchdist_stocks import data, evaluate
from torchdist_stocks.config import TrainConfig
from torchdist_stocks.model import build_model, pinball

PACKAGE = "torchdist-stocks"


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train through all folds, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, device or settings do not fit; the message says how.
    """
    config = parsed.config
    postpone_dynamo()
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    # [dist] NCCL between GPUs, Gloo between CPUs. A peer that is silent for longer than the time-out is given up.
    timeout = datetime.timedelta(seconds=config.collective_timeout_s)
    dist.init_process_group(launch.backend_for(device.type), timeout=timeout)

    dataset = data.load(config)
    panel = data.make_panel(dataset.prices, config.window, config.horizon)
    run = Run(parsed, dataset, panel, device)
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(run.total_windows(), run.windows_done(), show=dist.get_rank() == 0) as progress:
        while run.fold < len(run.folds):
            run.train_epoch(progress)
            run.validate(progress)
            run.next_epoch()
            run.save()
    run.finish()
    launch.leave_together()


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(
        self, parsed: Parsed[TrainConfig], dataset: PriceDataset, panel: data.Panel, device: torch.device
    ) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device = parsed, dataset, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.panel = panel.to(device)
        self.folds = data.make_folds(panel, config)
        self.orders = [
            BatchOrder(len(fold.train), config.micro_batch_size, 1, self.rank, self.world_size, config.seed)
            for fold in self.folds
        ]
        for fold, order in zip(self.folds, self.orders, strict=True):
            if not order.num_global_batches():
                raise UsageError(
                    f"error: micro_batch_size x processes = {config.micro_batch_size} x {self.world_size} = "
                    f"{order.global_batch_size} windows, but fold {fold.number + 1} has only {len(fold.train)} "
                    "training windows"
                )
        self.global_batch_size = self.orders[0].global_batch_size

        self.model = build_model(config, len(panel.tickers))
        three = torch.zeros(3, config.window, panel.features.shape[1])
        first = torch.zeros(3, dtype=torch.int64)
        self.activation_bytes = memory.activation_bytes(
            self.model, three, three[:, :, 0], first, batch_size=config.micro_batch_size
        )
        self.model.to(device)
        # [dist] self.parallel(...) is self.model(...) whose backward pass averages gradients. One wrapper for all
        # folds: their weights and scaling are written into the same tensors, alike in all processes.
        self.parallel = DistributedDataParallel(
            self.model,
            device_ids=[device.index] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )

        # Where the run is: fold, epoch of it, windows used of that by all processes together, optimizer steps so far.
        self.fold, self.epoch, self.used, self.step = 0, 0, 0, 0
        self.best: dict[str, Any] = {}
        self.chosen: list[dict[str, Any]] = []  # the weights of the folds that are done
        self.notes: list[str] = list(dataset.notes)
        self.start_fold()
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_windows = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # [dist] All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    # ------------------------------------------------------------------------------------------------ the loop itself

    def start_fold(self) -> None:
        """Prepare a fold: fresh weights, or those of the fold before; scaling from its training days; batches."""
        config, fold = self.config, self.folds[self.fold]
        if config.warm_start and self.chosen:
            self.model.load_state_dict(self.chosen[-1])
        else:
            torch.manual_seed(config.seed * 1_000_003 + self.fold)
            self.model.load_state_dict(build_model(config, len(self.panel.tickers)).state_dict())
        rows = fold.train_rows.to(self.device)
        panel = self.panel
        self.model.fit_scaling(panel.features[rows], panel.log_price[rows], panel.ticker[rows])
        self.optimizer = build_optimizer(self.model, config)
        self.batches = data.TrainBatches(panel, fold.train, self.orders[self.fold])
        self.best = {"loss": math.inf, "epoch": 0, "weights": None}

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch of the current fold."""
        config, order = self.config, self.batches.order
        windows_in_fold = config.epochs * order.num_global_batches() * self.global_batch_size
        self.parallel.train()
        # Each epoch of each fold has an order of its own.
        micro_batches = self.batches.epoch(self.fold * config.epochs + self.epoch, self.used)
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, windows_since = time.perf_counter(), 0
        for origins in micro_batches:
            done = self.epoch * order.num_global_batches() * self.global_batch_size + self.used
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(done / windows_in_fold, config.warmup_fraction)

            self.optimizer.zero_grad(set_to_none=False)  # keeps gradients as views into DDP's buckets
            loss = self.loss(origins)
            loss.backward()
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            self.optimizer.step()
            loss_sum += loss.detach()
            loss_count += 1

            self.step += 1
            self.used += self.global_batch_size
            windows_since += self.global_batch_size
            if self.step % config.log_every == 0:
                # [dist] One small all-reduce for three things. Reading it waits for the device, hence not every step.
                stop_here = float(launch.stop_request().requested)
                sums = torch.stack([loss_sum, *loss_sum.new_tensor([loss_count, stop_here])])
                dist.all_reduce(sums)
                total, count, stop = sums.tolist()
                now = time.perf_counter()
                self.train_s, self.trained_windows = self.train_s + now - since, self.trained_windows + windows_since
                self.log(progress, total / count, windows_since / (now - since))
                since, windows_since = now, 0
                loss_sum, loss_count = torch.zeros_like(loss_sum), 0
                if stop:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def loss(self, origins: torch.Tensor) -> torch.Tensor:
        """Return the pinball loss of a micro-batch of origins (B,), in units of the frame."""
        panel = self.panel
        tickers = panel.ticker[origins]
        outputs = self.parallel(panel.windows(origins), panel.levels(origins), tickers)
        start, unit = self.model.frame(panel.log_price[origins], panel.moves(origins), tickers)
        actual = ((panel.future(origins) - start) / unit).float()
        return pinball(outputs, actual, self.model.quantiles)

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the loss on the fold's validation windows and remember the weights if they are the best so far."""
        fold = self.folds[self.fold]
        forecast = evaluate.predict(self.model, self.panel, fold.val, self.device)
        actual = self.panel.future(fold.val.to(self.device)).cpu()
        last = self.panel.log_price[fold.val.to(self.device)].cpu()[:, None]
        loss = pinball(forecast.scaled, forecast.scale(actual), self.model.quantiles).item()
        ratio = ((forecast.log_price[:, :, 1] - actual).abs().mean() / (last - actual).abs().mean()).item()
        if self.rank == 0:
            self.folder.log(
                "val", step=self.step, fold=fold.number + 1, epoch=self.epoch + 1, loss=loss, mae_to_last_value=ratio
            )
        progress.say(
            f"fold {fold.number + 1}/{len(self.folds)}, epoch {self.epoch + 1}/{self.config.epochs}: val loss "
            f"{loss:.4f}, val error {ratio:.4f} of the last value's"
        )
        if loss < self.best["loss"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"loss": loss, "epoch": self.epoch + 1, "weights": weights}

    def next_epoch(self) -> None:
        """Go on to the next epoch, or to the next fold if there is none or the last ones brought nothing."""
        self.epoch, self.used = self.epoch + 1, 0
        if self.epoch == self.config.epochs or self.epoch - self.best["epoch"] >= self.config.patience:
            if self.best["weights"] is None:
                raise TrainyardError(
                    f"error: no validation loss of fold {self.fold + 1} is a number: try a lower --learning-rate"
                )
            self.chosen.append(self.best["weights"])
            self.fold, self.epoch = self.fold + 1, 0
            if self.fold < len(self.folds):
                self.start_fold()

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. Order and weights follow from the seed, so there is no random state to keep."""
        if self.rank == 0:
            facts = {"fold": self.fold, "epoch": self.epoch, "used": self.used, "world_size": self.world_size}
            with self.checkpoints.write(self.step, **facts, global_batch_size=self.global_batch_size) as path:
                state = {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "best": self.best,
                    "chosen": self.chosen,
                }
                torch.save(state, path / "state.pt")
        # [dist] Nobody trains on, and nobody is told that the run may end, before the checkpoint is on the disk.
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; also with another number of processes."""
        newest = newest_for_all(self.checkpoints, self.warn)
        if newest is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(newest)
        # weights_only: a checkpoint is data, and must not be able to run code.
        state = torch.load(newest / "state.pt", map_location=self.device, weights_only=True)
        self.chosen = state["chosen"]
        self.step, self.fold, self.epoch, self.used = (facts[name] for name in ("step", "fold", "epoch", "used"))
        if self.fold < len(self.folds):
            self.start_fold()
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            # Its state comes from the checkpoint, its settings from the config, which flags may have changed.
            self.optimizer.param_groups[0]["weight_decay"] = self.config.weight_decay
            self.best = state["best"]
        if (facts["world_size"], facts["global_batch_size"]) != (self.world_size, self.global_batch_size):
            self.warn(
                f"resumed with {self.world_size} processes and a global batch of {self.global_batch_size}; before: "
                f"{facts['world_size']} and {facts['global_batch_size']}. The run goes on at the same window of the "
                "same epoch and fold; the learning rate follows the share of windows seen"
            )
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(
                f"resuming {self.folder.path} at fold {self.fold + 1}, epoch {self.epoch + 1}, step {self.step}"
            )

    # ------------------------------------------------------------------------------------------------------- reporting

    def total_windows(self) -> int:
        """Windows that all processes will use if no fold ends early."""
        return sum(self.config.epochs * order.num_global_batches() for order in self.orders) * self.global_batch_size

    def windows_done(self) -> int:
        """Windows that all processes have used; folds that have ended early count as whole."""
        before = sum(self.config.epochs * order.num_global_batches() for order in self.orders[: self.fold])
        if self.fold < len(self.folds):
            before += self.epoch * self.orders[self.fold].num_global_batches()
        return before * self.global_batch_size + self.used

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, windows_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        order = self.batches.order
        epoch = self.epoch + self.used / (order.num_global_batches() * self.global_batch_size)
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                fold=self.fold + 1,
                epoch=round(epoch, 4),
                loss=loss,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                windows_per_second=round(windows_per_second, 1),
            )
        progress.update(
            self.windows_done(),
            {"fold": f"{self.fold + 1}", "loss": f"{loss:.4f}", "windows/s": f"{windows_per_second:.0f}"},
        )
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step} (fold {self.fold + 1}, epoch "
                f"{self.epoch + 1}): try a lower --learning-rate; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, dataset, panel = self.config, self.dataset, self.panel
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        predicted = self.predicted_bytes()
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        sizes = ", ".join(f"{len(fold.train):,}" for fold in self.folds)
        facts = [
            ("model", f"{config.model}, {sum(p.numel() for p in self.model.parameters()):,} parameters"),
            ("device", f"{describe(self.device)}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {config.micro_batch_size} x {self.world_size} processes = {self.global_batch_size} windows",
            ),
            (
                "data",
                f"{dataset.source}: {len(panel.tickers)} stocks, {len(panel.dates):,} days from {panel.dates[0]} to "
                f"{panel.dates[-1]}",
            ),
            ("task", f"{config.window} days in, {config.horizon} days ahead out"),
            ("folds", f"{len(self.folds)}, of {sizes} training windows"),
            ("steps", f"at most {self.total_windows() // self.global_batch_size:,}"),
            ("memory", f"{console.bytes_text(sum(predicted.values()))} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def predicted_bytes(self) -> dict[str, int]:
        """Predict what each process holds on its device during a step."""
        parameters = memory.tensor_bytes(self.model.parameters())
        num_tensors = len(list(self.model.parameters()))
        return {
            "parameters": parameters,
            "gradients": parameters,
            "optimizer": 2 * parameters + 4 * num_tensors,  # two moments, and a counter of steps for each tensor
            "activations": self.activation_bytes,
        }

    def measured_bytes(self) -> dict[str, int]:
        """Measure what this process holds of what `predicted_bytes` predicts."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return {
            "parameters": memory.tensor_bytes(self.model.parameters()),
            "gradients": memory.tensor_bytes(gradients),
            "optimizer": memory.tensor_bytes(memory.optimizer_tensors(self.optimizer)),
        }

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        dataset, panel = self.dataset, self.panel
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": dataset.kind,
                "name": dataset.name,
                "source": dataset.source,
                "stocks": len(panel.tickers),
                "first_day": str(panel.dates[0]),
                "last_day": str(panel.dates[-1]),
                "num_train": sum(len(fold.train) for fold in self.folds),
                "num_val": sum(len(fold.val) for fold in self.folds),
                "num_test": sum(len(fold.test) for fold in self.folds),
            },
            "seed": self.config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.global_batch_size,
            "device": describe(self.device),
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance(
                (PACKAGE, "trainyard-shared", "torch", "numpy", "pandas", "statsmodels", "xgboost-cpu")
            ),
        }

    def finish(self) -> None:
        """Test the chosen weights of all folds, each on its own test days, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # [dist] Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, {**self.measured_bytes(), **memory.peak_memory(self.device)})
        throughput = self.trained_windows / self.train_s if self.train_s else float("nan")
        summary = self.summary("finished") | {
            "start_up_s": self.start_up_s,
            "throughput": {"windows_per_second": round(throughput, 1)},
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes(),
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
        }
        evaluate.test_and_report(
            self.chosen, self.dataset, self.panel, self.config, self.device, self.folder, summary, train_end_s
        )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the fold that is done.

    A function of windows seen, not of steps, so that it means the same for any number of processes.
    """
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    from torchdist_stocks import cli

    sys.exit(cli.train())
