"""Training with FairScale's activation checkpointing and sharded data parallel: the loop this project is about.

Every process runs this file. What is FairScale's is marked [fairscale]:

    checkpointing.apply   each segment of the network forgets its activations and computes them again when needed
    sharding.WAYS         OSS and ShardedDataParallel, or what PyTorch offers in their place, in the same operations
    no_sync               with gradient accumulation it is no saving here but a must: see train_epoch
    optimizer_state       each process has its share of AdamW's moments: collected to save, shared out on resume
"""

import contextlib
import copy
import datetime
import math
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from trainyard_shared import console, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.cmapss import EngineDataset
from trainyard_shared.errors import TrainyardError, UsageError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.images import BatchOrder
from trainyard_shared.tensors.quick_start import postpone_dynamo

from fairscale_turbofan_anomaly import checkpointing, data, evaluate, scoring, sharding
from fairscale_turbofan_anomaly.config import TrainConfig
from fairscale_turbofan_anomaly.model import build_model

PACKAGE = "fairscale-turbofan-anomaly"


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, device or settings do not fit; the message says how.
    """
    config = parsed.config
    postpone_dynamo()
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    # NCCL between GPUs, Gloo between CPUs. A peer that is silent for longer than the time-out is given up.
    timeout = datetime.timedelta(seconds=config.collective_timeout_s)
    dist.init_process_group(launch.backend_for(device.type), timeout=timeout)

    dataset = data.load(config)
    run = Run(parsed, dataset, device)
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(
        run.total_windows, run.used_before_epoch() + run.used, show=dist.get_rank() == 0
    ) as progress:
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.validate(progress)
            run.epoch, run.used = run.epoch + 1, 0
            run.save()
    run.finish()
    launch.leave_together()


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(self, parsed: Parsed[TrainConfig], dataset: EngineDataset, device: torch.device) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device = parsed, dataset, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

        self.parts = data.split(dataset, config)
        self.rows = torch.arange(len(self.parts.train))
        if config.detector == "autoencoder":
            self.rows = self.rows[torch.from_numpy(self.parts.train.healthy(config.healthy_cycles))]
        self.labels = torch.from_numpy(self.parts.train.labels(config.horizon)).float()
        self.order = BatchOrder(
            len(self.rows),
            config.micro_batch_size,
            config.gradient_accumulation_steps,
            self.rank,
            self.world_size,
            config.seed,
        )
        if not self.order.num_global_batches():
            raise UsageError(
                f"error: micro_batch_size x gradient_accumulation_steps x processes = {config.micro_batch_size} x "
                f"{config.gradient_accumulation_steps} x {self.world_size} = {self.order.global_batch_size} windows, "
                f"but there are only {len(self.rows)} to train on"
            )

        torch.manual_seed(config.seed)
        num_sensors = len(self.parts.normalizer.kept)
        model = build_model(config, num_sensors)
        # A copy that is not wrapped, for validation and the end, whose forward pass waits for nobody.
        self.whole = copy.deepcopy(model).to(device)
        # [fairscale] From here on each segment keeps its inputs only; the weights have the same names and values.
        checkpointing.apply(model, config.checkpointing)
        some_windows = self.parts.train.take(self.rows[: config.micro_batch_size])
        activation_bytes = checkpointing.activation_bytes(model, some_windows, self.loss)
        # [fairscale] And self.sharded.parallel(...) is model(...) whose backward pass communicates.
        self.sharded = sharding.WAYS[config.sharding](model.to(device), config, device)
        self.predicted_bytes = {**self.sharded.predicted_bytes(), "activations": activation_bytes}

        # Where the run is: epoch, windows of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"pr_auc": -1.0, "epoch": 0, "weights": None}
        self.notes: list[str] = []
        self.total_windows = config.epochs * self.order.num_global_batches() * self.order.global_batch_size
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_windows = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config, accumulate, sharded = self.config, self.config.gradient_accumulation_steps, self.sharded
        sharded.parallel.train()
        micro_batches = iter(self.order.epoch(self.epoch, self.used)[0])
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, windows_since = time.perf_counter(), 0
        for _ in range(self.order.num_global_batches(self.used)):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_windows, config.warmup_fraction)
            for group in sharded.optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            # Of the step and the process alone: a run that was killed draws the same dropout again.
            torch.manual_seed((config.seed * 1_000_003 + self.step) * 1_009 + self.rank)

            sharded.optimizer.zero_grad()
            for micro_step in range(accumulate):
                rows = self.rows[next(micro_batches)]
                last = micro_step == accumulate - 1
                # [fairscale] ShardedDataParallel reduces gradients in place and frees those of other processes'
                # parameters: without no_sync, the next micro-batch would be added to a sum that is reduced already.
                with contextlib.nullcontext() if last else sharded.parallel.no_sync():
                    windows = self.parts.train.take(rows).to(self.device)
                    loss = self.loss(sharded.parallel(windows), windows, self.labels[rows].to(self.device))
                    # [fairscale] Here each segment runs forward once more. The mean over the micro-batches, so that
                    # k times b windows give the gradient of one batch of k*b.
                    (loss / accumulate).backward()
                loss_sum += loss.detach()
                loss_count += 1
            sharded.optimizer.step()

            self.step += 1
            self.used += self.order.global_batch_size
            windows_since += self.order.global_batch_size
            if self.step % config.log_every == 0:
                # One small all-reduce for three things. Reading it waits for the device, hence not every step.
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

    def loss(self, output: torch.Tensor, windows: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean loss of a micro-batch.

        Args:
            output: logits (B,) of the supervised detector, or windows (B, T, S) of the autoencoder.
            windows: (B, T, S), what the autoencoder should have returned.
            labels: (B,) 0 or 1; None where only the cost of the computation matters.
        """
        if self.config.detector == "autoencoder":
            return F.mse_loss(output, windows)
        return F.binary_cross_entropy_with_logits(output, torch.zeros_like(output) if labels is None else labels)

    def validate(self, progress: console.TrainingProgress) -> None:
        """Score the validation engines and remember the weights if they are the best so far."""
        config, val = self.config, self.parts.val
        weights = self.weights()
        self.whole.load_state_dict(weights)
        scores = scoring.smooth(evaluate.score(self.whole, val, config, self.device), val.fleet, config.smoothing)
        labels = val.labels(config.horizon)
        found = scoring.figures(scores, labels, scoring.best_threshold(scores, labels))
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, pr_auc=found.pr_auc, f1=found.f1)
        progress.say(f"epoch {self.epoch + 1}/{config.epochs}: val PR-AUC {found.pr_auc:.3f}, val F1 {found.f1:.3f}")
        if found.pr_auc >= self.best["pr_auc"]:
            self.best = {"pr_auc": found.pr_auc, "epoch": self.epoch + 1, "weights": weights}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of all weights on the CPU, which all processes hold alike."""
        model = self.sharded.parallel.module
        return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each contributes its share."""
        # Random numbers follow from seed, step and process, so there is no random state to keep.
        optimizer = self.sharded.optimizer_state()  # [fairscale] whole, on rank 0
        if self.rank == 0:
            facts = {"epoch": self.epoch, "used": self.used, "world_size": self.world_size}
            with self.checkpoints.write(self.step, **facts, global_batch_size=self.order.global_batch_size) as path:
                torch.save({"model": self.weights(), "optimizer": optimizer, "best": self.best}, path / "state.pt")
        # Nobody trains on, and nobody is told that the run may end, before the checkpoint is on the disk.
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; also with another number of processes."""
        # Rank 0 looks, all get its answer, or its complaint.
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = self.checkpoints.newest(self.warn)
            except TrainyardError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        if answer[0] is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(answer[0])
        # weights_only: a checkpoint is data, and must not be able to run code.
        state = torch.load(answer[0] / "state.pt", map_location=self.device, weights_only=True)
        self.sharded.parallel.module.load_state_dict(state["model"])
        self.sharded.optimizer.load_state_dict(state["optimizer"])  # [fairscale] each process keeps its share
        for group in self.sharded.optimizer.param_groups:
            # The moments come from the checkpoint, settings from the config, which flags may have changed.
            group.update(sharding.adamw_settings(self.config))
        self.best = state["best"]
        self.step, self.epoch, self.used = facts["step"], facts["epoch"], facts["used"]
        if (facts["world_size"], facts["global_batch_size"]) != (self.world_size, self.order.global_batch_size):
            self.warn(
                f"resumed with {self.world_size} processes and a global batch of {self.order.global_batch_size}; "
                f"before: {facts['world_size']} and {facts['global_batch_size']}. The run goes on at the same window "
                "of the same epoch; the learning rate follows the share of windows seen"
            )
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Windows that all processes have used in the epochs before this one."""
        return self.epoch * (self.total_windows // self.config.epochs)

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, windows_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_windows * self.config.epochs
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(position, 4),
                loss=loss,
                learning_rate=self.sharded.optimizer.param_groups[0]["lr"],
                windows_per_second=round(windows_per_second, 1),
            )
        progress.update(
            self.used_before_epoch() + self.used,
            {"epoch": f"{position:.1f}", "loss": f"{loss:.3f}", "windows/s": f"{windows_per_second:.0f}"},
        )
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step} (epoch {self.epoch + 1}, before window "
                f"{self.used}): try a lower --learning-rate; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, parts, order = self.config, self.parts, self.order
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        for name, windows in (("train", parts.train), ("stopped", parts.stopped)):
            short = int((windows.fleet.lengths < config.window).sum())
            if short:
                self.notes.append(
                    f"{short} {name} engine(s) have flown fewer cycles than the {config.window} of a window: their "
                    "first cycle is repeated in front"
                )
        predicted = self.predicted_bytes
        memory_parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        facts = [
            (
                "detector",
                f"{config.detector}, {config.model}, {sum(p.numel() for p in self.whole.parameters()):,} parameters",
            ),
            ("activations", f"checkpointing {config.checkpointing}, in chunks of {config.chunk} cycles"),
            ("sharding", config.sharding),
            ("device", f"{describe(self.device)}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {config.micro_batch_size} x accumulation {config.gradient_accumulation_steps} x "
                f"{self.world_size} processes = {order.global_batch_size} windows of {config.window} cycles",
            ),
            ("data", self.dataset.source),
            (
                "engines",
                f"{_count(parts.train)} train, {_count(parts.val)} val, {_count(parts.test)} test to failure, "
                f"{_count(parts.stopped)} stopped before; {order.num_images:,} windows to train on",
            ),
            (
                "sensors",
                f"{len(parts.normalizer.kept)} of 21 (constant ones dropped), {len(parts.normalizer.centres)} flight "
                "condition(s)",
            ),
            ("steps", f"{config.epochs} epochs of {order.num_global_batches()}"),
            ("memory", f"{console.bytes_text(sum(predicted.values()))} predicted for each process: {memory_parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        config, parts = self.config, self.parts
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": self.dataset.kind,
                "name": self.dataset.name,
                "source": self.dataset.source,
                "train_engines": len(parts.train.fleet.units),
                "val_engines": len(parts.val.fleet.units),
                "test_engines": len(parts.test.fleet.units),
                "stopped_engines": len(parts.stopped.fleet.units),
                "num_train": self.order.num_images,
                "num_val": len(parts.val),
                "num_test": len(parts.test),
                "sensors_kept": ", ".join(str(sensor + 1) for sensor in parts.normalizer.kept),
            },
            "seed": config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.order.global_batch_size,
            "device": describe(self.device),
            "precision": "fp32",
            "detector": config.detector,
            "model": config.model,
            "checkpointing": config.checkpointing,
            "sharding": config.sharding,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance((PACKAGE, "trainyard-shared", "torch", "fairscale", "numpy", "scikit-learn")),
        }

    def finish(self) -> None:
        """Test the chosen weights once and write what came out."""
        train_end_s = launch.seconds_since_command()
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, {**self.sharded.held_bytes(), **memory.peak_memory(self.device)})
        self.whole.load_state_dict(self.best["weights"] or self.weights())
        summary = self.summary("finished")
        throughput = self.trained_windows / self.train_s if self.train_s else float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {"windows_per_second": round(throughput, 1)},
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes,
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
            "chosen_epoch": self.best["epoch"] or self.config.epochs,
            "val_pr_auc": self.best["pr_auc"],
        }
        evaluate.test_and_report(
            self.whole, self.parts, self.dataset, self.config, self.device, self.folder, summary, train_end_s
        )


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the run that is done.

    A function of windows seen, not of steps, so that it means the same for any number of processes.
    """
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _count(windows: data.Windows) -> int:
    return len(windows.fleet.units)


if __name__ == "__main__":
    from fairscale_turbofan_anomaly import cli

    sys.exit(cli.train())
