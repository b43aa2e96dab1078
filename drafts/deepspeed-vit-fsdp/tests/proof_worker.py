"""Trains several small configurations in groups of processes and writes down every loss.

    python proof_worker.py GROUPS.json

Importing DeepSpeed and transformers costs more than all these trainings together: this process does it once, and every
process of every group is a fork of it. GROUPS.json is a list of {"folder", "world_size", "cases"}.
"""

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from deepspeed_vit_fsdp import data, evaluate, train
from deepspeed_vit_fsdp.config import TrainConfig
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.errors import TrainyardError
from trainyard_shared.results import read_records

CPU = torch.device("cpu")


def make_fault(fault: str | None, run: train.Run) -> None:
    """What would be wrong, to see that the proofs would notice it."""
    if fault == "not divided by the accumulation":
        backward = run.engine.backward
        run.engine.backward = lambda loss: backward(loss, scale_wrt_gas=False)
    elif fault == "weights of the library under zero.Init":
        import deepspeed
        from deepspeed_vit_fsdp import model

        settings = run.settings_for(run.whole)
        torch.manual_seed(run.config.seed)
        with deepspeed.zero.Init(config_dict_or_path=settings):
            run.model = model.make_tiny(run.module_config, "standard")
        run.make_engine(None)
    else:
        assert fault is None


def killed_after(step: int, run_dir: Path, to: Path) -> None:
    """Make a copy of a run's folder as it would be, had the run been killed after its checkpoint of this step."""
    shutil.copytree(run_dir, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def train_case(name: str, case: dict[str, Any], folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Train one case; return what came of it, and the weights it ended with, in one row."""
    config = validate(TrainConfig, case["config"], source=name)
    run_dir = folder / f"{name}-{dist.get_world_size()}"
    if dist.get_rank() == 0:
        if case["continues"]:
            killed_after(3, folder / case["continues"], run_dir)
        run_dir.mkdir(exist_ok=True, parents=True)
    dist.barrier()
    os.environ["TRAINYARD_RUN_DIR"] = str(run_dir)
    settings = train.deepspeed_settings(config, dist.get_world_size(), CPU)
    run = train.Run(Parsed(config, name, (), resume=run_dir), data.load(config), CPU, settings)
    make_fault(case["fault"], run)
    images = torch.from_numpy(run.dataset.train_images[:101])
    initial = run.gather_weights()
    run.whole.load_state_dict(initial)
    before = evaluate.predict(run.whole, run.preparation, images, config.precision, CPU).logits
    progress = console.TrainingProgress(run.total_images, show=False)
    while run.epoch < config.epochs:
        run.train_epoch(progress)
        run.epoch, run.used = run.epoch + 1, 0
    outcome = {
        "initial": {name: float(tensor.double().sum()) for name, tensor in initial.items()},
        "spread": {name: float(tensor.std()) for name, tensor in initial.items() if tensor.numel() > 1},
        "losses": {r["step"]: r["loss"] for r in read_records(run_dir)},
        "logits_before": before.tolist(),
        # Stage 0 does not keep it.
        "grad_norm": None if config.engine != "deepspeed" else run.engine.get_global_grad_norm(),
        "bytes": {**(run.held or {}), "activations": run.measured_activations()},
        "predicted": run.predicted_bytes,
        "num_parameters": run.num_parameters,
        "sent": run.communication,
        "notes": run.notes,
    }
    if outcome["grad_norm"] is not None:
        outcome["grad_norm"] = float(outcome["grad_norm"])
    weights = np.concatenate([tensor.flatten().numpy() for _, tensor in sorted(run.gather_weights().items())])
    if config.engine == "deepspeed":
        run.engine.destroy()
    return outcome, weights


def outcome_of(name: str, case: dict[str, Any], folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Train one case; of one that is refused or stopped, return what is said."""
    try:
        return train_case(name, case, folder)
    except TrainyardError as error:
        return {"error": str(error), "exit_status": error.exit_status}, np.zeros(0)


def train_group(folder: Path, cases: dict[str, Any]) -> None:
    """Run the cases of a group in one of its processes."""
    torch.set_num_threads(1)
    train.start(CPU, 100.0)
    found = {name: outcome_of(name, case, folder) for name, case in cases.items()}
    if dist.get_rank() == 0:
        size = dist.get_world_size()
        np.savez(folder / f"weights-{size}.npz", **{name: weights for name, (_, weights) in found.items()})
        text = json.dumps({name: outcome for name, (outcome, _) in found.items()})
        (folder / f"outcome-{size}.json").write_text(text)
    launch.leave_together()


def main(groups: list[dict[str, Any]]) -> None:
    """Run one group after the other; end with the worst status of any process."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    with train.quiet_stdout():
        import deepspeed  # noqa: F401
    transformers.ViTForImageClassification  # noqa: B018 - is imported when it is asked for
    assert "torch._inductor" not in sys.modules, "a start imports the compiler, which takes seconds and is not used"
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
                launch.run_worker(lambda group=group: train_group(Path(group["folder"]), group["cases"]))
            children.append(child)
        status = max([status, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)], key=abs)
    sys.exit(abs(status))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
