"""Training with DeepSpeed: the loop this project is about.

Every process runs this file. What DeepSpeed asks for is marked [deepspeed]:

    start                DeepSpeed joins the processes; on a CPU it has to be kept from compiling extensions
    complete             its JSON config, of which the project's config fills in what says "auto"
    initialize           from here on the engine holds network, optimizer and gradients, each process its share
    torch_autocast       mixed precision that leaves parameters and batch statistics in fp32
    engine.backward      divides by the accumulation steps; gradients are reduced to the process that owns them
    engine.step          counts micro-batches by itself and makes an optimizer step after the last
    GatheredParameters   under ZeRO-3 puts the slices of the parameters together, to look at a whole network
    save_checkpoint      each process writes its share

What DeepSpeed does not know of is batch normalisation: its statistics are no parameters, and every process has its own.
They are averaged where a whole network is wanted (`gather_weights`), and saved for each process in a checkpoint.
"""

import datetime
import importlib
import logging
import math
import os
import pickle
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from trainyard_shared import console, deepspeed_json, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, preset_folder, to_yaml
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import DataError, TrainyardError, UsageError
from trainyard_shared.tensors import memory, zero
from trainyard_shared.tensors.checkpointing import newest_for_all, written_by_all
from trainyard_shared.tensors.images import split

from deepspeed_efficientnet_cifar import data, evaluate, model
from deepspeed_efficientnet_cifar.config import TrainConfig
from deepspeed_efficientnet_cifar.ema import WeightAverage

PACKAGE = "deepspeed-efficientnet-cifar"
TAG = "state"  # name of the folder that DeepSpeed makes in a checkpoint
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    settings = deepspeed_settings(config, launch.world_size(), device)
    start(device, config.collective_timeout_s)
    run = Run(parsed, data.load(config), device, settings)
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


def start(device: torch.device, timeout_s: float) -> None:
    """[deepspeed] Join the other processes, which the launcher has named in RANK, WORLD_SIZE, MASTER_ADDR and so on."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", module=r"deepspeed|torch\.distributed", category=FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    read_as_data()
    if device.type == "cpu":
        # Its shared-memory all-reduce for CPUs would be compiled for most of a minute; Gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # An optimizer that is not used here is marked to be compiled, and would import torch's compiler.
        with mock.patch.object(deepspeed.runtime.compiler, "compile", lambda: lambda function: function):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    timeout = datetime.timedelta(seconds=timeout_s)
    deepspeed.init_distributed(launch.backend_for(device.type), timeout=timeout, verbose=False)


def read_as_data() -> None:
    """[deepspeed] Keep checkpoints from running code when they are read.

    DeepSpeed reads its checkpoints as pickles, which may hold any code. This makes torch.load, whatever it is told,
    accept numbers only, and the few classes that DeepSpeed puts between them.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address])


def deepspeed_settings(config: TrainConfig, world_size: int, device: torch.device) -> dict[str, Any]:
    """[deepspeed] Return the JSON config with every "auto" replaced but those of sizes, which need the network.

    Raises:
        UsageError: the file cannot be read, contradicts the config, or batch sizes do not multiply.
    """
    on_cpu = device.type == "cpu"
    if config.precision == "fp16" and on_cpu:
        raise UsageError("error: precision: fp16 is not allowed on a CPU: take bf16 or fp32 there")
    presets = preset_folder("deepspeed_efficientnet_cifar").parent / "deepspeed"  # type: ignore[attr-defined]
    file = deepspeed_json.find(config.deepspeed, presets)
    settings = deepspeed_json.read(file)
    values = {
        "optimizer.params.lr": config.learning_rate,
        "optimizer.params.weight_decay": config.weight_decay,
        "gradient_clipping": config.max_grad_norm,
        # Not DeepSpeed's `bf16`, which would turn the parameters into bf16, and with them the running statistics of
        # batch normalisation: in 8 bits they stop moving, since each batch changes them by less than the last bit.
        "torch_autocast.enabled": config.precision != "fp32",
        "torch_autocast.dtype": {"fp16": "float16"}.get(config.precision, "bfloat16"),
    }
    # Only where the file leaves the choice. On a CPU, DeepSpeed's own Adam would be compiled for four minutes.
    defaults = {
        "optimizer.params.torch_adam": on_cpu,
        "zero_force_ds_cpu_optimizer": not on_cpu,
        "zero_optimization.overlap_comm": not on_cpu,
        "zero_optimization.offload_optimizer.pin_memory": not on_cpu,
        "zero_optimization.offload_param.pin_memory": not on_cpu,
    } | {f"zero_optimization.{name}": deepspeed_json.AUTO for name in sizes(1, on_cpu)}
    return deepspeed_json.complete(
        settings,
        file.name,
        micro_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        world_size=world_size,
        values=values | {name: value for name, value in defaults.items() if _is_auto(settings, name)},
    )


def sizes(largest: int, on_cpu: bool) -> dict[str, int]:
    """[deepspeed] Return what "auto" means for the sizes of buckets, in numbers, not bytes.

    EfficientNets are small: on GPUs, buckets of 5 million numbers keep the wire busy while the backward pass goes on,
    and ZeRO-3 keeps the many short vectors of batch normalisation whole. On a CPU nothing is gained by sending much at
    once: buckets hold the largest parameter, and ZeRO-3 keeps and fetches nothing but what computes.
    """
    bucket = largest if on_cpu else max(largest, 5_000_000)
    prefetch, persistence, live = (0, 0, 0) if on_cpu else (1_000_000, 10_000, 10**9)
    return {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": prefetch,
        "stage3_param_persistence_threshold": persistence,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
    }


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(
        self, parsed: Parsed[TrainConfig], dataset: ImageDataset, device: torch.device, settings: dict[str, Any]
    ) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device, self.settings = parsed, dataset, device, settings
        self.stage = int(settings.get("zero_optimization", {}).get("stage", 0))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.num_classes = len(dataset.class_names)
        self.notes: list[str] = []

        num_images = len(dataset.train_images)
        if config.num_val >= num_images:
            raise UsageError(f"error: num_val: {config.num_val} is not allowed: there are {num_images} training images")
        images, labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
        train_index, val_index = split(num_images, config.num_val)
        if config.num_train > len(train_index):
            raise UsageError(
                f"error: num_train: {config.num_train} is not allowed: there are {len(train_index)} images"
            )
        train_index = train_index[: config.num_train or None]
        self.val = (images[val_index], labels[val_index])
        self.preparation = model.preparation(config)
        self.batches = data.TrainBatches(
            images[train_index],
            labels[train_index],
            self.num_classes,
            config,
            self.preparation,
            self.rank,
            self.world_size,
            device,
        )
        self.order = self.batches.order
        if not self.order.num_global_batches():
            raise UsageError(
                f"error: micro_batch_size x gradient_accumulation_steps x processes = {config.micro_batch_size} x "
                f"{config.gradient_accumulation_steps} x {self.world_size} = {self.order.global_batch_size} images, "
                f"but there are only {len(train_index)} training images"
            )
        self.make_engine()

        # Where the run is: epoch, images of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0}
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.held: dict[str, int] | None = None
        self.total_images = config.epochs * self.order.num_global_batches() * self.order.global_batch_size
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_images = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume(newest_for_all(self.checkpoints, self.warn))
        # Live metrics for `tensorboard --logdir`: what a killed run has logged after its checkpoint is dropped.
        self.board = self.open_board() if self.rank == 0 else None

    def make_engine(self) -> None:
        """Make the network and wrap it in the engine that trains it, and a plain one for validation and the end."""
        import deepspeed

        config = self.config
        torch.manual_seed(config.seed)  # every process draws the same weights
        network = model.make(config, self.num_classes)
        self.predict_bytes(network)
        # [deepspeed] The forward pass of a sharded module waits for all processes at every layer. Evaluation therefore
        # has a plain network, into which the weights are gathered: no batch has to be padded, each image counts once.
        self.whole = model.make(config, self.num_classes, read_weights=False).to(self.device)
        largest = max(p.numel() for p in network.parameters())
        chosen = sizes(largest, self.device.type == "cpu")
        stated = self.settings.get("zero_optimization", {})
        filled = {name: chosen[name] if value == deepspeed_json.AUTO else value for name, value in stated.items()}
        # [deepspeed] The engine owns everything from here on: optimizer, clipping, accumulation, 16 bits, sharding.
        self.engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=model.parameter_groups(network, config.weight_decay),
            config=self.settings | {"zero_optimization": filled},
        )
        self.average = WeightAverage(self.engine.module, config.ema_decay) if config.ema_decay else None

    def open_board(self) -> Any:
        """Return the writer of the live metrics; rank 0 has it, and it alone spends the time of importing it."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self.folder.path / "tensorboard", purge_step=self.step + 1)

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config, engine = self.config, self.engine
        model.set_training(engine.module, config)
        micro_batches = self.batches.epoch(self.epoch, self.used)
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, images_since = time.perf_counter(), 0
        for _ in range(self.order.num_global_batches(self.used)):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_images, config.warmup_fraction)
            for group in engine.optimizer.param_groups:
                group["lr"] = config.learning_rate * factor

            for _ in range(config.gradient_accumulation_steps):
                images, labels = next(micro_batches)
                # [deepspeed] Convolutions in 16 bits by the engine's torch_autocast; the loss outside of it, in fp32.
                loss = F.cross_entropy(engine(images).float(), labels, label_smoothing=config.label_smoothing)
                # [deepspeed] Not loss.backward(): the engine divides by the accumulation steps, scales the loss in
                # fp16, and sends each gradient to its owner as soon as it is there.
                engine.backward(loss)
                if self.held is None and self.step > 0 and engine.is_gradient_accumulation_boundary():
                    self.held = zero.held_bytes(engine)
                # [deepspeed] To be called after every micro-batch; the last one clips and updates, and ZeRO-1 and 2
                # then gather the parameters that other processes have updated.
                engine.step()
                loss_sum += loss.detach()
                loss_count += 1

            self.step += 1
            self.used += self.order.global_batch_size
            images_since += self.order.global_batch_size
            if self.average:
                self.average.update(self.step)
            if self.step % config.log_every == 0:
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

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure loss and accuracy on the held-out images and remember the weights if they are the best so far."""
        config = self.config
        if not config.num_val:
            return
        measured = {}
        for name in ("weights", "average") if self.average else ("weights",):
            weights = self.gather_weights(averaged=name == "average")
            self.whole.load_state_dict(weights)
            scores = evaluate.predict(
                self.whole, self.preparation, self.val[0], self.num_classes, config.precision, self.device
            )
            measured[name] = {
                "loss": F.cross_entropy(scores.logits, self.val[1]).item(),
                "accuracy": (scores.logits.argmax(dim=1) == self.val[1]).float().mean().item(),
            }
        chosen = measured["average" if self.average else "weights"]
        values = dict(chosen)
        if self.average:  # what counts is the average; the last weights are there to compare with
            values |= {f"{key}_without_ema": value for key, value in measured["weights"].items()}
        self.record("val", step=self.step, epoch=self.epoch + 1, **values)
        beside = f" ({measured['weights']['accuracy']:.2%} without averaging)" if self.average else ""
        progress.say(
            f"epoch {self.epoch + 1}/{config.epochs}: val loss {chosen['loss']:.3f}, "
            f"val accuracy {chosen['accuracy']:.2%}{beside}"
        )
        if chosen["accuracy"] >= self.best["accuracy"]:
            self.best = {"accuracy": chosen["accuracy"], "epoch": self.epoch + 1}
            self.best_weights = weights

    def gather_weights(self, *, averaged: bool) -> dict[str, torch.Tensor]:
        """Return the whole network as copies on the CPU, the same on every process; all processes call it.

        Args:
            averaged: the moving average instead of the weights as they are.
        """
        import deepspeed

        if averaged and self.average:
            with self.average.in_place():
                return self.gather_weights(averaged=False)
        weights = {}
        for name, parameter in self.engine.module.named_parameters():
            # [deepspeed] Below stage 3 parameters are whole, and this does nothing.
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                weights[name] = parameter.detach().cpu().clone()
        for name, buffer in self.engine.module.named_buffers():
            value = buffer.detach().clone()
            if value.is_floating_point():
                # Each process has seen other images: its statistics are as good as those of the others.
                dist.all_reduce(value)
                value /= self.world_size
            weights[name] = value.cpu()
        return weights

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each contributes its share."""
        facts = {
            "epoch": self.epoch,
            "used": self.used,
            "world_size": self.world_size,
            "global_batch_size": self.order.global_batch_size,
            "stage": self.stage,
            "best": self.best,
        }
        with written_by_all(self.checkpoints, self.step, **facts) as folder:
            # [deepspeed] Weights from rank 0 (under ZeRO-3 from each), optimizer state from each.
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=True)
            own: dict[str, Any] = {
                "buffers": dict(self.engine.module.named_buffers()),
                "average": self.average.state() if self.average else None,
                "random": {"cpu": torch.get_rng_state()},
            }
            if self.device.type == "cuda":
                own["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
            torch.save(own, folder / f"rank-{self.rank}.pt")
            if self.rank == 0:
                torch.save(self.best_weights, folder / "best.pt")
        if self.board:
            self.board.flush()

    def resume(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint, if there is one, with as many processes and the stage that wrote it."""
        if checkpoint is None:
            torch.manual_seed(self.config.seed * 1_000_003 + self.rank)  # dropout falls elsewhere on each process
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(checkpoint)
        wanted = {"stage": self.stage, "world_size": self.world_size, "global_batch_size": self.order.global_batch_size}
        if before := {name: facts[name] for name, value in wanted.items() if facts[name] != value}:
            found = ", ".join(f"{name} {value}" for name, value in before.items())
            now = ", ".join(f"{name} {wanted[name]}" for name in before)
            raise UsageError(
                f"error: --resume: the checkpoint is one of {found}, this run of {now}: each process has written its "
                "own share, which fits no other; continue as it began"
            )
        try:
            self.engine.load_checkpoint(str(checkpoint), tag=TAG)
        except pickle.UnpicklingError as error:
            raise DataError(f"error: {checkpoint}: holds something else than numbers, and is not read") from error
        # weights_only: these are data, and must not be able to run code.
        own = torch.load(checkpoint / f"rank-{self.rank}.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, buffer in self.engine.module.named_buffers():
                buffer.copy_(own["buffers"][name])
        if self.average and own["average"] is not None:
            self.average.load_state(own["average"])
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["random"]["cuda"], self.device)
        self.best_weights = torch.load(checkpoint / "best.pt", map_location="cpu", weights_only=True)
        self.step, self.epoch, self.used, self.best = facts["step"], facts["epoch"], facts["used"], facts["best"]
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

    def record(self, kind: str, **values: float) -> None:
        """Put figures into metrics.jsonl and before the eyes of whoever has TensorBoard open; rank 0 does it."""
        if self.board is None:
            return
        self.folder.log(kind, **values)
        for name, value in values.items():
            if name != "step":
                self.board.add_scalar(f"{kind}/{name}", value, int(values["step"]))

    def log(self, progress: console.TrainingProgress, loss: float, images_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_images * self.config.epochs
        self.record(
            "train",
            step=self.step,
            epoch=round(position, 4),
            loss=loss,
            learning_rate=self.engine.optimizer.param_groups[0]["lr"],
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

    def predict_bytes(self, network: Any) -> None:
        """Predict what a process will hold, and what a forward pass keeps for the backward pass."""
        config = self.config
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self.num_parameters = sum(p.numel() for p in network.parameters())
        # Parameters and gradients stay fp32 under autocast.
        self.predicted_bytes = zero.predicted_bytes(trained, self.stage, self.world_size, "fp32")
        if self.stage in (1, 2) and "offload_optimizer" not in self.settings["zero_optimization"]:
            # Of a parameter on the border of two slices both processes keep the whole gradient.
            groups = model.parameter_groups(network, config.weight_decay)
            sizes_of_groups = [[p.numel() for p in group["params"]] for group in groups]
            self.predicted_bytes["gradients"] = 4 * zero.gradients_of_slice(sizes_of_groups, self.rank, self.world_size)
        sharers = self.world_size if self.stage == 3 else 1
        self.predicted_bytes["parameters"] += 4 * (self.num_parameters - trained) // sharers
        if config.ema_decay:
            statistics = memory.tensor_bytes(b for b in network.buffers() if b.is_floating_point())
            self.predicted_bytes["moving_average"] = 4 * trained // sharers + statistics
        model.set_training(network, config)
        self.predicted_bytes["activations"] = memory.activation_bytes(
            network,
            torch.zeros(3, 3, config.image_size, config.image_size).contiguous(memory_format=torch.channels_last),
            batch_size=config.micro_batch_size,
            autocast=DTYPES[config.precision] if config.precision != "fp32" else None,
        )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, dataset, order = self.config, self.dataset, self.order
        if order.global_batch_size > config.micro_batch_size and not config.frozen_batchnorm:
            self.notes.append(
                f"batch normalisation uses the statistics of {config.micro_batch_size} images (one micro-batch of one "
                f"process), not of all {order.global_batch_size}; its running statistics are averaged over the "
                "processes before evaluation"
            )
        if config.precision == "bf16" and self.device.type == "cpu" and not cpu_has_bf16_units():
            self.notes.append(
                "this CPU has no bf16 units: it converts every number back and forth, so bf16 is slower here than "
                "--precision fp32; on GPUs it is faster"
            )
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        predicted = self.predicted_bytes
        parts = ", ".join(f"{name.replace('_', ' ')} {console.bytes_text(n)}" for name, n in predicted.items())
        frozen = f", {config.frozen_stages} of 7 stages frozen" if config.frozen_stages else ""
        facts = [
            ("model", f"{config.model}: {self.num_parameters:,} parameters{frozen}; weights: {config.weights}"),
            ("images", f"{config.image_size} pixels a side"),
            ("sharding", f"DeepSpeed, {config.deepspeed} (ZeRO stage {self.stage})"),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {config.micro_batch_size} x accumulation {config.gradient_accumulation_steps} x "
                f"{self.world_size} processes = {order.global_batch_size} images",
            ),
            ("data", f"{dataset.source}: {order.num_images:,} train, {len(self.val[0]):,} val"),
            ("steps", f"{config.epochs} epochs of {order.num_global_batches()}"),
            ("memory", f"{console.bytes_text(sum(predicted.values()))} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
            ("live", f"tensorboard --logdir {self.folder.path}"),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

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
                "num_train": self.order.num_images,
                "num_val": len(self.val[0]),
                "num_test": len(dataset.test_images),
            },
            "seed": self.config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.order.global_batch_size,
            "device": describe(self.device),
            "precision": self.config.precision,
            "model": self.config.model,
            "weights": self.config.weights,
            "image_size": self.config.image_size,
            "zero_stage": self.stage,
            "num_parameters": self.num_parameters,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance((PACKAGE, "trainyard-shared", "torch", "deepspeed", "timm", "numpy")),
        }

    def finish(self) -> None:
        """Test the chosen weights once, on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        own = {**(self.held or {}), **memory.peak_memory(self.device)}
        if self.average:
            own["moving_average"] = memory.tensor_bytes(self.average.state())
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, own)
        self.whole.load_state_dict(self.best_weights or self.gather_weights(averaged=True))
        summary = self.summary("finished")
        throughput = self.trained_images / self.train_s if self.train_s else float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {"images_per_second": round(throughput, 1)},
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes,
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
            "flops_per_image": model.flops_per_image(self.config, self.num_classes) if self.rank == 0 else None,
            "chosen_epoch": self.best["epoch"] or self.config.epochs,
            "val_accuracy": self.best["accuracy"] if self.config.num_val else None,
        }
        if self.board:
            self.board.close()
        if self.config.test:
            evaluate.test_and_report(
                self.whole, self.dataset, self.config, self.device, self.folder, summary, train_end_s
            )
        elif self.rank == 0:
            self.folder.write_summary(summary)


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 numbers natively."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak: linear up, then half a cosine down to 0.

    A function of images seen, not of steps, so that it means the same for any number of processes.
    """
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) if warmup < 1 else 1.0


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _is_auto(settings: dict[str, Any], name: str) -> bool:
    """Whether a setting of a dotted name is "auto"."""
    found: Any = settings
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found == deepspeed_json.AUTO


if __name__ == "__main__":
    from deepspeed_efficientnet_cifar import cli

    sys.exit(cli.train())
