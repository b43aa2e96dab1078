"""Data parallel training with Colossal-AI's Booster: the loop this project is about.

Every process runs this file. What Colossal-AI is about is marked [colossal]:

    plugins.launch      processes find each other; without a GPU, `cpu_shims.py` lets the plugins run
    plugins.PLUGINS     booster.boost wraps model and optimizer together, by TorchDDP, LowLevelZero 1 or 2, or Gemini
    booster.backward    in place of loss.backward: the plugin scales the loss, and reduces gradients
    no_sync             with gradient accumulation, only the last backward pass communicates, where a plugin can
    optimizer.step      under ZeRO each process updates its slice of the parameters, then all gather the slices
    checkpoints         fp32 masters and optimizer state, gathered on rank 0, shared out on resume
"""

import contextlib
import copy
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
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import TrainyardError, UsageError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.checkpointing import newest_for_all
from trainyard_shared.tensors.images import CIFAR10, split

from colossal_cifar_cnn import data, evaluate, plugins
from colossal_cifar_cnn.config import TrainConfig
from colossal_cifar_cnn.model import SmallCNN, build_model, load_pretrained
from colossal_cifar_cnn.utilisation import CommunicationClock

PACKAGE = "colossal-cifar-cnn"
WARM_UP_STEPS = 3


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, device or settings do not fit; the message says how.
    """
    config = parsed.config
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    plugins.check_device(config, device)
    data.micro_batch_size(config, launch.world_size())  # complains before Colossal-AI is imported, which takes seconds
    dataset = data.load(config)
    plugins.launch(device, config.seed)  # [colossal]

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
        self.notes: list[str] = []

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
        self.order = self.batches.order
        if not self.order.num_global_batches():
            raise UsageError(
                f"error: micro_batch_size x gradient_accumulation_steps x processes = {self.order.micro} x "
                f"{config.gradient_accumulation_steps} x {self.world_size} = {self.order.global_batch_size} images, "
                f"but there are only {len(train_index)} training images"
            )

        torch.manual_seed(config.seed)
        model = build_model(config, len(dataset.class_names))
        if isinstance(model, SmallCNN):
            model.set_whitening(CIFAR10(images[train_index[:5000]].permute(0, 2, 3, 1), channels_last=False))
        elif config.pretrained is not None:
            self.notes.append(f"starts from the weights of {load_pretrained(model, config.pretrained)}")
        self.activation_bytes = predict_activations(model, config, self.order.micro)
        # A whole copy of the network for validation and the end, whose forward pass waits for nobody.
        self.whole = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
        # [colossal] Model and optimizer, boosted. ZeRO and Gemini cut weights into slices, for which they have to be
        # contiguous; images that are channels_last make convolutions channels_last by themselves.
        self.boosted = plugins.PLUGINS[config.plugin](model.to(device), config, device)
        self.clock = CommunicationClock(WARM_UP_STEPS, config.profile_steps)

        # Where the run is: epoch, images of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "weights": None}
        self.total_images = config.epochs * self.order.num_global_batches() * self.order.global_batch_size
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_images = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config, accumulate, boosted = self.config, self.config.gradient_accumulation_steps, self.boosted
        booster, model, optimizer = boosted.booster, boosted.model, boosted.optimizer
        model.train()
        micro_batches = self.batches.epoch(self.epoch, self.used)
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, images_since = time.perf_counter(), 0
        for step_here in range(self.order.num_global_batches(self.used)):
            self.clock.tick(step_here)
            factor = schedule((self.used_before_epoch() + self.used) / self.total_images, config.warmup_fraction)
            for group in optimizer.param_groups:
                group["lr"] = config.peak_learning_rate * factor

            optimizer.zero_grad()
            for micro_step in range(accumulate):
                images, labels = next(micro_batches)
                last = micro_step == accumulate - 1
                # [colossal] DDP and ZeRO-1 add up gradients locally until the last micro-batch: one reduction a step,
                # not k. ZeRO-2 and Gemini hold no whole gradient to add to, so they reduce each micro-batch.
                with contextlib.nullcontext() if last else boosted.no_sync():
                    with boosted.autocast():
                        logits = model(images)
                        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
                    # The mean over the micro-batches, so that k times b images give the gradient of one batch of k*b.
                    booster.backward(loss / accumulate, optimizer)
                loss_sum += loss.detach()
                loss_count += 1
            optimizer.step()

            self.step += 1
            self.used += self.order.global_batch_size
            images_since += self.order.global_batch_size
            log_now = self.step % config.log_every == 0
            if log_now:
                # One small all-reduce for three things. Reading it waits for the device, hence not every step.
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
        self.clock.stop()

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure loss and accuracy on the held-out images and remember the weights if they are the best so far."""
        if not self.config.num_val:
            return
        weights = self.boosted.weights()
        self.whole.load_state_dict(weights)
        scores = evaluate.predict(self.whole, self.val[0], self.config, self.device)
        loss = F.cross_entropy(scores.logits, self.val[1]).item()
        correct = (scores.logits.argmax(dim=1) == self.val[1]).float().mean().item()
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, accuracy=correct)
        progress.say(f"epoch {self.epoch + 1}/{self.config.epochs}: val loss {loss:.3f}, val accuracy {correct:.2%}")
        if correct >= self.best["accuracy"]:
            self.best = {"accuracy": correct, "epoch": self.epoch + 1, "weights": weights}

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each contributes its share."""
        # Nothing is drawn while training (augmentation has generators of its own), so there is no random state to keep.
        weights = self.boosted.weights()  # [colossal] fp32 masters
        optimizer = self.boosted.optimizer_state()  # [colossal] whole, on rank 0
        if self.rank == 0:
            facts = {"epoch": self.epoch, "used": self.used, "world_size": self.world_size}
            facts |= {"plugin": self.config.plugin, "optimizer": self.config.optimizer}
            with self.checkpoints.write(self.step, **facts, global_batch_size=self.order.global_batch_size) as path:
                state = {
                    "model": weights,
                    "optimizer": optimizer,
                    "scaler": self.boosted.scaler_state(),
                    "best": self.best,
                }
                torch.save(state, path / "state.pt")
        # Nobody trains on, and nobody is told that the run may end, before the checkpoint is on the disk.
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; also with another number of processes."""
        newest = newest_for_all(self.checkpoints, self.warn)
        if newest is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(newest)
        if facts["optimizer"] != self.config.optimizer:
            raise UsageError(
                f"error: --optimizer {self.config.optimizer}: the checkpoint holds the state of {facts['optimizer']}; "
                f"continue with --optimizer {facts['optimizer']}"
            )
        if facts["plugin"] != self.config.plugin and "gemini" in (facts["plugin"], self.config.plugin):
            raise UsageError(
                f"error: --plugin {self.config.plugin}: the checkpoint is of {facts['plugin']}; gemini keeps optimizer "
                f"state in a form of its own, so continue with --plugin {facts['plugin']}"
            )
        # weights_only: a checkpoint is data, and must not be able to run code. (Colossal-AI loads without it.)
        state = torch.load(newest / "state.pt", map_location="cpu", weights_only=True)
        self.boosted.load_weights(state["model"])
        self.boosted.load_optimizer_state(state["optimizer"])  # [colossal] each process keeps its share
        self.boosted.load_scaler_state(state["scaler"])
        self.best = state["best"]
        self.step, self.epoch, self.used = facts["step"], facts["epoch"], facts["used"]
        if (facts["world_size"], facts["global_batch_size"]) != (self.world_size, self.order.global_batch_size):
            self.warn(
                f"resumed with {self.world_size} processes and a global batch of {self.order.global_batch_size}; "
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
        learning_rate = self.boosted.optimizer.param_groups[0]["lr"]
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
        config, dataset, order = self.config, self.dataset, self.order
        if config.norm == "batch" and order.global_batch_size > order.micro:
            synchronised = config.plugin == "ddp" and self.device.type == "cuda" and config.precision != "fp16"
            if not (synchronised and config.gradient_accumulation_steps == 1):
                self.notes.append(
                    f"batch normalisation uses the statistics of {order.micro} images (one micro-batch), not of all "
                    f"{order.global_batch_size}; --norm group does not depend on the batch"
                )
        if config.precision != "fp32" and self.device.type == "cpu" and not cpu_has_16_bit_units(config.precision):
            self.notes.append(
                f"this CPU has no {config.precision} units: it converts every number back and forth, so "
                "--precision fp32 is faster here; on GPUs it is slower"
            )
        if config.optimizer == "hybrid_adam" and self.device.type == "cpu":
            self.notes.append("HybridAdam computes with torch here: its own kernel would have to be compiled")
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
            ("model", f"{config.model}, {self.num_parameters:,} parameters"),
            ("plugin", f"{config.plugin}, {config.optimizer} at {config.peak_learning_rate:g}"),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {order.micro} x accumulation {config.gradient_accumulation_steps} x "
                f"{self.world_size} processes = {order.global_batch_size} images",
            ),
            ("data", f"{dataset.source}: {order.num_images:,} train, {len(self.val[0]):,} val"),
            ("steps", f"{config.epochs} epochs of {order.num_global_batches()}"),
            ("memory", f"{console.bytes_text(total)} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.whole.parameters())

    def predicted_bytes(self) -> dict[str, int]:
        """Predict what each process holds on its device during a step."""
        return self.boosted.predicted_bytes(self.num_parameters) | {"activations": self.activation_bytes}

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        dataset, config = self.dataset, self.config
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": dataset.kind,
                "name": dataset.name,
                "source": dataset.source,
                "num_train": self.order.num_images,
                "num_val": len(self.val[0]),
                "num_test": len(dataset.test_images),
            },
            "seed": config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.order.global_batch_size,
            "device": describe(self.device),
            "precision": config.precision,
            "plugin": config.plugin,
            "optimizer": config.optimizer,
            "peak_learning_rate": config.peak_learning_rate,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance((PACKAGE, "trainyard-shared", "torch", "torchvision", "colossalai", "numpy")),
        }

    def finish(self) -> None:
        """Test the chosen weights once, on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # Bytes held on each rank, and the share of communication, collected on rank 0.
        own = {**self.boosted.held_bytes(), **memory.peak_memory(self.device)}
        of_all: list = [None] * self.world_size
        dist.all_gather_object(of_all, (own, self.clock.share))
        bytes_per_rank = [held for held, _ in of_all]
        shares = [share for _, share in of_all if share is not None]
        self.whole.load_state_dict(self.best["weights"] or self.boosted.weights())
        summary = self.summary("finished")
        throughput = self.trained_images / self.train_s if self.train_s else float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {
                "images_per_second": round(throughput, 1),
                "communication_share": round(sum(shares) / len(shares), 4) if shares else None,
            },
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
        evaluate.test_and_report(self.whole, self.dataset, self.config, self.device, self.folder, summary, train_end_s)


def predict_activations(model: torch.nn.Module, config: TrainConfig, micro_batch_size: int) -> int:
    """Predict the bytes that a forward pass keeps for the backward pass.

    Args:
        model: plain module in fp32.
        config: plugin and precision: autocast under ddp, a network of 16-bit weights under the others.
        micro_batch_size: images.
    """
    dtype, three = plugins.DTYPES[config.precision], torch.zeros(3, 3, 32, 32)
    if config.plugin == "ddp":
        autocast = dtype if config.precision != "fp32" else None
        return memory.activation_bytes(model, three, batch_size=micro_batch_size, autocast=autocast)
    narrow = copy.deepcopy(model).to(dtype)
    return memory.activation_bytes(narrow, three.to(dtype), batch_size=micro_batch_size)


def cpu_has_16_bit_units(precision: str) -> bool:
    """Whether this CPU multiplies 16-bit numbers natively, so that 16 bits can gain time."""
    return precision == "bf16" and bool(torch.cpu._is_avx512_bf16_supported())


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
    from colossal_cifar_cnn import cli

    sys.exit(cli.train())
