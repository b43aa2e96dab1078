"""Fine-tuning with Colossal-AI: the loop this project is about.

Every process runs this file. What is Colossal-AI's own is marked [colossalai]:

    start_colossalai        import, the accelerator, and the process group (launch_from_torch)
    HybridParallelPlugin    tensor x pipeline x data parallel, ZeRO, precision and clipping: one object says it all
    Booster.boost           wraps model and optimizer as the plugin says; `policies.py` says how BERT is cut up
    no_sync, backward       of the booster: all but the last backward pass of a step keep their gradients to themselves
    execute_pipeline        a whole step: passes follow each other through the stages, the last of which has the loss
    save_model, ...         parts are put together when they are written: a checkpoint fits every layout
"""

import contextlib
import copy
import gc
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from trainyard_shared import console, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.ag_news import NewsDataset
from trainyard_shared.errors import DataError, TrainyardError, UsageError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.checkpointing import newest_for_all, written_by_all
from trainyard_shared.tensors.lengths import LengthBatches, MicroBatch

from colossal_bert_agnews import augmentation, colossal_on_cpu, data, evaluate, layout
from colossal_bert_agnews.config import TrainConfig
from colossal_bert_agnews.model import WORDS, build, fill_up_vocabulary, get_settings, get_tokenizer
from colossal_bert_agnews.quick_import import without_compiler

PACKAGE = "colossal-bert-agnews"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
IGNORED = -100  # the label of an article that does not count


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, model, device or settings do not fit; the message says how.
    """
    config = parsed.config
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    torch.set_flush_denormal(True)  # AdamW's second moments get that small, and then cost a CPU hundreds of cycles
    device = launch.choose_device(config.device)
    layout.check(config, launch.world_size())
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("error: --precision fp16: not on a CPU; use --precision bf16 or fp32")
    dataset = data.load(config)  # what is wrong with the data is said before seconds are spent on importing Colossal-AI
    start_colossalai(device, config.seed)
    run = Run(parsed, dataset, device)
    if run.rank == 0:
        run.announce()
    with console.TrainingProgress(run.total, run.used_before_epoch() + run.used, show=run.rank == 0) as progress:
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.validate(progress)
            run.epoch, run.used = run.epoch + 1, 0
            run.save()
    run.finish()
    launch.leave_together()


def start_colossalai(device: torch.device, seed: int) -> None:
    """[colossalai] Import Colossal-AI for this device and join the processes.

    Of what it and what it imports say at each start (optional kernels that are not there, APIs that are going to
    change), nothing is for the user. Errors are not silenced.
    """
    # Its checkpoints are read with torch.load, which may run any code that a file holds. With this, whatever it is
    # told, it reads numbers only.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|colossalai")
    with warnings.catch_warnings(), quiet_stdout(), without_compiler():
        warnings.simplefilter("ignore")
        import colossalai
        import colossalai.booster
        from colossalai.accelerator import set_accelerator
        from colossalai.logging import get_dist_logger

        get_dist_logger().set_level("ERROR")
        set_accelerator(device.type)  # left alone, it takes a GPU where there is one
        if device.type == "cpu":
            colossal_on_cpu.install()
        colossalai.launch_from_torch(seed=seed, verbose=False)


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(self, parsed: Parsed[TrainConfig], dataset: NewsDataset, device: torch.device) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device = parsed, dataset, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.layout = layout.find(config, self.world_size)
        self.place = self.layout.place(self.rank)

        train_part, val_part = data.split(self.dataset, config)
        self.train_texts = self.dataset.train_texts[train_part]
        self.train_labels = data.labels_of(self.dataset.train_labels[train_part])
        self.val_labels = data.labels_of(self.dataset.train_labels[val_part])
        self.thesaurus = augmentation.read_thesaurus(config.thesaurus)
        with rank_0_first():  # one process fetches a model, the others find it in the cache
            settings = get_settings(config, self.dataset.class_names)
            layout.check_model(
                self.layout,
                config.model,
                settings.model_type,
                settings.num_attention_heads,
                settings.num_hidden_layers,
            )
            self.tokenizer = get_tokenizer(config, self.train_texts)
            torch.manual_seed(config.seed)
            model, notes = build(config, settings, self.tokenizer)
        self.val_articles = data.encode(self.dataset.train_texts[val_part], self.tokenizer, config)
        self.encode_epoch(0)

        self.activation_bytes = self.predict_activations(model)
        # A whole copy on the CPU for validation and the end: its forward pass waits for nobody.
        self.whole = copy.deepcopy(model)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        fill_up_vocabulary(model, self.layout)
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.boost(model)
        # Each process drops out other units of what it has for itself.
        torch.manual_seed(config.seed * 1_000_003 + 500_009 + self.rank)

        # Where the run is: epoch, articles of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "weights": None}
        self.notes = [*self.dataset.notes, *notes]
        self.total = config.epochs * len(self.train_texts)
        self.start_up_s = launch.seconds_since_command()
        # For the throughput: of this process's loop, without evaluation. Tokens of all processes, without padding.
        self.train_s, self.trained_articles, self.trained_tokens, self.padded_tokens = 0.0, 0, 0, 0
        self.held: dict[str, int] = {}  # bytes, counted in the second step

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    def boost(self, model: Any) -> None:
        """[colossalai] Say how the processes share the work, and wrap model and optimizer accordingly."""
        from colossalai.booster import Booster
        from colossalai.booster.plugin import HybridParallelPlugin
        from colossalai.shardformer.layer.utils import Randomizer

        from colossal_bert_agnews import policies

        config, shape = self.config, self.layout
        self.plugin = HybridParallelPlugin(
            tp_size=shape.tp,
            pp_size=shape.pp,
            precision=config.precision,
            zero_stage=config.zero_stage,
            max_norm=config.max_grad_norm or 0.0,
            custom_policy=policies.Bert() if model.config.model_type == "bert" else policies.Whole(),
            # A step of a pipeline is cut into so many passes.
            num_microbatches=config.gradient_accumulation_steps if shape.pp > 1 else None,
            # Batches are as wide as their longest article: shapes are announced each time.
            enable_metadata_cache=False,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
            # Overlap is by CUDA streams.
            overlap_communication=self.device.type == "cuda",
        )
        self.booster = Booster(plugin=self.plugin)
        optimizer = torch.optim.AdamW(optimizer_groups(model, config.weight_decay), lr=config.learning_rate)
        # Dropout of tensor-parallel layers has generators of its own, made from torch's seed and a running number: the
        # same for processes that share layers, others for each copy.
        Randomizer.reset_index()
        torch.manual_seed(config.seed * 1_000_003 + self.place.dp)
        self.model, self.optimizer, *_ = self.booster.boost(model.train(), optimizer)
        self.inner: torch.optim.Optimizer = self.optimizer.optim
        self.dropouts = [m.randomizer for m in self.model.modules() if hasattr(m, "randomizer")]

    # ------------------------------------------------------------------------------------------------ the loop itself

    def encode_epoch(self, epoch: int) -> None:
        """Tokenise the training articles as this epoch sees them, and cut them into batches."""
        config = self.config
        if config.augmentation == "none" and hasattr(self, "articles"):
            return
        texts = self.train_texts
        if config.augmentation != "none":
            texts = augmentation.augmented(
                texts, config.augmentation, config.augmentation_rate, self.thesaurus, config.seed, epoch
            )
        self.articles = data.encode(texts, self.tokenizer, config)
        each = config.micro_batch_size
        # The passes of a pipeline follow each other within one batch: it is as wide for all of them.
        passes = config.gradient_accumulation_steps if self.layout.pp > 1 else 1
        self.batches = LengthBatches(
            self.articles.lengths,
            each * config.gradient_accumulation_steps * self.layout.dp,
            each * passes,
            self.place.dp,
            self.layout.dp,
            config.seed,
            multiple_of=config.pad_multiple,
            window=config.sort_window,
        )

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config = self.config
        self.encode_epoch(self.epoch)
        self.model.train()
        sums = Sums(self.device)
        since = time.perf_counter()
        for num_articles, micro_batches in self.batches.epoch(self.epoch, self.used):
            factor = schedule((self.used_before_epoch() + self.used) / self.total, config.warmup_fraction)
            for group in self.inner.param_groups:
                group["lr"] = config.learning_rate * factor

            if self.layout.pp > 1:
                self.pipeline_step(num_articles, micro_batches, sums)
            else:
                self.plain_step(num_articles, micro_batches, sums)
            self.count_bytes()
            self.optimizer.step()
            self.optimizer.zero_grad()

            self.step += 1
            self.used += num_articles
            if self.step % config.log_every == 0:
                loss_sum, articles, tokens, padded, stop = sums.of_all(float(launch.stop_request().requested))
                now = time.perf_counter()
                self.train_s += now - since
                self.trained_articles += int(articles)
                self.trained_tokens += int(tokens)
                self.padded_tokens += int(padded)
                self.log(progress, loss_sum / articles, tokens / (now - since))
                since, sums = now, Sums(self.device)
                if stop:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def plain_step(self, num_articles: int, micro_batches: list[MicroBatch], sums: "Sums") -> None:
        """Compute the gradients of one step, with data or tensor parallelism or both."""
        for number, micro_batch in enumerate(micro_batches):
            ids, mask, labels = self.batch(micro_batch)
            # [colossalai] Copies exchange gradients after the last pass only. ZeRO-2 does at once, having no room for
            # all of them.
            alone = number < len(micro_batches) - 1 and self.config.zero_stage < 2
            with self.booster.no_sync(self.model, self.optimizer) if alone else contextlib.nullcontext():
                logits = self.model(input_ids=ids, attention_mask=mask).logits
                loss = micro_batch.weight * article_losses(logits, labels, self.config).sum()
                # The mean over all articles of the step, whoever computes how many of them: divided by their number,
                # and multiplied by that of the copies, by which gradients are divided when they are averaged.
                self.booster.backward(loss * (self.layout.dp / num_articles), self.optimizer)
            self.count(sums, loss, micro_batch, ids)

    def pipeline_step(self, num_articles: int, micro_batches: list[MicroBatch], sums: "Sums") -> None:
        """[colossalai] Compute the gradients of one step: all passes follow each other through the stages."""
        (micro_batch,) = micro_batches
        ids, mask, labels = self.batch(micro_batch)
        if not micro_batch.weight:
            labels = torch.full_like(labels, IGNORED)
        # Every step needs the same number of articles. What the last step of an epoch lacks is filled up with articles
        # that do not count.
        passes = self.config.gradient_accumulation_steps
        lacking = self.config.micro_batch_size * passes - len(labels)
        if lacking:
            ids, mask = (torch.cat([tensor, tensor[:1].expand(lacking, -1)]) for tensor in (ids, mask))
            labels = torch.cat([labels, labels.new_full((lacking,), IGNORED)])
        # Upstream's forward pass computes a loss of its own if it is given labels. So they go beside the batch, and
        # `criterion`, called once for each pass in turn, takes its part of them.
        rest = iter(labels.split(self.config.micro_batch_size))

        def criterion(outputs: Any, _: Any) -> Tensor:
            # The schedule divides by the number of passes.
            loss = article_losses(outputs.logits, next(rest), self.config).sum()
            return loss * (self.layout.dp * passes / num_articles)

        batch = {"input_ids": ids, "attention_mask": mask}
        outcome = self.booster.execute_pipeline(iter([batch]), self.model, criterion, self.optimizer, return_loss=True)
        loss = outcome["loss"]
        if loss is not None:  # on the last stage
            sums.loss += loss.detach() * (num_articles / self.layout.dp) if self.place.tp == 0 else 0.0
        self.count(sums, torch.zeros((), device=self.device), micro_batch, ids)

    def batch(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids (B, W), mask (B, W) and labels (B,)."""
        index = micro_batch.index
        ids, mask = self.articles.padded(
            index, self.tokenizer.pad_token_id, self.device, multiple_of=self.config.pad_multiple
        )
        mask = torch.ones_like(ids) if mask is None else mask.long()
        return ids, mask, self.train_labels[index].to(self.device, non_blocking=True)

    def count(self, sums: "Sums", loss: Tensor, micro_batch: MicroBatch, ids: Tensor) -> None:
        """Add up what was computed; of processes that compute the same articles, the first counts."""
        if self.place.tp == self.place.pp == 0:
            lengths = self.articles.lengths[micro_batch.index]
            weight = micro_batch.weight
            sums.add(loss.detach(), weight * len(lengths), weight * int(lengths.sum()), ids.numel())

    def count_bytes(self) -> None:
        """Count, once, what this process holds: when the optimizer has its moments, and gradients are there still."""
        if self.step and not self.held:
            self.held = held_bytes(self.model, self.optimizer)

    @torch.no_grad()
    def whole_weights(self) -> dict[str, Tensor]:
        """[colossalai] Return all weights, put together, in fp32 on the CPU, on every process; all call it."""
        # Layers that are shared put their parts together by themselves; each stage has the layers of its own.
        state = {name: tensor.to("cpu", torch.float32) for name, tensor in self.model.unwrap().state_dict().items()}
        if self.layout.pp > 1:
            parts: list[Any] = [None] * self.layout.pp
            dist.all_gather_object(parts, state, group=self.plugin.pp_group)
            state = {name: tensor for part in parts for name, tensor in part.items()}
        if WORDS in state:  # without those that fill up the vocabulary
            state[WORDS] = state[WORDS][: self.whole.config.vocab_size]
        return {name: tensor.clone() for name, tensor in state.items()}

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the accuracy on the held-out articles and remember the weights if they are the best so far."""
        if not len(self.val_labels):
            return
        state = self.whole_weights()
        self.whole.load_state_dict(state)
        scores = evaluate.predict(
            self.whole.to(self.device), self.val_articles, self.tokenizer.pad_token_id, self.config, self.device
        )
        self.whole.cpu()
        loss = F.cross_entropy(scores.logits, self.val_labels).item()
        correct = (scores.logits.argmax(dim=1) == self.val_labels).float().mean().item()
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, accuracy=correct)
        progress.say(f"epoch {self.epoch + 1}/{self.config.epochs}: val loss {loss:.3f}, val accuracy {correct:.2%}")
        if correct >= self.best["accuracy"]:
            self.best = {"accuracy": correct, "epoch": self.epoch + 1, "weights": state}

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it, and each writes its share."""
        facts = {"epoch": self.epoch, "used": self.used, "best": [self.best["accuracy"], self.best["epoch"]]}
        with written_by_all(self.checkpoints, self.step, **facts, layout=self.form()) as path:
            # [colossalai] Parts of tensors are gathered before they are written, so that any layout can read them.
            self.booster.save_model(self.model, str(path / "model"), shard=True, use_safetensors=True)
            self.booster.save_optimizer(self.optimizer, str(path / "optimizer"), shard=True)
            torch.save(self.private_state(), path / f"private-{self.rank}.pt")
            if self.rank == 0 and self.best["weights"] is not None:
                torch.save(self.best["weights"], path / "best.pt")

    def form(self) -> dict[str, Any]:
        """What has to be the same for a run to go on with the very same numbers."""
        shape = self.layout
        return {
            "tp_size": shape.tp,
            "pp_size": shape.pp,
            "dp_size": shape.dp,
            "zero_stage": self.config.zero_stage,
            "precision": self.config.precision,
        }

    def private_state(self) -> dict[str, Any]:
        """Return what Colossal-AI leaves out: the state of all generators, and the master copy in fp32."""
        state: dict[str, Any] = {
            "cpu": torch.get_rng_state(),
            "dropouts": [(d.device_rng_state, d.cpu_rng_state) for d in self.dropouts],
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.config.precision != "fp32":
            # It would make the master copy anew from the weights in 16 bits: a little other than it was.
            state["masters"] = [p.detach() for group in self.inner.param_groups for p in group["params"]]
        return state

    @torch.no_grad()
    def restore_private_state(self, state: dict[str, Any]) -> None:
        """Undo what has happened since `private_state`."""
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        for dropout, (of_device, of_cpu) in zip(self.dropouts, state["dropouts"], strict=True):
            dropout.device_rng_state, dropout.cpu_rng_state = of_device, of_cpu
        masters = [p for group in self.inner.param_groups for p in group["params"]]
        for master, saved in zip(masters, state.get("masters", masters), strict=True):
            master.copy_(saved)

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        path = newest_for_all(self.checkpoints, self.warn)
        if path is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(path)
        differing = [f"{name} {facts['layout'][name]}, now {now}" for name, now in self.form().items()
                     if facts["layout"][name] != now]  # fmt: skip
        if differing and {self.config.precision, facts["layout"]["precision"]} != {"fp32"}:
            raise UsageError(
                f"error: {path.name} was written with {'; '.join(differing)}: a run in 16 bits goes on in the same "
                "form only, since each process keeps its part of the master copy; in fp32 the layout may change"
            )
        try:
            # [colossalai] Every process takes its part of what is on the disk.
            self.booster.load_model(self.model, str(path / "model"))
            self.booster.load_optimizer(self.optimizer, str(path / "optimizer"))
            private = None
            if differing:
                self.warn(f"{path.name} was written with {'; '.join(differing)}: dropout draws other numbers from here")
            else:
                # weights_only: what is in a checkpoint is data, and must not be able to run code.
                private = torch.load(path / f"private-{self.rank}.pt", weights_only=True)
            best = path / "best.pt"
            best_weights = torch.load(best, weights_only=True) if best.is_file() else None
        except pickle.UnpicklingError as error:
            raise DataError(f"error: {path}: holds something else than numbers, and is not read") from error
        if private is not None:
            self.restore_private_state(private)
        # Its state comes from the checkpoint, its settings from the config, which flags may have changed.
        for group, decays in zip(self.inner.param_groups, (True, False), strict=True):
            group["weight_decay"] = self.config.weight_decay if decays else 0.0
        self.best = {"accuracy": facts["best"][0], "epoch": facts["best"][1], "weights": best_weights}
        self.step, self.epoch, self.used = facts["step"], facts["epoch"], facts["used"]
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Articles that all processes have used in the epochs before this one."""
        return self.epoch * len(self.train_texts)

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, tokens_per_second: float) -> None:
        """Record and show loss, throughput and the memory of every process; stop if the loss is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total * self.config.epochs
        peaks: list[Any] = [None] * self.world_size
        dist.all_gather_object(peaks, memory.peak_memory(self.device)["peak_bytes"])
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(position, 4),
                loss=loss,
                learning_rate=self.inner.param_groups[0]["lr"],
                tokens_per_second=round(tokens_per_second, 1),
                **{f"peak_bytes_rank_{rank}": peak for rank, peak in enumerate(peaks)},
            )
        progress.update(
            self.used_before_epoch() + self.used,
            {
                "epoch": f"{position:.1f}",
                "loss": f"{loss:.3f}",
                "tokens/s": f"{tokens_per_second:,.0f}",
                "peak memory": console.bytes_text(max(peaks)),
            },
        )
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step} (epoch {self.epoch + 1}, before article "
                f"{self.used}): try a lower --learning-rate or --precision fp32; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, lengths = self.config, self.articles.lengths
        predicted = self.predicted_bytes()
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        cut = int((lengths >= config.max_length).sum()) / len(lengths)
        zero = f", ZeRO-{config.zero_stage} among the copies" if config.zero_stage else ""
        facts = [
            ("model", f"{config.model}: {type(self.whole).__name__}, {self.num_parameters:,} parameters"),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()}): {self.layout}{zero}"),
            *((f"rank {row[0]}", f"{row[4]}; heads {row[5]}; {row[6]} parameters") for row in self.who_holds_what()),
            (
                "batch",
                f"{config.micro_batch_size} articles a pass x {config.gradient_accumulation_steps} passes x "
                f"{self.layout.dp} copies = {self.batches.global_batch_size} a step",
            ),
            (
                "data",
                f"{self.dataset.source}: {len(self.train_texts):,} train, {len(self.val_labels):,} val, "
                f"{len(self.dataset.test_texts):,} test",
            ),
            (
                "lengths",
                f"{lengths.float().mean():.0f} tokens on average; {cut:.1%} are as long as {config.max_length}",
            ),
            ("steps", f"{config.epochs} epochs of {self.batches.num_steps()}"),
            ("memory", f"{console.bytes_text(sum(predicted.values()))} predicted for rank 0: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def who_holds_what(self) -> list[list[str]]:
        """Rows of the table of the layout, if the model is cut up."""
        if self.layout.tp == self.layout.pp == 1:
            return []
        return layout.table(self.layout, self.whole.config, self.shapes)["rows"]

    def predict_activations(self, model: nn.Module) -> int:
        """Predict the bytes of activations of the longest pass, if this process computes all layers of it."""
        longest = int(self.articles.lengths.max())
        ids, mask = torch.full((3, longest), self.tokenizer.pad_token_id), torch.ones(3, longest, dtype=torch.long)
        mask[:, -1] = 0  # as in a batch that is padded
        dtype = None if self.config.precision == "fp32" else torch.bfloat16
        return memory.activation_bytes(model, ids, mask, batch_size=self.config.micro_batch_size, autocast=dtype)

    def predicted_bytes(self) -> dict[str, int]:
        """Predict what this process holds on its device during a step."""
        config = self.config
        own = self.num_parameters
        if self.whole.config.model_type == "bert":
            own = layout.held_parameters(self.layout, self.place, self.shapes, self.whole.config.num_hidden_layers)
        each = BYTES[config.precision]
        shared = self.layout.dp if config.zero_stage else 1
        # Two moments in fp32, and the master copy in fp32 that 16 bits need.
        state = -(-own * (8 + (0 if config.precision == "fp32" else 4)) // shared)
        gradients = -(-own * each // (shared if config.zero_stage == 2 else 1))
        predicted = {"parameters": own * each, "gradients": gradients, "optimizer": state}
        if self.layout.tp == self.layout.pp == 1:
            predicted["activations"] = self.activation_bytes
        return predicted

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
                "num_train": len(self.train_texts),
                "num_val": len(self.val_labels),
                "num_test": len(dataset.test_texts),
            },
            "model": self.config.model,
            "layout": str(self.layout),
            "zero_stage": self.config.zero_stage,
            "seed": self.config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.batches.global_batch_size,
            "device": describe(self.device),
            "precision": self.config.precision,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance(
                (
                    PACKAGE,
                    "trainyard-shared",
                    "colossalai",
                    "torch",
                    "transformers",
                    "tokenizers",
                    "scikit-learn",
                    "numpy",
                )
            ),
        }

    def finish(self) -> None:
        """Save the chosen weights, test them once on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, {**self.held, **memory.peak_memory(self.device)})
        chosen = self.best["weights"]
        if chosen is None:
            chosen = self.whole_weights()
        self.whole.load_state_dict(chosen)
        if self.rank == 0:
            evaluate.save_model(self.whole, self.tokenizer, self.folder.path)
        tables = []
        if self.whole.config.model_type == "bert":
            tables.append(layout.table(self.layout, self.whole.config, self.shapes))
        if self.config.augmentation != "none":
            tables.append(self.augmentation_table())
        summary = self.summary("finished")
        seconds = self.train_s or float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {
                "tokens_per_second": round(self.trained_tokens / seconds, 1),
                "articles_per_second": round(self.trained_articles / seconds, 2),
            },
            "share_of_padding": f"{1 - self.trained_tokens / max(self.padded_tokens, 1):.1%} of the computed tokens",
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes(),
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
            "chosen_epoch": self.best["epoch"] or self.config.epochs,
            "val_accuracy": self.best["accuracy"] if len(self.val_labels) else None,
            "training_tables": tables,
        }
        # The optimizer's state is not needed any more; testing takes its place.
        del self.model, self.optimizer, self.inner, self.dropouts
        gc.collect()
        evaluate.test_and_report(
            self.whole.to(self.device),
            self.tokenizer,
            self.dataset,
            self.config,
            self.device,
            self.folder,
            summary,
            train_end_s,
        )

    def augmentation_table(self) -> dict[str, Any]:
        """Show what becomes of a few articles in the first epoch."""
        config, shown = self.config, self.train_texts[:3]
        changed = augmentation.augmented(
            shown, config.augmentation, config.augmentation_rate, self.thesaurus, config.seed, 0
        )
        return {
            "title": f"Augmentation: {config.augmentation}",
            "columns": ["article", "as changed in the first epoch"],
            "rows": [list(pair) for pair in zip(shown, changed, strict=True)],
            "note": f"About {config.augmentation_rate:.0%} of the words, others in each epoch; never in validation or "
            "test.",
        }


class Sums:
    """What a process adds up between two records of the log."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.counts = [0.0, 0.0, 0.0]

    def add(self, loss: Tensor, *counts: float) -> None:
        """Add the loss of a pass and its numbers of articles, of tokens, and of tokens with padding."""
        self.loss += loss
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]

    def of_all(self, stop_here: float) -> list[float]:
        """Return the sums over all processes, and of `stop_here`: more than 0 if any is to stop."""
        sums = torch.stack([self.loss.double(), *self.loss.new_tensor([*self.counts, stop_here], dtype=torch.double)])
        dist.all_reduce(sums)
        return sums.tolist()


def article_losses(logits: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """Return the loss of each article, (B,), 0 where the label is IGNORED, from logits (B, K) of any precision."""
    return F.cross_entropy(
        logits.float(), labels, reduction="none", ignore_index=IGNORED, label_smoothing=config.label_smoothing
    )


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of parameters: matrices, which decay, and biases and layer norms, which do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def held_bytes(model: Any, optimizer: Any) -> dict[str, int]:
    """[colossalai] Count the bytes of parameters, gradients and optimizer state that this process holds.

    Call it between the backward pass and the step, when the gradients are there.
    """
    parameters = list(model.parameters())
    own = {id(parameter) for parameter in parameters}
    masters = [p for group in optimizer.optim.param_groups for p in group["params"] if id(p) not in own]
    gradients = [p.grad for p in [*parameters, *masters] if p.grad is not None]
    if hasattr(optimizer, "get_partitioned_gradients_by_param_id"):  # ZeRO keeps this process's part of them
        for group in range(optimizer.num_param_groups):
            for parameter in parameters:
                gradients += optimizer.get_partitioned_gradients_by_param_id(group, id(parameter))
    return {
        "parameters": memory.tensor_bytes(parameters),
        "gradients": memory.tensor_bytes(gradients),
        "optimizer": memory.tensor_bytes([*masters, *memory.optimizer_tensors(optimizer.optim)]),
    }


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the run that is done."""
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """[colossalai] Keep what it prints at its start from mixing with the output of this project."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - no Path for a device
        yield


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Let rank 0 run the block alone, then the others."""
    if dist.get_rank() != 0:
        dist.barrier()
    yield
    if dist.get_rank() == 0:
        dist.barrier()


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    from colossal_bert_agnews import cli

    sys.exit(cli.train())
