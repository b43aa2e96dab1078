"""Trains several small configurations in groups of processes and writes down every loss.

    python proof_worker.py GROUPS.json

Importing Colossal-AI and transformers costs more than all these trainings together: this process does it once, and
every process of every group is a fork of it. GROUPS.json is a list of {"folder", "world_size", "without", "cases"}; see
test_proofs.py.
"""

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossal_bert_agnews import colossal_on_cpu, data, evaluate, policies, train
from colossal_bert_agnews.config import TrainConfig
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records

CPU = torch.device("cpu")


def make_run(name: str, config: dict, run_dir: Path) -> train.Run:
    """A run that begins, or goes on, in a folder."""
    checked = validate(TrainConfig, config, source=name)
    run_dir.mkdir(exist_ok=True, parents=True)
    return train.Run(Parsed(checked, name, (), resume=run_dir), data.load(checked), CPU)


def finish_training(run: train.Run) -> None:
    """Train as `train` does, without validation and test."""
    progress = console.TrainingProgress(run.total, show=False)
    while run.epoch < run.config.epochs:
        run.train_epoch(progress)
        run.epoch, run.used = run.epoch + 1, 0


def plain_training(run: train.Run) -> dict[str, Any]:
    """The same steps with nothing but PyTorch, on the model as transformers made it."""
    model, config = run.whole.train(), run.config
    optimizer = torch.optim.AdamW(train.optimizer_groups(model, config.weight_decay))
    losses, used = {}, 0
    for epoch in range(config.epochs):
        run.encode_epoch(epoch)
        for step, (num_articles, micro_batches) in enumerate(run.batches.epoch(epoch), start=len(losses) + 1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * train.schedule(used / run.total, config.warmup_fraction)
            total = 0.0
            for micro_batch in micro_batches:
                ids, mask, labels = run.batch(micro_batch)
                logits = model(input_ids=ids, attention_mask=mask).logits
                loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / num_articles
                loss.backward()
                total += loss.item()
            if config.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses[step] = total
            used += num_articles
    return {"losses": losses, **numbers(run, {name: p.detach() for name, p in model.named_parameters()})}


def numbers(run: train.Run, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Weights and what they say of a few test articles."""
    run.whole.load_state_dict(weights)
    articles = data.encode(run.dataset.test_texts[:19], run.tokenizer, run.config)
    logits = evaluate.predict(run.whole, articles, run.tokenizer.pad_token_id, run.config, CPU).logits
    return {"logits": logits.tolist(), "weights": {name: tensor.tolist() for name, tensor in weights.items()}}


def drift(run: train.Run) -> float:
    """How far apart the weights are that processes of a stage should hold alike."""
    shared = {name for name, shape in run.shapes.items() if len(shape) == 1 and ".dense.bias" not in name}
    mine = {
        name: p.detach().clone() for name, p in run.model.unwrap().named_parameters() if p.shape == run.shapes[name]
    }
    everybody: list[Any] = [None] * run.world_size
    dist.all_gather_object(everybody, (run.place.pp, mine))
    furthest = 0.0
    for stage, theirs in everybody:
        if stage == run.place.pp:
            both = mine.keys() & theirs.keys()
            assert both or not shared
            furthest = max([furthest, *((mine[name] - theirs[name]).abs().max().item() for name in both)])
    return furthest


def resumed(run: train.Run, name: str, case: dict, run_dir: Path) -> dict[str, Any]:
    """Lose the newest checkpoint of a finished run and go on from the one before, in the same layout or another."""
    if run.rank == 0:
        *_, newest = sorted((run_dir / "checkpoints").iterdir())
        shutil.rmtree(newest)
    dist.barrier()
    again = make_run(name, case["config"] | case["resume"], run_dir)
    first = again.step
    finish_training(again)
    return {"resumed_at": first, "resumed": numbers(again, again.whole_weights())}


def train_cases(folder: Path, cases: dict, without: str | None) -> None:
    """Run the cases of a group in one of its processes."""
    torch.set_num_threads(1)
    install = colossal_on_cpu.install
    colossal_on_cpu.install = lambda: install(without=without)  # type: ignore[assignment]
    train.start_colossalai(CPU, 0)
    outcome: dict[str, Any] = {}
    runs = []  # kept: a plugin that goes takes its groups of processes with it
    for name, case in cases.items():
        run_dir = folder / name.replace(" ", "-")
        try:
            if case.get("fault") == "upstream's dropout":
                policies.Bert.module_policy = policies.BertForSequenceClassificationPolicy.module_policy
            run = make_run(name, case["config"], run_dir)
            runs.append(run)
            if case.get("plain"):
                outcome[name] = plain_training(run)
                continue
            num_passes = [len(micro_batches) for _, micro_batches in run.batches.epoch(0)]
            finish_training(run)
            apart: list[Any] = [None] * run.world_size
            dist.all_gather_object(apart, drift(run))
            held: list[Any] = [None] * run.world_size
            dist.all_gather_object(held, (run.held, run.predicted_bytes()))
            outcome[name] = {
                "losses": {r["step"]: r["loss"] for r in read_records(run_dir) if r["kind"] == "train"},
                **numbers(run, run.whole_weights()),
                "num_passes": num_passes,
                "trained_articles": run.trained_articles,
                "trained_tokens": run.trained_tokens,
                "tokens": int(run.batches.lengths.sum()) * run.config.epochs,
                "bytes": held,
                "drift": max(apart),
            }
            if "resume" in case:
                outcome[name] |= resumed(run, name, case, run_dir)
        except Exception as error:
            if without is None:
                raise
            outcome[name] = {"error": f"{type(error).__name__}: {error}"}
    if dist.get_rank() == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))
    if without is None:
        launch.leave_together()


def main(groups: list[dict]) -> None:
    """Run one group after the other; end with the worst status of any process."""
    with train.quiet_stdout():
        import colossalai.booster  # noqa: F401
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
                launch.run_worker(
                    lambda group=group: train_cases(Path(group["folder"]), group["cases"], group["without"])
                )
            children.append(child)
        status = max([status, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)], key=abs)
    sys.exit(abs(status))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
