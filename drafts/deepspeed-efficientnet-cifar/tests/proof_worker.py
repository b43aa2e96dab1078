"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed_efficientnet_cifar import data, evaluate, model
from deepspeed_efficientnet_cifar.config import TrainConfig
from deepspeed_efficientnet_cifar.train import Run, deepspeed_settings, start
from safetensors.torch import load_file, save_file
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records

CPU = torch.device("cpu")


def plain(config: TrainConfig, run: Run) -> dict:
    """The same training in a plain loop of PyTorch, without DeepSpeed and without processes."""
    torch.manual_seed(config.seed)
    network = model.make(config, 10)
    optimizer = torch.optim.AdamW(model.parameter_groups(network, config.weight_decay), lr=config.learning_rate)
    averages, losses = None, []
    model.set_training(network, config)
    for step, (images, labels) in enumerate(run.batches.epoch(0)):
        from deepspeed_efficientnet_cifar.train import schedule

        for group in optimizer.param_groups:
            used = step * run.order.global_batch_size
            group["lr"] = config.learning_rate * schedule(used / run.total_images, config.warmup_fraction)
        loss = torch.nn.functional.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        # The definition of the moving average, in double precision.
        now = {name: p.detach().double() for name, p in network.named_parameters() if p.requires_grad}
        decay = min(config.ema_decay, (2 + step) / (11 + step))
        if averages is None:
            averages = initial_weights(config)
        averages = {name: decay * averages[name] + (1 - decay) * value for name, value in now.items()}
    return {"losses": dict(enumerate(losses, start=1)), "average": flat(averages), "weights": flat(now)}


def note_gradient_norms(run: Run) -> list:
    """Let the engine write down the norm of the gradients, before clipping, of each optimizer step."""
    step, norms = run.engine.step, []

    def noted() -> None:
        before = run.engine.global_steps
        step()
        if run.engine.global_steps > before:
            norms.append(float(run.engine.get_global_grad_norm() or 0.0))

    run.engine.step = noted
    return norms


def start_from(run: Run, seed: int) -> None:
    """Begin with the weights of another seed, so that nothing but the order of the images differs."""
    torch.manual_seed(seed)
    other = model.make(run.config, 10)
    run.engine.load_module_state_dict({"module": other.state_dict()})
    run.engine.optimizer.refresh_fp32_params()


def initial_weights(config: TrainConfig) -> dict:
    torch.manual_seed(config.seed)
    return {name: p.detach().double() for name, p in model.make(config, 10).named_parameters()}


def flat(tensors: dict) -> list:
    return torch.cat([tensors[name].detach().double().flatten() for name in sorted(tensors)]).tolist()


def parameters_of(run: Run, weights: dict) -> dict:
    return {name: weights[name] for name, p in run.whole.named_parameters()}


def main(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)
    start(CPU, 60.0)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / f"{name}-{world_size}"
        run_dir.mkdir(exist_ok=True, parents=True)
        settings = deepspeed_settings(config, world_size, CPU)
        run = Run(Parsed(config, name, (), resume=run_dir), data.load(config), CPU, settings)
        if case.get("fault") == "loss not divided":
            # What `engine.backward` does for accumulation, left out.
            backward = run.engine.backward
            run.engine.backward = lambda loss, backward=backward: backward(loss, scale_wrt_gas=False)
        norms = note_gradient_norms(run)
        if "weights_of_seed" in case:
            start_from(run, case["weights_of_seed"])
        images = torch.from_numpy(run.dataset.train_images[:101])
        run.whole.load_state_dict(run.gather_weights(averaged=False))
        before = evaluate.predict(run.whole, run.preparation, images, 10, config.precision, CPU).logits
        run.train_epoch(console.TrainingProgress(run.total_images, show=False))
        weights, averaged = (run.gather_weights(averaged=choice) for choice in (False, True))
        again = run.gather_weights(averaged=False)
        own_statistics = run.engine.module.bn2.running_mean.clone()
        statistics = [torch.zeros_like(own_statistics) for _ in range(world_size)]
        dist.all_gather(statistics, own_statistics)
        run.whole.load_state_dict(averaged)
        logits = evaluate.predict(run.whole, run.preparation, images, 10, config.precision, CPU).logits
        if rank == 0:
            save_file({key: value.contiguous() for key, value in averaged.items()}, run_dir / "exported.safetensors")
            fresh = model.make(config, 10, read_weights=False)
            fresh.load_state_dict(load_file(run_dir / "exported.safetensors"))
            with torch.no_grad(), evaluate.autocast(config.precision, CPU):
                exported = fresh.eval()(run.preparation(images[::world_size])).float()
            held = (run.held or {}) | (
                {"moving_average": sum(4 * t.numel() for t in run.average.state())} if run.average else {}
            )
            outcome[name] = {
                "losses": {r["step"]: r["loss"] for r in read_records(run_dir) if r["kind"] == "train"},
                "weights": flat(parameters_of(run, weights)),
                "average": flat(parameters_of(run, averaged)),
                "gradient_norms": norms,
                "untouched": flat(again) == flat(weights),
                "statistics": [own.tolist() for own in statistics],
                "gathered_statistics": weights["bn2.running_mean"].tolist(),
                "logits_before": before.tolist(),
                "logits": logits[::world_size].tolist(),
                "exported_logits": exported.tolist(),
                "bytes": held,
                "predicted": run.predicted_bytes,
                "frozen_statistics_moved": bool((weights["bn1.running_mean"] != 0).any()),
            }
        if case.get("plain"):
            outcome["plain"] = plain(config, run)
    if rank == 0:
        (folder / f"outcome-{world_size}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
