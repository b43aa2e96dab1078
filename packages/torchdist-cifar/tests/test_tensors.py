"""What trainyard_shared.tensors does with torch; its own package has none to test it with."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches
from trainyard_shared.tensors.memory import activation_bytes, optimizer_tensors, peak_memory, tensor_bytes

# -------------------------------------------------------------------------------------------------------------- memory


def test_storages_are_counted_once() -> None:
    whole = torch.zeros(100)
    views = [whole, whole[:10], whole.view(10, 10), whole.detach(), nn.Parameter(whole)]
    assert tensor_bytes(views) == 400
    assert tensor_bytes([whole[:10]]) == 400  # what is kept alive, not what is looked at
    assert tensor_bytes([whole, torch.zeros(100, dtype=torch.int64), None, 3, torch.zeros(0)]) == 1200
    assert tensor_bytes(torch.zeros(10, device="meta") for _ in range(5)) <= 200
    kept = [torch.zeros(10, device="meta") for _ in range(5)]
    assert tensor_bytes(kept) == 200


def test_optimizer_state() -> None:
    layer = nn.Linear(8, 8, bias=False)
    adam = torch.optim.AdamW(layer.parameters())
    assert tensor_bytes(optimizer_tensors(adam)) == 0
    layer(torch.ones(1, 8)).sum().backward()
    adam.step()
    assert tensor_bytes(optimizer_tensors(adam)) == 2 * 8 * 8 * 4 + 4  # two moments and the counter of steps


class Net(nn.Module):
    """Convolution, normalisation, ReLU and pooling, and a linear layer, which keeps a view of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8 * 6 * 6, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).flatten(1))


def measured_bytes(model: nn.Module, images: torch.Tensor, autocast: torch.dtype | None) -> int:
    """Bytes that a real forward pass keeps, by address, without those of the model."""
    addresses: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        addresses[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        outputs = model(images)
    assert outputs.requires_grad
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    return sum(count for address, count in addresses.items() if address not in own)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_predicted_activations_are_those_of_a_real_forward_pass(autocast: torch.dtype | None) -> None:
    model, images = Net(), torch.randn(7, 3, 16, 16)
    for batch_size in (1, 4, 7):
        predicted = activation_bytes(model, images[:3], batch_size=batch_size, autocast=autocast)
        assert predicted == measured_bytes(model, images[:batch_size].clone(), autocast)
    if autocast is None:
        conv1, relu, pool, conv2 = (7 * 8 * side * side * 4 for side in (16, 16, 8, 6))
        inputs, indices, statistics = 7 * 3 * 16 * 16 * 4, 7 * 8 * 8 * 8 * 8, 2 * 8 * 4
        assert predicted == inputs + conv1 + statistics + relu + pool + indices + conv2


def test_prediction_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = nn.Sequential(Net(), nn.Dropout(0.5)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, state = torch.randn(3, 3, 16, 16), torch.get_rng_state()
    activation_bytes(model, images, batch_size=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_peak_memory_of_this_process() -> None:
    before = peak_memory(torch.device("cpu"))["peak_bytes"]
    ballast = torch.ones(before // 4 + 25_000_000)  # 100 MB more than there ever was
    after = peak_memory(torch.device("cpu"))
    assert after["peak_bytes"] >= before + 90_000_000
    assert after["peak_of"] == "whole process, libraries included"
    del ballast


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(101, 8), (101, 1000), (1, 4)])
def test_every_sample_is_evaluated_once(num_samples: int, batch_size: int, world_size: int) -> None:
    shares = [list(shard_batches(num_samples, batch_size, rank, world_size)) for rank in range(world_size)]
    indices = [index for share in shares for batch in share for index in batch.tolist()]
    assert sorted(indices) == list(range(num_samples))
    assert all(0 < len(batch) <= batch_size for share in shares for batch in share)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_gathering_on_one_process_changes_nothing() -> None:
    values = torch.randn(5, 2)
    assert gather_in_order(values, 5) is values


GATHER = """
import datetime, os, sys
import torch, torch.distributed as dist
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches

rank, timeout = int(sys.argv[1]), datetime.timedelta(seconds=60)
for world_size in (3, 2):
    if rank < world_size:
        store = f"file://{os.getcwd()}/store-{world_size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout)
        for num_samples in (101, 2):
            mine = torch.cat([torch.zeros(0, dtype=torch.int64), *shard_batches(num_samples, 8, rank, world_size)])
            whole = gather_in_order(torch.stack([mine, mine * mine], dim=1), num_samples)
            index = torch.arange(num_samples)
            assert torch.equal(whole, torch.stack([index, index * index], dim=1)), whole
            assert whole.dtype == torch.int64
        dist.barrier()
        dist.destroy_process_group()
        print(world_size)
"""


def test_results_of_two_and_three_processes_are_put_together_in_order(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", GATHER, str(rank)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank, worker in enumerate(workers):
            out, err = worker.communicate(timeout=120)
            assert (worker.returncode, out.split()) == (0, ["3"] if rank == 2 else ["3", "2"]), err
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


# --------------------------------------------------------------------------------------------------------- quick start

TRAIN = """
import datetime, os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared.tensors.quick_start import postpone_dynamo

if {postponed}:
    postpone_dynamo()
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
scaler = torch.amp.GradScaler("cpu", enabled=False)
for _ in range(2):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(parallel(torch.ones(2, 3, 8, 8)), torch.tensor([0, 1]))
    scaler.scale(loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
optimizer.load_state_dict(optimizer.state_dict())
print("sympy" in sys.modules, flush=True)
{after}
os._exit(0)
"""
COMPILE = """
double = torch.compile(lambda x: torch.sin(x) * 2)
x = torch.arange(8.0)
assert torch.allclose(double(x), torch.sin(x) * 2)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
print("compiled", "sympy" in sys.modules, flush=True)
"""


def train(postponed: bool, after: str = "") -> list[str]:
    code = TRAIN.format(postponed=postponed, after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_eager_training_does_without_the_compiler() -> None:
    assert train(postponed=True) == ["False"]


def test_without_postponing_the_compiler_is_imported() -> None:
    """If torch no longer does so, quick_start.py can go."""
    assert train(postponed=False) == ["True"]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiling_afterwards_works() -> None:
    assert train(postponed=True, after=COMPILE) == ["False", "compiled", "True"]
