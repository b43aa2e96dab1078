"""Every setting of the project, with its unit; presets in `configs/` name only what differs from these defaults."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from trainyard_shared.config import (
    CONFIG,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunConfig,
)

Detector = Literal["supervised", "autoencoder"]
Network = Literal["lstm", "gru", "transformer"]
Checkpointing = Literal["fairscale", "torch", "none"]
Sharding = Literal["oss", "ddp", "zero_redundancy"]
Subset = Literal["FD001", "FD002", "FD003", "FD004"]
Share = Annotated[float, Field(gt=0, lt=0.5)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train a detector of failing turbofan engines with FairScale's checkpointing."""

    subset: Subset = "FD001"
    """FD001: one flight condition, one fault; FD002: six, one; FD003: one, two; FD004: six, two"""
    num_sample_engines: Annotated[int, Field(ge=5)] = 40
    """generated engines that run to failure; half as many stop before (data: sample)"""
    horizon: PositiveInt = 30
    """an engine with at most this many cycles left is about to fail: the positive class"""
    healthy_cycles: PositiveInt = 125
    """a cycle with more than this many left is healthy: the autoencoder and the baselines learn from these"""
    window: PositiveInt = 50
    """cycles in a window; before an engine's first cycle, that one is repeated"""
    val_fraction: Share = 0.2
    """share of the engines that run to failure kept to choose epoch and threshold"""
    test_fraction: Share = 0.2
    """share of the engines that run to failure kept for the test"""

    detector: Detector = "supervised"
    """supervised: learns from failures; autoencoder: learns from healthy cycles only what is normal"""
    model: Network = "gru"
    """network of the detector"""
    hidden_size: Annotated[int, Field(gt=0, multiple_of=2)] = 64
    """units of a layer; even"""
    num_layers: PositiveInt = 2
    """layers on each other"""
    num_heads: PositiveInt = 4
    """heads of a transformer's attention"""
    latent_size: PositiveInt = 6
    """numbers that the autoencoder squeezes a window into"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of units dropped between layers in training"""

    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.5
    """weight of the newest score in the moving average over an engine's past; 1 does not smooth"""

    checkpointing: Checkpointing = "fairscale"
    """fairscale: forget activations and compute them again; torch: the same with PyTorch's successor; none"""
    chunk: PositiveInt = 16
    """cycles that are computed again at a time"""
    sharding: Sharding = "oss"
    """oss: FairScale's OSS optimizer and ShardedDataParallel; without FairScale: ddp (nothing sharded) and
    zero_redundancy (what PyTorch offers in its place today)"""

    epochs: PositiveInt = 15
    """passes over the windows"""
    micro_batch_size: PositiveInt = 64
    """windows per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward and backward passes before each optimizer step"""
    learning_rate: PositiveFloat = 2e-3
    """peak learning rate of AdamW"""
    weight_decay: NonNegativeFloat = 0.01
    """decoupled weight decay of AdamW"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""

    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    collective_timeout_s: PositiveFloat = 600.0
    """seconds a process waits for the others before it gives up"""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.model == "transformer" and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Test the detector of a run on the engines kept for it and write its report again."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class DetectConfig:
    """Score the engines of a file with the detector of a run: one line for each cycle, and when the alarm went off."""

    engines: Path | None = None
    """file in NASA's form (.txt), or the same 26 columns separated by commas (.csv)"""
    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    to: Path | None = None
    """CSV file to write; default: detections/<name of the file>.csv in the run folder"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train with and without checkpointing, in three ways to share out a step, or with three networks."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    what: Literal["checkpointing", "sharding", "model", "detector"] = "checkpointing"
    """checkpointing: none, FairScale's, PyTorch's; sharding: oss, ddp, zero_redundancy; model: lstm, gru, transformer;
    detector: supervised, autoencoder"""
    lengths: tuple[PositiveInt, ...] = (64, 128, 256, 512, 1024)
    """windows, in cycles, over which activations are measured (what: checkpointing)"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine, the same for all variants"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process, the same for all variants"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ...; a seed draws weights and which engines are kept for the test"""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""
