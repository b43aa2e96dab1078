"""Detectors over windows of sensor readings. Plain modules: nothing here knows that activations are checkpointed.

What can be forgotten and computed again is a `Segment`: a function of tensors that owns no weights. A network keeps its
weights and hands them to its segments as arguments, like the data. So a segment can be used for one chunk of time after
another, and a weight gets its gradient once for each backward pass, which is what data parallel wrappers count on.

Shapes: B windows, T cycles, S sensors, H hidden units, D width of a transformer, Z latent units.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairscale_turbofan_anomaly.config import TrainConfig


class Segment(nn.Module):
    """A part of a network whose activations may be forgotten: tensors in, tensors out, no weights of its own."""


class Classifier(nn.Module):
    """The supervised detector: one logit for each window, above 0 if the engine is about to fail.

    Args:
        config: sizes, kind of network.
        num_sensors: S.
    """

    def __init__(self, config: TrainConfig, num_sensors: int) -> None:
        super().__init__()
        self.encoder = build_body(config, num_sensors)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, T, S) -> (B,) logits."""
        return self.head(self.encoder(windows)).squeeze(1)


class Autoencoder(nn.Module):
    """The unsupervised detector: what a window of a healthy engine looks like after a narrow passage.

    Args:
        config: sizes, kind of network.
        num_sensors: S.
    """

    def __init__(self, config: TrainConfig, num_sensors: int) -> None:
        super().__init__()
        self.encoder = build_body(config, num_sensors)
        self.squeeze = nn.Linear(config.hidden_size, config.latent_size)
        self.decoder = build_body(config, config.latent_size)
        self.head = nn.Linear(config.hidden_size, num_sensors)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, T, S) -> (B, T, S): the windows as they would look on a healthy engine."""
        latent = self.squeeze(self.encoder(windows))  # (B, Z)
        hidden = self.decoder(latent.unsqueeze(1).expand(-1, windows.shape[1], -1), whole=True)  # (B, T, H)
        return self.head(hidden)


def build_model(config: TrainConfig, num_sensors: int) -> nn.Module:
    """Return the detector that the config asks for."""
    return (Classifier if config.detector == "supervised" else Autoencoder)(config, num_sensors)


def build_body(config: TrainConfig, num_inputs: int) -> nn.Module:
    """Return a network from (B, T, inputs) to the last (B, H), or with `whole=True` to all (B, T, H)."""
    # Without checkpointing there is nothing to gain from chunks: one call for the whole window is quicker.
    chunk = None if config.checkpointing == "none" else config.chunk
    if config.model == "transformer":
        return Transformer(num_inputs, config.hidden_size, config.num_layers, config.num_heads, config.dropout, chunk)
    return Recurrent(config.model, num_inputs, config.hidden_size, config.num_layers, config.dropout, chunk)


class Recurrent(nn.Module):
    """An LSTM (Hochreiter & Schmidhuber, 1997) or GRU (Cho et al., 2014) that goes through time in chunks.

    Between two chunks only the state is handed on: flat tensors, (layers, B, H) each. (Handed on as the tuple (h, c) of
    nn.LSTM, FairScale's checkpointing would cut it off from the graph, without an error.)

    Args:
        kind: lstm or gru.
        num_inputs: S.
        hidden_size: H.
        num_layers: stacked on each other.
        dropout: between the layers.
        chunk: cycles at a time; None for all.
    """

    def __init__(
        self, kind: str, num_inputs: int, hidden_size: int, num_layers: int, dropout: float, chunk: int | None
    ) -> None:
        super().__init__()
        make = nn.LSTM if kind == "lstm" else nn.GRU
        dropout = dropout if num_layers > 1 else 0.0
        # Only the keeper of the weights: it initialises them, and knows their order.
        self.rnn = make(num_inputs, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.steps = RecurrentSteps(kind, num_layers, dropout)
        self.chunk = chunk

    def forward(self, x: Tensor, whole: bool = False) -> Tensor:
        """(B, T, S) -> (B, H) after the last cycle, or (B, T, H) after every cycle."""
        num_states = 2 if isinstance(self.rnn, nn.LSTM) else 1
        state = [x.new_zeros(self.rnn.num_layers, len(x), self.rnn.hidden_size)] * num_states
        weights = tuple(self.rnn.parameters())
        outputs = []
        for piece in x.split(self.chunk or x.shape[1], dim=1):
            output, *state = self.steps(piece, *state, *weights)
            if whole:
                outputs.append(output)
        return torch.cat(outputs, dim=1) if whole else state[0][-1]


class RecurrentSteps(Segment):
    """Some cycles of a recurrent network."""

    def __init__(self, kind: str, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.kind, self.num_layers, self.dropout = kind, num_layers, dropout

    def forward(self, x: Tensor, *state_and_weights: Tensor) -> tuple[Tensor, ...]:
        """(B, t, S), states (layers, B, H), weights -> (B, t, H), states (layers, B, H)."""
        settings = (True, self.num_layers, self.dropout, self.training, False, True)
        if self.kind == "lstm":
            h, c, *weights = state_and_weights
            return torch.lstm(x, (h, c), weights, *settings)
        h, *weights = state_and_weights
        return torch.gru(x, h, weights, *settings)


class Transformer(nn.Module):
    """A pre-norm transformer encoder (Vaswani et al., 2017; Xiong et al., 2020) over the cycles of a window.

    A layer is two segments: attention over the whole window, and a feed-forward network, which treats each cycle by
    itself and so can go through time in chunks.

    Args:
        num_inputs: S.
        width: D, a multiple of the heads.
        num_layers: of attention and feed-forward each.
        num_heads: of attention.
        dropout: before each sum with the residual, and within the feed-forward network.
        chunk: cycles at a time in the feed-forward network; None for all.
    """

    def __init__(
        self, num_inputs: int, width: int, num_layers: int, num_heads: int, dropout: float, chunk: int | None
    ) -> None:
        super().__init__()
        self.project = nn.Linear(num_inputs, width)
        self.layers = nn.ModuleList(TransformerLayer(width, num_heads, dropout, chunk) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, whole: bool = False) -> Tensor:
        """(B, T, S) -> (B, D) at the last cycle, or (B, T, D)."""
        x = self.project(x)
        x = x + positions(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x if whole else x[:, -1])


class TransformerLayer(nn.Module):
    """The weights of a layer, and the order of its segments; arguments as for `Transformer`."""

    def __init__(self, width: int, num_heads: int, dropout: float, chunk: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.attention, self.feed_forward = Attention(num_heads, dropout), FeedForward(dropout)
        self.chunk = chunk

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.attention(x, *weights_of(self.norm1, self.qkv, self.out))
        weights = weights_of(self.norm2, self.widen, self.narrow)
        if self.chunk is None:
            return self.feed_forward(x, *weights)
        return torch.cat([self.feed_forward(piece, *weights) for piece in x.split(self.chunk, dim=1)], dim=1)


class Attention(Segment):
    """x + attention(norm(x)); PyTorch's fused kernel keeps no T x T matrix."""

    def __init__(self, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        """(B, T, D), weights of norm, qkv and out -> (B, T, D)."""
        norm_w, norm_b, qkv_w, qkv_b, out_w, out_b = weights
        normed = F.layer_norm(x, x.shape[-1:], norm_w, norm_b)
        qkv = F.linear(normed, qkv_w, qkv_b).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, heads, D / heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        return x + F.dropout(F.linear(mixed, out_w, out_b), self.dropout, self.training)


class FeedForward(Segment):
    """x + narrow(gelu(widen(norm(x)))), for each cycle by itself."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        """(B, t, D), weights of norm, widen and narrow -> (B, t, D)."""
        norm_w, norm_b, widen_w, widen_b, narrow_w, narrow_b = weights
        hidden = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], norm_w, norm_b), widen_w, widen_b))  # (B, t, 4 D)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return x + F.dropout(F.linear(hidden, narrow_w, narrow_b), self.dropout, self.training)


def weights_of(*modules: nn.Module) -> tuple[Tensor, ...]:
    """Weight and bias of each module in turn."""
    return tuple(parameter for module in modules for parameter in module.parameters())


def positions(x: Tensor) -> Tensor:
    """Return sines and cosines of the place in the window, (T, D), counted back from the last cycle."""
    length, width = x.shape[1:]
    place = torch.arange(length - 1, -1, -1, device=x.device, dtype=x.dtype)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=x.device, dtype=x.dtype) * (-math.log(10_000.0) / width))
    return torch.cat([torch.sin(place * rates), torch.cos(place * rates)], dim=1)
