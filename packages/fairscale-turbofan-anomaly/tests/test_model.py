"""Networks and checkpointing: equal gradients, less memory, and no way around the proof."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.utils.checkpoint  # torch loads it late otherwise, within the measured block
from fairscale.nn.checkpoint import checkpoint_wrapper
from fairscale_turbofan_anomaly import checkpointing
from fairscale_turbofan_anomaly.config import TrainConfig
from fairscale_turbofan_anomaly.model import RecurrentSteps, Segment, build_model
from torch import nn

CONFIG = TrainConfig(hidden_size=16, num_heads=2, num_layers=2, dropout=0.0, chunk=7)
NETWORKS = ("lstm", "gru", "transformer")
CASES = [(network, detector) for network in NETWORKS for detector in ("supervised", "autoencoder")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loss(output: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    return (output - 0.3).square().mean()


def build(config: TrainConfig, **changes: object) -> nn.Module:
    config = dataclasses.replace(config, **changes)
    torch.manual_seed(0)
    return checkpointing.apply(build_model(config, 14), config.checkpointing)


def gradients(model: nn.Module, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    loss(model(windows), windows).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("way", ["fairscale", "torch"])
@pytest.mark.parametrize(("network", "detector"), CASES)
def test_gradients_with_checkpointing_equal_those_without(network: str, detector: str, way: str) -> None:
    windows = torch.randn(3, 30, 14)
    plain = gradients(build(CONFIG, model=network, detector=detector, checkpointing="none"), windows)
    checkpointed = gradients(build(CONFIG, model=network, detector=detector, checkpointing=way), windows)
    assert max(gradient.abs().max() for gradient in plain.values()) > 1e-2
    assert largest_difference(plain, checkpointed) < 1e-6


@pytest.mark.parametrize("way", ["fairscale", "torch"])
@pytest.mark.parametrize("network", ["lstm", "gru", "transformer"])
def test_dropout_drops_the_same_units_the_second_time(network: str, way: str) -> None:
    windows = torch.randn(3, 30, 14)
    # The same chunks with and without: only then are the same random numbers drawn.
    chunked = build(CONFIG, model=network, dropout=0.4, checkpointing=way)
    kept = build(CONFIG, model=network, dropout=0.4, checkpointing=way)
    for module in kept.modules():
        if isinstance(module, Segment):
            del module.forward  # the method that checkpointing has put in front
    difference = largest_difference(gradients(kept, windows), gradients(chunked, windows))
    assert difference < 1e-6


def test_state_that_is_handed_on_as_a_tuple_is_cut_off_and_the_proof_sees_it() -> None:
    class Nested(nn.Module):
        def __init__(self, rnn: nn.LSTM) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> tuple:
            return self.rnn(x, state)

    torch.manual_seed(0)
    rnn = nn.LSTM(14, 16, batch_first=True)
    windows = torch.randn(3, 30, 14)
    found = []
    for step in (rnn, checkpoint_wrapper(Nested(rnn))):
        rnn.zero_grad()
        state = (torch.zeros(1, 3, 16), torch.zeros(1, 3, 16))
        for piece in windows.split(7, dim=1):
            _, state = step(piece, state)
        if state[0].requires_grad:
            state[0].square().sum().backward()
        own = {name: parameter.grad for name, parameter in rnn.named_parameters()}
        found.append({name: torch.zeros(()) if grad is None else grad.clone() for name, grad in own.items()})
    assert largest_difference(*found) > 1e-2


@pytest.mark.parametrize("network", ["lstm", "gru"])
def test_a_recurrent_network_equals_pytorchs_own(network: str) -> None:
    model = build(CONFIG, model=network, checkpointing="fairscale").encoder
    windows = torch.randn(3, 30, 14)
    expected = model.rnn(windows)[0]
    torch.testing.assert_close(model(windows, whole=True), expected)
    torch.testing.assert_close(model(windows), expected[:, -1])


def test_checkpointing_changes_no_name_of_a_weight_and_finds_all_segments() -> None:
    for network in ("lstm", "transformer"):
        plain, wrapped = (build(CONFIG, model=network, checkpointing=way) for way in ("none", "fairscale"))
        assert plain.state_dict().keys() == wrapped.state_dict().keys()
        segments = [module for module in wrapped.modules() if isinstance(module, Segment)]
        assert len(segments) == (1 if network == "lstm" else 4)
        assert not any(list(segment.parameters()) for segment in segments), "weights come as arguments"
        assert all("forward" in vars(segment) for segment in segments)


@pytest.mark.parametrize("way", ["fairscale", "torch"])
@pytest.mark.parametrize(("network", "num_layers"), [("lstm", 2), ("gru", 2), ("transformer", 12)])
def test_activations_are_at_most_a_quarter_at_256_cycles(network: str, num_layers: int, way: str) -> None:
    windows = torch.randn(8, 256, 14)
    settings = {"model": network, "num_layers": num_layers, "chunk": 16}
    plain = checkpointing.activation_bytes(build(CONFIG, **settings, checkpointing="none"), windows, loss)
    held = checkpointing.activation_bytes(build(CONFIG, **settings, checkpointing=way), windows, loss)
    assert held <= 0.25 * plain


def test_live_bytes_count_what_lives() -> None:
    kept = torch.ones(1000)
    with checkpointing.LiveBytes() as live:
        a = torch.zeros(256)  # 1 KiB
        b = a + 1
        view = b.view(16, 16)
        b.add_(1)
        del a
        c = kept * 2
        del c
    assert live.now == 1024, "b and its view"
    assert live.peak == 1024 + 4000
    assert view.sum() == 512


def test_the_positions_tell_cycles_apart() -> None:
    model = build(CONFIG, model="transformer", checkpointing="none").eval()
    windows = torch.randn(2, 20, 14)
    assert not torch.allclose(model(windows), model(windows.flip(1)), atol=1e-4)


def test_segments_see_no_grad() -> None:
    steps = build(CONFIG, model="gru", checkpointing="fairscale").encoder.steps
    assert isinstance(steps, RecurrentSteps)
    with torch.inference_mode():
        states, weights = torch.zeros(steps.num_layers, 1, 2), nn.GRU(4, 2, steps.num_layers).parameters()
        assert steps(torch.zeros(1, 3, 4), states, *weights)[0].shape == (1, 3, 2)
