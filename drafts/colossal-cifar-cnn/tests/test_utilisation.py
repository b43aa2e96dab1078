"""The share of a step's time in which a collective is under way."""

import socket

import pytest
import torch
import torch.distributed as dist
from colossal_cifar_cnn.utilisation import CommunicationClock, covered, is_collective


def test_time_in_which_something_is_under_way_is_counted_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert is_collective("gloo:all_reduce")
    assert is_collective("ncclDevKernel_AllReduce_Sum_f32_RING_LL")
    assert not is_collective("aten::conv2d")


@pytest.fixture
def group():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def share(clock: CommunicationClock, *, communicate: bool) -> float | None:
    x = torch.ones(500_000)
    for step in range(4):
        clock.tick(step)
        if communicate:
            dist.all_reduce(x)
        else:
            x = x + x.sin()
    clock.stop()
    return clock.share


def test_only_collectives_are_counted(group: None) -> None:
    silent, busy = CommunicationClock(1, 2), CommunicationClock(1, 2)
    assert share(silent, communicate=False) == 0.0
    measured = share(busy, communicate=True)
    assert measured is not None
    assert 0 < measured <= 1
    assert share(busy, communicate=False) == measured, "one epoch is enough"
    assert share(CommunicationClock(1, 0), communicate=True) is None
