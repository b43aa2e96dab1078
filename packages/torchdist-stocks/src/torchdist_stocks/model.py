"""A recurrent network that forecasts several days at once. A plain module: nothing here knows of distribution.

Shapes: N samples, W days of a window, F features, H days ahead, K stocks.
"""

import math
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchdist_stocks.config import TrainConfig
from torchdist_stocks.features import FEATURES, MIN_VOLATILITY

# Scaled features beyond this many standard deviations are cut off: a crash must not throw the network off course.
MAX_SCALED = 5.0


def build_model(config: TrainConfig, num_tickers: int) -> "Forecaster":
    """Return the untrained network that `config` describes, its weights drawn from torch's global generator."""
    return Forecaster(config, len(FEATURES), num_tickers)


class Forecaster(nn.Module):
    """LSTM or GRU over a window, and one linear layer that gives all days ahead: low, middle and high of each.

    The outputs are in units of a frame (see `frame`). With the target `return` they are what is added to the last known
    price, and the untrained network says "tomorrow = today", with the interval of a random walk: the last layer starts
    at zero, its biases at the quantiles of the normal distribution.

    Args:
        config: layers, sizes, target, interval, horizon.
        num_features: F.
        num_tickers: K.
    """

    feature_mean: Tensor
    feature_std: Tensor
    level_mean: Tensor
    level_std: Tensor

    def __init__(self, config: TrainConfig, num_features: int, num_tickers: int) -> None:
        super().__init__()
        self.horizon, self.target = config.horizon, config.target
        self.quantiles = ((1 - config.interval) / 2, 0.5, (1 + config.interval) / 2)
        # What `fit_scaling` finds in the training days is part of the model, and goes where the weights go.
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))
        self.register_buffer("level_mean", torch.zeros(num_tickers, dtype=torch.float64))
        self.register_buffer("level_std", torch.ones(num_tickers, dtype=torch.float64))
        embedding = config.ticker_embedding_size
        self.embedding = nn.Embedding(num_tickers, embedding) if embedding else None
        layers = nn.LSTM if config.model == "lstm" else nn.GRU
        # The level of the price is one more input where it is what is to be forecast.
        num_inputs = num_features + (config.target == "log_price")
        self.recurrent = layers(num_inputs, config.hidden_size, config.num_layers, batch_first=True)
        self.head = nn.Linear(config.hidden_size + embedding, 3 * self.horizon)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            softplus_inverse = math.log(math.expm1(normal_bound(config.interval)))
            self.head.bias.copy_(torch.tensor([softplus_inverse, 0.0, softplus_inverse] * self.horizon))

    def forward(self, windows: Tensor, levels: Tensor, tickers: Tensor) -> Tensor:
        """Forecast low, middle and high of each day ahead, in units of the frame; they never cross.

        Args:
            windows: (N, W, F) features as they are; scaled here.
            levels: (N, W) log prices of the same days; only looked at with the target `log_price`.
            tickers: (N,) numbers of the stocks.

        Returns:
            (N, H, 3)
        """
        inputs = ((windows - self.feature_mean) / self.feature_std).clamp(-MAX_SCALED, MAX_SCALED)
        if self.target == "log_price":
            level = (levels - self.level_mean[tickers, None]) / self.level_std[tickers, None]
            inputs = torch.cat([inputs, level[:, :, None].to(inputs.dtype)], dim=2)
        outputs, _ = self.recurrent(inputs)
        summary = outputs[:, -1]  # (N, hidden)
        if self.embedding is not None:
            summary = torch.cat([summary, self.embedding(tickers)], dim=1)
        below, middle, above = self.head(summary).view(-1, self.horizon, 3).unbind(2)
        return torch.stack([middle - F.softplus(below), middle, middle + F.softplus(above)], dim=2)

    def frame(self, log_price: Tensor, moves: Tensor, tickers: Tensor) -> tuple[Tensor, Tensor]:
        """Return start (N, 1) and unit (N, H) of the outputs: log price = start + unit * output.

        With the target `return`, the last known log price (N,) and the usual size of the moves (N, H) of a random walk.
        With `log_price`, mean and deviation of the stock's (N,) log prices in the training days.
        """
        if self.target == "log_price":
            return self.level_mean[tickers, None], self.level_std[tickers, None].expand(-1, self.horizon)
        return log_price[:, None], moves

    @torch.no_grad()
    def fit_scaling(self, features: Tensor, log_price: Tensor, tickers: Tensor) -> None:
        """Take means and deviations from the rows of the training days, and from no others.

        A stock without a training day gets the level of all others together.

        Args:
            features: (R, F)
            log_price: (R,)
            tickers: (R,)
        """
        self.feature_mean.copy_(features.double().mean(dim=0))
        self.feature_std.copy_(features.double().std(dim=0).clamp(min=1e-6))
        self.level_mean.fill_(log_price.mean())
        self.level_std.fill_(log_price.std().clamp(min=1e-6))
        for ticker in tickers.unique().tolist():
            own = log_price[tickers == ticker]
            if len(own) > 1:
                self.level_mean[ticker], self.level_std[ticker] = own.mean(), own.std().clamp(min=MIN_VOLATILITY)


def normal_bound(interval: float) -> float:
    """Return how many standard deviations from its mean the central interval of a normal distribution reaches."""
    return NormalDist().inv_cdf((1 + interval) / 2)


def pinball(forecast: Tensor, actual: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """Return the mean pinball loss, which is smallest where the forecasts are the quantiles of what happens.

    Half of the absolute error for the median (Koenker and Bassett, "Regression Quantiles", 1978).

    Args:
        forecast: (N, H, Q)
        actual: (N, H)
        quantiles: Q numbers between 0 and 1.
    """
    error = actual[:, :, None] - forecast
    levels = error.new_tensor(quantiles)
    return torch.maximum(levels * error, (levels - 1) * error).mean()
