"""One process of a group: trains several small configurations in turn and writes down every loss.

    RANK=0 WORLD_SIZE=2 ... python proof_worker.py FOLDER CASES.json

Starting processes costs more than these trainings, so all cases of a group size share one start.
"""

import hashlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torchdist_stocks import data, evaluate
from torchdist_stocks.config import TrainConfig
from torchdist_stocks.model import pinball
from torchdist_stocks.opponents import run_opponents
from torchdist_stocks.train import Run
from trainyard_shared import console, launch
from trainyard_shared.config import Parsed, validate
from trainyard_shared.results import read_records
from trainyard_shared.tensors.quick_start import postpone_dynamo

CPU = torch.device("cpu")


def digest(*tensors: torch.Tensor) -> str:
    """Equal digests mean equal tensors, bit for bit."""
    return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()


def main(folder: Path, cases: dict) -> None:
    postpone_dynamo()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    outcome = {}
    for name, case in cases.items():
        config = validate(TrainConfig, case["config"], source=name)
        run_dir = folder / case["run_dir"]
        run_dir.mkdir(exist_ok=True, parents=True)
        dataset = data.load(config)
        with mock.patch.object(data, "_rows", wraps=data._rows) as rows:
            panel = data.make_panel(dataset.prices, config.window, config.horizon)
        computed = [call.args[0] for call in rows.call_args_list]
        if case.get("alter"):
            # Other prices from the second test day of the first fold on.
            day = pd.Timestamp(data.make_folds(panel, config)[0].test_dates[0])
            for prices in dataset.prices.values():
                later = prices.index > day
                prices.loc[later] *= np.random.default_rng(0).uniform(0.2, 5, (later.sum(), 1))
            panel = data.make_panel(dataset.prices, config.window, config.horizon)
        run = Run(Parsed(config, name, (), resume=run_dir), dataset, panel, CPU)
        progress = console.TrainingProgress(run.total_windows(), show=False)
        while run.fold < len(run.folds):
            run.train_epoch(progress)
            run.validate(progress)
            run.next_epoch()
            if case.get("save"):
                run.save()
        chosen_val = []
        for fold, weights in zip(run.folds, run.chosen, strict=True):
            run.model.load_state_dict(weights)
            said = evaluate.predict(run.model, panel, fold.val, CPU)
            chosen_val.append(pinball(said.scaled, said.scale(panel.future(fold.val)), run.model.quantiles).item())
        # 101 divides by neither 2 nor 3.
        forecasts = evaluate.predict(run.model, panel, run.folds[-1].test[:101], CPU).log_price
        baselines = run_opponents(panel, run.folds, config)
        outcome[name] = {
            "losses": {r["step"]: r["loss"] for r in read_records(run_dir) if r["kind"] == "train"},
            "val": [(r["fold"], r["step"], r["loss"]) for r in read_records(run_dir) if r["kind"] == "val"],
            "forecasts": forecasts[:, :, 1].tolist(),
            "weights": [digest(*weights.values()) for weights in run.chosen],
            "chosen_val": chosen_val,
            "features_computed_here": computed,
            "features": digest(panel.features),
            "baselines": {key: own.test[-1][:101].tolist() for key, own in baselines.items()},
            "bytes": run.measured_bytes(),
            "predicted": run.predicted_bytes(),
            "notes": run.notes,
        }
    if dist.get_rank() == 0:
        (folder / f"outcome-{dist.get_world_size()}.json").write_text(json.dumps(outcome))
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(lambda: main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
