"""Every setting of the project, with its unit; presets in `configs/` name only what differs from these defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from trainyard_shared.config import (
    CONFIG,
    Day,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunConfig,
)

Model = Literal["lstm", "gru"]
Target = Literal["return", "log_price"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Forecast stock prices with a recurrent network and torch.distributed."""

    tickers: tuple[str, ...] = ()
    """stocks to use; default: all that --data-dir holds (data: real)"""
    start: Day | None = None
    """first day to use; default: as early as there are prices (data: real)"""
    end: Day | None = None
    """last day to use; default: the newest (data: real)"""
    num_sample_tickers: PositiveInt = 8
    """stocks in the generated prices (data: sample)"""
    num_sample_days: PositiveInt = 900
    """trading days of the generated prices (data: sample)"""

    window: Annotated[int, Field(ge=2)] = 30
    """days that the network looks back on"""
    horizon: PositiveInt = 5
    """days ahead to forecast: 1, 2, ... horizon"""
    num_folds: PositiveInt = 2
    """walk-forward folds: train on the past, choose on the days after it, test on the days after those"""
    test_days: PositiveInt = 100
    """days of each fold from which test forecasts are made; those of successive folds follow each other"""
    val_days: PositiveInt = 60
    """days of each fold from which validation forecasts are made"""
    train_days: PositiveInt | None = None
    """days in the training part of each fold, which then slides; default: all before, a part that grows"""
    warm_start: bool = False
    """begin each fold with the weights of the one before, not with fresh ones"""

    model: Model = "lstm"
    """recurrent layers"""
    hidden_size: PositiveInt = 32
    """units of each recurrent layer"""
    num_layers: PositiveInt = 1
    """recurrent layers on top of each other"""
    ticker_embedding_size: NonNegativeInt = 0
    """numbers learned for each stock; 0: the network does not know which stock it sees"""
    target: Target = "return"
    """return: what changes from the last known price, in units of the recent volatility; log_price: the level itself"""
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """share of the outcomes that the forecast interval is trained to hold"""

    epochs: PositiveInt = 6
    """passes over the training windows of each fold, at most"""
    patience: PositiveInt = 2
    """epochs without a better validation loss after which a fold ends"""
    micro_batch_size: PositiveInt = 128
    """windows per process and forward pass"""
    learning_rate: PositiveFloat = 2e-3
    """peak learning rate of AdamW"""
    weight_decay: NonNegativeFloat = 0.01
    """decoupled weight decay of AdamW"""
    warmup_fraction: Fraction = 0.1
    """share of a fold's epochs in which the learning rate rises linearly; then it falls linearly to 0"""
    max_grad_norm: PositiveFloat | None = 1.0
    """clip the gradient to this L2 norm"""

    baselines: Literal["simple", "all"] = "all"
    """what the network is measured against; simple: last value, drift, moving average; all: ARIMA and XGBoost too"""
    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    collective_timeout_s: PositiveFloat = 1800.0
    """seconds a process waits for the others before it gives up; the baselines take minutes, some longer than others"""

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"error: start {self.start} is not before end {self.end}")
        if self.train_days is not None and self.train_days < self.window + self.horizon:
            raise ValueError(
                f"error: train_days: {self.train_days} is not allowed: must be at least window + horizon = "
                f"{self.window + self.horizon}"
            )


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Test the networks of a run on all test days again, beside the baselines, and write its report again."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    baselines: Literal["simple", "all"] | None = None
    """what the network is measured against; default: as in the run"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ForecastConfig:
    """Forecast the days after the last known ones with the network of a run's last fold."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    tickers: tuple[str, ...] = ()
    """stocks to forecast; default: all of the run"""
    end: Day | None = None
    """last day that may be known; default: the newest there is, whatever the run's own end was"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Compare LSTM with GRU, returns with log-prices as the target, and 1 process with N, one change at a time."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    models: tuple[Model, ...] = ("lstm", "gru")
    """recurrent layers to compare; all other variants use the first"""
    targets: tuple[Target, ...] = ("return", "log_price")
    """targets to compare; all other variants use the first"""
    nproc: tuple[PositiveInt, ...] = (2, 1)
    """numbers of processes to compare; all other variants use the first"""
    num_threads: PositiveInt = 1
    """CPU threads of each process, the same for all variants"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ..."""
    epochs: PositiveInt | None = None
    """epochs of each fold at most; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""
