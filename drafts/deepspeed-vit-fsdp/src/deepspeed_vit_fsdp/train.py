"""Training with DeepSpeed: the loop this project is about.

Every process runs this file. What DeepSpeed asks for is marked [deepspeed]:

    start                DeepSpeed joins the processes; on a CPU it has to be kept from compiling extensions
    complete             its JSON config, of which the project's config fills in what says "auto"
    from_pretrained      under ZeRO-3 each tensor of a pretrained model is shared out as soon as it is read
    initialize           from here on the engine holds model, optimizer and gradients, each process its share
    engine(...)          ZeRO-3 gathers each layer's parameters before it computes and lets them go after
    engine.backward      divides by the accumulation steps; gradients are reduced to the process that owns them
    engine.step          counts micro-batches by itself and makes an optimizer step after the last
    safe_get_full_fp32_param   the whole of a parameter that no process holds, in the precision of the optimizer
    save_checkpoint      each process writes its share; ds_to_universal re-cuts them for another number of processes
"""

import contextlib
import copy
import datetime
import importlib
import io
import logging
import math
import os
import pickle
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from trainyard_shared import console, deepspeed_json, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import DataError, TrainyardError, UsageError
from trainyard_shared.tensors import memory, zero
from trainyard_shared.tensors.checkpointing import newest_for_all, written_by_all
from trainyard_shared.tensors.images import split

from deepspeed_vit_fsdp import data, engines, evaluate, model, planning
from deepspeed_vit_fsdp.communication import CommunicationCounter, predicted_bytes
from deepspeed_vit_fsdp.config import TrainConfig

PACKAGE = "deepspeed-vit-fsdp"
TAG = "state"  # name of the folder that DeepSpeed makes in a checkpoint
BEST = "best.safetensors"


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, device or settings do not fit; the message says how.
    """
    config = parsed.config
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    torch.set_flush_denormal(True)  # AdamW's second moments get that small, and then cost a CPU hundreds of cycles
    device = launch.choose_device(config.device)
    settings = deepspeed_settings(config, launch.world_size(), device)
    dataset = data.load(config)
    check(config, len(dataset.train_images), launch.world_size())
    start(device, config.collective_timeout_s)
    run = Run(parsed, dataset, device, settings)
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(
        run.total_images, run.used_before_epoch() + run.used, show=dist.get_rank() == 0
    ) as progress:
        while run.epoch < config.epochs and not run.stopped_early():
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
    timeout = datetime.timedelta(seconds=timeout_s)
    with quiet_stdout():
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        read_as_data()
        if device.type == "cpu":
            # Its shared-memory all-reduce for CPUs would be compiled for most of a minute; Gloo does the same work.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            # An optimizer that is not used here is marked to be compiled, and would import torch's compiler.
            with mock.patch.object(deepspeed.runtime.compiler, "compile", lambda: lambda function: function):
                importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
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


def check(config: TrainConfig, num_images: int, world_size: int) -> None:
    """Raise UsageError if the training images are not enough, before seconds are spent on importing DeepSpeed."""
    if config.num_val >= num_images:
        raise UsageError(f"error: num_val: {config.num_val} is not allowed: there are {num_images} training images")
    global_batch_size = config.micro_batch_size * config.gradient_accumulation_steps * world_size
    if global_batch_size > num_images - config.num_val:
        raise UsageError(
            f"error: micro_batch_size x gradient_accumulation_steps x processes = {config.micro_batch_size} x "
            f"{config.gradient_accumulation_steps} x {world_size} = {global_batch_size} images, "
            f"but there are only {num_images - config.num_val} training images"
        )


def deepspeed_settings(config: TrainConfig, world_size: int, device: torch.device) -> dict[str, Any]:
    """[deepspeed] Return the JSON config with every "auto" replaced but those of sizes, which need the model.

    Raises:
        UsageError: the file cannot be read, contradicts the config, or batch sizes do not multiply.
    """
    if config.engine != "deepspeed":
        if config.precision == "fp16":
            raise UsageError(f"error: precision: fp16 is not allowed with engine {config.engine}: take bf16")
        return {}
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("error: precision: fp16 is not allowed on a CPU: DeepSpeed trains in fp32 or bf16 there")
    file = deepspeed_json.find(config.deepspeed, files("deepspeed_vit_fsdp") / "deepspeed")
    settings = deepspeed_json.read(file)
    on_cpu = device.type == "cpu"
    values = {
        "optimizer.params.lr": config.learning_rate,
        "optimizer.params.weight_decay": config.weight_decay,
        "gradient_clipping": config.max_grad_norm,
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": config.precision == "fp16",
    }
    # Only where the file leaves the choice. On a CPU, DeepSpeed's own Adam would be compiled for four minutes.
    defaults = {
        "optimizer.params.torch_adam": on_cpu,
        "zero_force_ds_cpu_optimizer": not on_cpu,
        "zero_optimization.overlap_comm": not on_cpu,
        "zero_optimization.offload_optimizer.pin_memory": not on_cpu,
        "zero_optimization.offload_param.pin_memory": not on_cpu,
    }
    later = {f"zero_optimization.{name}": deepspeed_json.AUTO for name in sizes(1, 1, on_cpu)}
    return deepspeed_json.complete(
        settings,
        file.name,
        micro_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        world_size=world_size,
        values=values | {name: value for name, value in (defaults | later).items() if _is_auto(settings, name)},
    )


def sizes(largest: int, hidden_size: int, on_cpu: bool) -> dict[str, int]:
    """[deepspeed] Return what "auto" means for the sizes of buckets, in numbers, not bytes.

    On GPUs as the transformers library chooses them, from the width of the model. On a CPU nothing is gained by
    sending much at once: buckets hold the largest parameter, and ZeRO-3 keeps and fetches nothing but what computes.
    """
    if on_cpu:
        bucket, prefetch, persistence, live = largest, 0, 0, 0
    else:
        bucket = max(largest, hidden_size * hidden_size)
        prefetch, persistence, live = int(0.9 * hidden_size**2), 10 * hidden_size, 10**9
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
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.notes: list[str] = []

        num_images, num_classes = len(dataset.train_images), len(dataset.class_names)
        images, labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
        train_index, val_index = split(num_images, config.num_val)
        self.val = (images[val_index], labels[val_index])

        self.strategy = planning.strategy_of(config.engine, settings)
        torch.manual_seed(config.seed)
        self.make_model()
        self.teacher = evaluate.Teacher(config.teacher, num_classes, device) if config.teacher else None

        self.batches = data.TrainBatches(
            images[train_index],
            labels[train_index],
            num_classes,
            config,
            self.preparation,
            self.rank,
            self.world_size,
            device,
        )
        self.order = self.batches.order
        self.predict_bytes()

        # Where the run is: epoch, images of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0}
        self.best_weights: dict[str, torch.Tensor] | None = None  # on rank 0
        self.held: dict[str, int] | None = None
        self.communication: dict[str, Any] | None = None
        self.total_images = config.epochs * self.order.num_global_batches() * self.order.global_batch_size
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_images = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        newest = newest_for_all(self.checkpoints, self.warn)
        self.make_engine(newest)
        self.group_settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.engine.optimizer.param_groups
        ]
        self.resume(newest)

    def make_model(self) -> None:
        """Make the model to train, and `whole`, a plain module of the same form for validation and the end."""
        config = self.config
        settings, self.preparation = model.settings_and_preparation(config, self.dataset)
        if config.model == "tiny":
            # Every process draws the same weights; they are small, and shared out by `initialize`.
            self.model = model.make_tiny(settings, config.initialization)
        else:
            self.model, fresh = self.load_pretrained(settings)
            if fresh:
                self.notes.append(f"new weights on top of the pretrained ones: {', '.join(fresh)}")
        if config.activation_checkpointing:
            planning.use_checkpointing(self.model)
        # [deepspeed] The forward pass of a sharded module waits for all processes at every layer. Evaluation therefore
        # has a plain module, into which the weights are gathered: no batch has to be padded, each image counts once.
        self.whole = model.without_weights(self.model.config).to(self.device)
        self.num_parameters = sum(p.numel() for p in self.whole.parameters())
        self.module_config = self.model.config

    def load_pretrained(self, wanted: Any) -> tuple[Any, list[str]]:
        """Read a pretrained model; under ZeRO-3 no process ever holds the whole of it."""
        if self.strategy.stage < 3 or self.config.engine != "deepspeed":
            return model.load_pretrained(self.config.model, wanted, self.config.seed)
        from transformers.integrations import HfDeepSpeedConfig

        # [deepspeed] While this object lives, from_pretrained shares out each tensor as it reads it. A plain
        # deepspeed.zero.Init() around the model's class would be wrong: the library's initial weights go amiss there.
        alive = HfDeepSpeedConfig(self.settings_for(model.without_weights(wanted)))
        loaded = model.load_pretrained(self.config.model, wanted, self.config.seed)
        del alive
        return loaded

    def settings_for(self, module: Any) -> dict[str, Any]:
        """[deepspeed] Return the JSON config with the sizes that follow from the model."""
        largest = max(p.numel() for p in module.parameters())
        chosen = sizes(largest, module.config.hidden_size, self.device.type == "cpu")
        stated = self.settings.get("zero_optimization", {})
        filled = {name: chosen[name] if value == deepspeed_json.AUTO else value for name, value in stated.items()}
        return self.settings | {"zero_optimization": filled}

    def make_engine(self, checkpoint: Path | None) -> None:
        """Wrap the model in the engine that trains it."""
        config = self.config
        if config.engine != "deepspeed":
            engine_class = {"ddp": engines.DDPEngine, "fsdp2": engines.FSDP2Engine}[config.engine]
            self.engine: Any = engine_class(self.model.to(self.device), config, self.device)
            return
        import deepspeed

        settings = self.settings_for(self.whole)
        if checkpoint is not None and not self.fits_as_it_is(checkpoint):
            settings["checkpoint"] = {"load_universal": True}
        # [deepspeed] The engine owns everything from here on: optimizer, clipping, accumulation, 16 bits, sharding.
        groups = model.parameter_groups(self.model, config.weight_decay, config.layer_decay)
        with quiet_stdout():
            self.engine, *_ = deepspeed.initialize(model=self.model, model_parameters=groups, config=settings)

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config, engine = self.config, self.engine
        engine.train()
        micro_batches = self.batches.epoch(self.epoch, self.used)
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, images_since = time.perf_counter(), 0
        for _ in range(self.order.num_global_batches(self.used)):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_images, config.warmup_fraction)
            for group in engine.optimizer.param_groups:
                group["lr"] = config.learning_rate * factor * group["lr_scale"]

            counter = CommunicationCounter() if config.count_communication and self.step == 2 else None
            with counter or contextlib.nullcontext():
                for _ in range(config.gradient_accumulation_steps):
                    loss_sum += self.micro_step(*next(micro_batches))
                    loss_count += 1
            if counter:
                self.communication = {"sent_bytes": counter.sent_bytes(), "payload_bytes": dict(counter.payload)}

            self.step += 1
            self.used += self.order.global_batch_size
            images_since += self.order.global_batch_size
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

    def micro_step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Go forward and backward through one micro-batch, update after the last of a step, and return the loss."""
        engine = self.engine
        # [deepspeed] Under ZeRO-3 each layer's parameters are gathered when its turn comes, here and in backward, and
        # let go again: all processes have to come to the same layers in the same order.
        logits = engine(pixel_values=images).logits.float()
        loss = self.loss(logits, images, labels)
        # [deepspeed] Not loss.backward(): the engine divides by the accumulation steps, scales the loss in fp16, and
        # sends each gradient to its owner as soon as it is there.
        engine.backward(loss)
        if self.held is None and self.step > 0 and engine.is_gradient_accumulation_boundary():
            self.held = zero.held_bytes(engine) if self.config.engine == "deepspeed" else engine.held_bytes()
        # [deepspeed] To be called after every micro-batch; the last one clips and updates, and ZeRO-1 and 2 then gather
        # the parameters that other processes have updated.
        engine.step()
        return loss.detach()

    def loss(self, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over a micro-batch, with what the teacher says of it (Hinton et al. 2015)."""
        config = self.config
        own = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None:
            return own
        temperature = config.teacher_temperature
        wanted = F.log_softmax(self.teacher(images, self.preparation) / temperature, dim=1)
        found = F.log_softmax(logits / temperature, dim=1)
        distance = F.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2
        return (1 - config.teacher_weight) * own + config.teacher_weight * distance

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure loss and accuracy on the held-out images and remember the weights if they are the best so far."""
        if not self.config.num_val:
            return
        weights = self.gather_weights()
        self.whole.load_state_dict(weights)
        scores = evaluate.predict(self.whole, self.preparation, self.val[0], self.config.precision, self.device)
        loss = F.cross_entropy(scores.logits, self.val[1]).item()
        correct = (scores.logits.argmax(dim=1) == self.val[1]).float().mean().item()
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, accuracy=correct)
        progress.say(f"epoch {self.epoch + 1}/{self.config.epochs}: val loss {loss:.3f}, val accuracy {correct:.2%}")
        if correct > self.best["accuracy"]:
            self.best = {"accuracy": correct, "epoch": self.epoch + 1}
            self.best_weights = weights if self.rank == 0 else None

    def stopped_early(self) -> bool:
        """Whether validation has not become better for as many epochs as the config allows; the same everywhere."""
        patience = self.config.early_stopping_epochs
        stop = bool(patience and self.config.num_val and self.epoch - self.best["epoch"] >= patience)
        if stop:
            self.warn(f"stopped early after epoch {self.epoch}: no better validation accuracy for {patience} epochs")
        return stop

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Return the whole model in fp32 as copies on the CPU; all processes call it."""
        if self.config.engine != "deepspeed":
            return self.engine.whole_weights()
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.engine.module.named_parameters():
            # [deepspeed] From the optimizer's copy, which is in fp32 also where training is in 16 bits. Stage 0 has
            # none; there the parameter itself is whole.
            full = safe_get_full_fp32_param(parameter)
            weights[name] = (parameter if full is None else full).detach().float().cpu().clone()
        return weights

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each contributes its share."""
        facts = {
            "epoch": self.epoch,
            "used": self.used,
            "world_size": self.world_size,
            "global_batch_size": self.order.global_batch_size,
            "engine": self.config.engine,
            "stage": self.strategy.stage,
            "best": self.best,
        }
        with written_by_all(self.checkpoints, self.step, **facts) as folder, quiet_stdout():
            if self.config.engine == "deepspeed":
                # [deepspeed] Weights from rank 0 (under ZeRO-3 from each), optimizer state from each.
                self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=True)
            else:
                self.engine.save_checkpoint(folder)
            random_state = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                random_state["cuda"] = torch.cuda.get_rng_state(self.device)
            torch.save(random_state, folder / f"random-{self.rank}.pt")
            if self.best_weights is not None:
                save_file(self.best_weights, folder / BEST)

    def resume(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint, if there is one; also with another number of processes."""
        if checkpoint is None:
            torch.manual_seed(self.config.seed * 1_000_003 + self.rank)  # dropout falls elsewhere on each process
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(checkpoint)
        if (facts["engine"], facts["stage"]) != (self.config.engine, self.strategy.stage):
            raise UsageError(
                f"error: --resume: the checkpoint is one of engine {facts['engine']}, stage {facts['stage']}, and "
                f"holds its state in another form than {self.config.engine}, stage {self.strategy.stage}; continue as "
                "it began"
            )
        try:
            if self.config.engine != "deepspeed":
                self.engine.load_checkpoint(checkpoint)
            elif self.fits_as_it_is(checkpoint):
                with quiet_stdout():
                    self.engine.load_checkpoint(str(checkpoint), tag=TAG)
            else:
                self.load_universal(checkpoint)
        except pickle.UnpicklingError as error:
            raise DataError(f"error: {checkpoint}: holds something else than numbers, and is not read") from error
        for group, settings in zip(self.engine.optimizer.param_groups, self.group_settings, strict=True):
            # The moments come from the checkpoint, settings from the config. [deepspeed] A must: the universal
            # checkpoint of ZeRO-3 gives all groups the weight decay and the learning rate of the first.
            group.update(settings)
        self.step, self.epoch, self.used, self.best = facts["step"], facts["epoch"], facts["used"], facts["best"]
        if self.rank == 0 and (checkpoint / BEST).is_file():
            self.best_weights = load_file(checkpoint / BEST)
        if (facts["world_size"], facts["global_batch_size"]) == (self.world_size, self.order.global_batch_size):
            # weights_only: this is data, and must not be able to run code.
            own = torch.load(checkpoint / f"random-{self.rank}.pt", weights_only=True)
            torch.set_rng_state(own["cpu"])
            if "cuda" in own and self.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], self.device)
        else:
            torch.manual_seed(self.config.seed * 1_000_003 + self.rank + self.step)
            self.warn(
                f"resumed with {self.world_size} processes and a global batch of {self.order.global_batch_size}; "
                f"before: {facts['world_size']} and {facts['global_batch_size']}. The run goes on at the same image of "
                "the same epoch; the learning rate follows the share of images seen, dropout falls on other units"
            )
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    def fits_as_it_is(self, checkpoint: Path) -> bool:
        """Whether each process finds what it needs: its own share, or, if nothing is shared out, the whole."""
        return self.strategy.stage == 0 or manifest(checkpoint)["world_size"] == self.world_size

    def load_universal(self, checkpoint: Path) -> None:
        """[deepspeed] Take the state of a checkpoint that another number of processes has written.

        Each process wrote its slice of flattened tensors, which fits no other number. `ds_to_universal` puts them
        together to one folder for each parameter, from which each process then takes what is its own.
        """
        universal = self.folder.path / "universal"
        if self.rank == 0:
            convert_to_universal(checkpoint / TAG, universal / TAG, self.strategy.stage)
            (universal / "latest_universal").write_text(TAG)
        dist.barrier()
        with quiet_stdout():
            self.engine.load_checkpoint(str(universal), tag=TAG)
        for state in self.engine.optimizer.optimizer.state.values():
            # [deepspeed] ZeRO-3 gives all groups one and the same counter of steps, which each then counts up in place:
            # Adam's bias correction would be that of a run many times as long.
            if "step" in state:
                state["step"] = copy.deepcopy(state["step"])
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(universal)

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Images that all processes have used in the epochs before this one."""
        return self.epoch * (self.total_images // self.config.epochs)

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        if message not in self.notes:
            self.notes.append(message)
            if self.rank == 0:
                console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, images_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_images * self.config.epochs
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(position, 4),
                loss=loss,
                learning_rate=self.engine.optimizer.param_groups[-1]["lr"],
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

    def predict_bytes(self) -> None:
        """Predict what a process will hold, and measure the activations of a forward pass at the real batch."""
        config = self.config
        autocast = config.engine == "ddp" and config.precision == "bf16"
        self.predicted_bytes = planning.state_bytes(
            self.num_parameters, self.strategy, self.world_size, config.precision, reduced=True
        ) | {
            "activations": planning.activation_bytes(
                self.module_config,
                config.micro_batch_size,
                config.precision,
                checkpointing=config.activation_checkpointing,
                autocast=autocast,
            )
        }
        if config.engine == "deepspeed" and self.strategy.stage in (1, 2) and not self.strategy.offloaded:
            groups = model.parameter_groups(self.whole, config.weight_decay, config.layer_decay)
            group_sizes = [[parameter.numel() for parameter in group["params"]] for group in groups]
            held = zero.gradients_of_slice(group_sizes, self.rank, self.world_size)
            self.predicted_bytes["gradients"] = zero.BYTES[config.precision] * held

    def measured_activations(self) -> int:
        """Measure what the backward pass of a micro-batch needs, on a plain module and a batch of the real size."""
        config = self.config
        autocast = config.engine == "ddp" and config.precision == "bf16"
        images = torch.zeros(
            config.micro_batch_size, 3, self.preparation.image_size, self.preparation.image_size, device=self.device
        )

        def measured(settings: Any, checkpointing: bool) -> int:
            twin = model.without_weights(settings).to(self.device)
            return planning.measured_activation_bytes(twin, images, config.precision, checkpointing, autocast)

        found = measured(self.module_config, config.activation_checkpointing)
        if config.activation_checkpointing:  # and the one layer that is computed again
            smaller = [copy.deepcopy(self.module_config) for _ in range(2)]
            smaller[0].num_hidden_layers, smaller[1].num_hidden_layers = 1, 2
            one, two = (measured(settings, False) for settings in smaller)
            found += two - one
        return found

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, dataset, order = self.config, self.dataset, self.order
        if config.precision != "fp32" and self.device.type == "cpu" and not cpu_has_bf16_units():
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
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        how = f"DeepSpeed, {config.deepspeed} (ZeRO stage {self.strategy.stage})"
        facts = [
            ("model", f"{config.model}: {self.num_parameters:,} parameters"),
            ("images", f"{self.preparation.image_size} pixels a side"),
            ("sharding", how if config.engine == "deepspeed" else f"{config.engine} of PyTorch"),
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
            "engine": self.config.engine,
            "zero_stage": self.strategy.stage if self.config.engine == "deepspeed" else None,
            "num_parameters": self.num_parameters,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance((PACKAGE, "trainyard-shared", "torch", "deepspeed", "transformers", "numpy")),
        }

    def finish(self) -> None:
        """Test the chosen weights once, on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        own = {**(self.held or {}), "activations": self.measured_activations(), **memory.peak_memory(self.device)}
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, own)
        weights = self.gather_weights()
        if self.config.num_val:  # of the best epoch, which only rank 0 has kept
            kept: list = [self.best_weights]
            dist.broadcast_object_list(kept, src=0)
            weights = kept[0]
        self.whole.load_state_dict(weights)
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
            "chosen_epoch": self.best["epoch"] or self.config.epochs,
            "val_accuracy": self.best["accuracy"] if self.config.num_val else None,
        }
        if self.communication:
            predicted = predicted_bytes(self.num_parameters, self.strategy, self.world_size, self.config.precision)
            summary["communication"] = self.communication | {"predicted_sent_bytes": predicted}
        evaluate.test_and_report(
            self.whole, self.preparation, self.dataset, self.config, self.device, self.folder, summary, train_end_s
        )


def convert_to_universal(folder: Path, to: Path, stage: int) -> None:
    """[deepspeed] Write the universal form of a checkpoint of any stage; one process calls it."""
    import argparse

    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(to, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(folder),
        output_folder=str(to),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=stage < 3,  # what the stages below 3 do not write, since Megatron would
    )
    with quiet_stdout(), contextlib.redirect_stderr(io.StringIO()):  # of which only its progress bars are lost
        ds_to_universal.main(arguments)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """[deepspeed] Keep what it prints at each start and each checkpoint from mixing with the output of this project."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - no Path for a device
        yield


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
    from deepspeed_vit_fsdp import cli

    sys.exit(cli.train())
