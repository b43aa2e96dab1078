"""Data parallel training with torch.distributed: the loop this project is about.

Every process runs this file. What makes it distributed is marked [dist]:

    init_process_group      processes find each other through RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    DistributedDataParallel same weights everywhere; gradients are averaged while the backward pass still runs
    no_sync                 with gradient accumulation, only the last backward pass of a step communicates
    all_reduce              sums of losses and counts, and whether any process was asked to stop
    checkpoints             rank 0 writes what all share and each rank's random state; every rank reads it
"""

import contextlib
import datetime
import math
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared import console, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import TrainyardError, UsageError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.checkpointing import newest_for_all
from trainyard_shared.tensors.images import CIFAR10, split
from trainyard_shared.tensors.quick_start import postpone_dynamo

from torchdist_cifar import data, evaluate, sync_batchnorm
from torchdist_cifar.config import TrainConfig
from torchdist_cifar.model import SmallCNN, build_model

PACKAGE = "torchdist-cifar"


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, device or settings do not fit; the message says how.
    """
    config = parsed.config
    if not config.compile:
        postpone_dynamo()
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    # [dist] NCCL between GPUs, Gloo between CPUs. A peer that is silent for longer than the time-out is given up.
    timeout = datetime.timedelta(seconds=config.collective_timeout_s)
    dist.init_process_group(launch.backend_for(device.type), timeout=timeout)

    dataset = data.load(config)
    run = Run(parsed, dataset, device)
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(
        run.total_images, run.used_before_epoch() + run.used, show=dist.get_rank() == 0
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

    def __init__(self, parsed: Parsed[TrainConfig], dataset: ImageDataset, device: torch.device) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device = parsed, dataset, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

        if config.num_val >= len(dataset.train_images):
            raise UsageError(
                f"error: num_val: {config.num_val} is not allowed: "
                f"there are {len(dataset.train_images)} training images"
            )
        images, labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
        train_index, val_index = split(len(images), config.num_val)
        self.val = (images[val_index], labels[val_index])
        self.batches = data.TrainBatches(
            images[train_index], labels[train_index], config, self.rank, self.world_size, device
        )
        if not self.batches.num_global_batches():
            raise UsageError(
                f"error: micro_batch_size x gradient_accumulation_steps x processes = {config.micro_batch_size} x "
                f"{config.gradient_accumulation_steps} x {self.world_size} = {self.batches.global_batch_size} images, "
                f"but there are only {len(train_index)} training images"
            )

        torch.manual_seed(config.seed)
        model = build_model(config, len(dataset.class_names))
        if isinstance(model, SmallCNN) and model.whiten:
            first = images[train_index[:5000]].permute(0, 2, 3, 1)
            model.set_whitening(CIFAR10(first, channels_last=False))
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        three = torch.zeros(3, 3, 32, 32)
        self.activation_bytes = memory.activation_bytes(
            model, three, batch_size=config.micro_batch_size, autocast=dtype
        )
        if config.norm == "sync_batch":
            model = sync_batchnorm.convert(model, device)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(device, memory_format=layout)
        self.optimizer = build_optimizer(self.model, config)
        # fp16 has few exponent bits: scale the loss up so that small gradients do not vanish, and skip steps that
        # overflow. Gradients are averaged before they are looked at, so all processes skip the same steps.
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        # [dist] From here on, self.parallel(...) is self.model(...) whose backward pass averages gradients.
        compiled: Any = torch.compile(self.model) if config.compile else self.model
        self.parallel = DistributedDataParallel(
            compiled, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )

        # Where the run is: epoch, images of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "weights": None}
        self.notes: list[str] = []
        self.total_images = config.epochs * self.batches.num_global_batches() * self.batches.global_batch_size
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_images = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # [dist] All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config, accumulate = self.config, self.config.gradient_accumulation_steps
        self.parallel.train()
        micro_batches = self.batches.epoch(self.epoch, self.used)
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, images_since = time.perf_counter(), 0
        for _ in range(self.batches.num_global_batches(self.used)):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_images, config.warmup_fraction)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak_learning_rate"] * factor

            self.optimizer.zero_grad(set_to_none=False)  # keeps gradients as views into DDP's buckets
            for micro_step in range(accumulate):
                images, labels = next(micro_batches)
                last = micro_step == accumulate - 1
                # [dist] Gradients of all but the last micro-batch only add up locally: one all-reduce a step, not k.
                with contextlib.nullcontext() if last else self.parallel.no_sync():
                    with self.autocast():
                        logits = self.parallel(images)
                        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                    # The mean over the micro-batches, so that k times b images give the gradient of one batch of k*b.
                    self.scaler.scale(loss / accumulate).backward()
                loss_sum += loss.detach()
                loss_count += 1
            if config.max_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)  # clip the gradients, not their scaled copies
                nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()

            self.step += 1
            self.used += self.batches.global_batch_size
            images_since += self.batches.global_batch_size
            log_now = self.step % config.log_every == 0
            if log_now:
                # [dist] One small all-reduce for three things. Reading it waits for the device, hence not every step.
                stop_here = float(launch.stop_request().requested)
                sums = torch.stack([loss_sum, *loss_sum.new_tensor([loss_count, stop_here])])
                dist.all_reduce(sums)
                total, count, stop = sums.tolist()
                now = time.perf_counter()
                self.train_s, self.trained_images = self.train_s + now - since, self.trained_images + images_since
                self.log(progress, total / count, images_since / (now - since))
                since, images_since = now, 0
                loss_sum, loss_count = torch.zeros_like(loss_sum), 0
                if stop:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the accuracy on the held-out images and remember the weights if they are the best so far."""
        if not self.config.num_val:
            return
        self.share_buffers()
        scores = evaluate.predict(self.model, self.val[0], self.config, self.device, flip=False)
        loss = F.cross_entropy(scores.logits, self.val[1]).item()
        correct = (scores.logits.argmax(dim=1) == self.val[1]).float().mean().item()
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, accuracy=correct)
        progress.say(f"epoch {self.epoch + 1}/{self.config.epochs}: val loss {loss:.3f}, val accuracy {correct:.2%}")
        if correct >= self.best["accuracy"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"accuracy": correct, "epoch": self.epoch + 1, "weights": weights}

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision for the forward pass: matrix products in 16 bits, sums and norms in 32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def share_buffers(self) -> None:
        """[dist] Give all processes rank 0's BatchNorm statistics, as DDP does before each forward pass."""
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each has a random state of its own to contribute."""
        random_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.device)
        random_states: list | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(random_state, random_states, dst=0)
        if self.rank == 0:
            facts = {"epoch": self.epoch, "used": self.used, "world_size": self.world_size}
            with self.checkpoints.write(self.step, **facts, global_batch_size=self.batches.global_batch_size) as path:
                state = {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "random_states": random_states,
                    "best": self.best,
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
        self.model.load_state_dict(state["model"])
        settings = [(group["peak_learning_rate"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # Its state comes from the checkpoint, its settings from the config, which flags may have changed.
        for group, (peak, decay) in zip(self.optimizer.param_groups, settings, strict=True):
            group["peak_learning_rate"], group["weight_decay"] = peak, decay
        self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.step, self.epoch, self.used = facts["step"], facts["epoch"], facts["used"]
        if facts["world_size"] == self.world_size:
            own = state["random_states"][self.rank]
            torch.set_rng_state(own["cpu"].cpu())
            if "cuda" in own and self.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"].cpu(), self.device)
        if (facts["world_size"], facts["global_batch_size"]) != (self.world_size, self.batches.global_batch_size):
            self.warn(
                f"resumed with {self.world_size} processes and a global batch of {self.batches.global_batch_size}; "
                f"before: {facts['world_size']} and {facts['global_batch_size']}. The run goes on at the same image of "
                "the same epoch; the learning rate follows the share of images seen"
            )
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Images that all processes have used in the epochs before this one."""
        return self.epoch * (self.total_images // self.config.epochs)

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, images_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_images * self.config.epochs
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(position, 4),
                loss=loss,
                learning_rate=learning_rate,
                images_per_second=round(images_per_second, 1),
            )
        progress.update(
            self.used_before_epoch() + self.used,
            {"epoch": f"{position:.1f}", "loss": f"{loss:.3f}", "images/s": f"{images_per_second:.0f}"},
        )
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step} (epoch {self.epoch + 1}, before image "
                f"{self.used}): try a lower --learning-rate or --precision fp32; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, dataset, batches = self.config, self.dataset, self.batches
        if config.norm == "batch" and batches.global_batch_size > config.micro_batch_size:
            self.notes.append(
                f"batch normalisation uses the statistics of {config.micro_batch_size} images (one micro-batch), not "
                f"of all {batches.global_batch_size}; --norm sync_batch uses those of all processes"
            )
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        predicted = self.predicted_bytes()
        total = sum(predicted.values())
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        facts = [
            ("model", f"{config.model}, {sum(p.numel() for p in self.model.parameters()):,} parameters"),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {config.micro_batch_size} x accumulation {config.gradient_accumulation_steps} x "
                f"{self.world_size} processes = {batches.global_batch_size} images",
            ),
            ("data", f"{dataset.source}: {batches.num_images:,} train, {len(self.val[0]):,} val"),
            ("steps", f"{config.epochs} epochs of {batches.num_global_batches()}"),
            ("memory", f"{console.bytes_text(total)} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def predicted_bytes(self) -> dict[str, int]:
        """Predict what each process holds on its device during a step."""
        parameters = memory.tensor_bytes(self.model.parameters())
        trained = memory.tensor_bytes(p for p in self.model.parameters() if p.requires_grad)
        return {
            "parameters": parameters,
            "gradients": trained,
            "optimizer": trained,  # one momentum value for each trained parameter
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
        dataset = self.dataset
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": dataset.kind,
                "name": dataset.name,
                "source": dataset.source,
                "num_train": self.batches.num_images,
                "num_val": len(self.val[0]),
                "num_test": len(dataset.test_images),
            },
            "seed": self.config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.batches.global_batch_size,
            "device": describe(self.device),
            "precision": self.config.precision,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance((PACKAGE, "trainyard-shared", "torch", "torchvision", "numpy")),
        }

    def finish(self) -> None:
        """Test the chosen weights once, on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # [dist] Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, {**self.measured_bytes(), **memory.peak_memory(self.device)})
        if self.best["weights"] is not None:
            self.model.load_state_dict(self.best["weights"])
        else:
            self.share_buffers()
        summary = self.summary("finished")
        throughput = self.trained_images / self.train_s if self.train_s else float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {"images_per_second": round(throughput, 1)},
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes(),
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
            "chosen_epoch": self.best["epoch"] or self.config.epochs,
            "val_accuracy": self.best["accuracy"] if self.config.num_val else None,
        }
        evaluate.test_and_report(self.model, self.dataset, self.config, self.device, self.folder, summary, train_end_s)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; the biases of normalisation layers learn faster (arXiv 2404.00498)."""
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)
    fast = [module.bias for module in model.modules() if isinstance(module, norms)]
    fast_ids = {id(parameter) for parameter in fast}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in fast_ids]
    factor, rate, decay = config.bias_learning_rate_factor, config.learning_rate, config.weight_decay
    groups = [
        {"params": rest, "peak_learning_rate": rate, "weight_decay": decay},
        # SGD multiplies the decay by the learning rate: divide, so that all parameters decay alike.
        {"params": fast, "peak_learning_rate": rate * factor, "weight_decay": decay / factor},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the run that is done.

    A function of images seen, not of steps, so that it means the same for any number of processes.
    """
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    from torchdist_cifar import cli

    sys.exit(cli.train())
