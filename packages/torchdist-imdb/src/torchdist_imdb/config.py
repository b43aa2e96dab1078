"""Every setting of the project, with its unit; presets in `configs/` name only what differs from these defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
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

PositiveFraction = Annotated[float, Field(gt=0, le=1)]
MaxLength = Annotated[int, Field(ge=8)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Fine-tune a transformer on the sentiment of film reviews with torch.distributed."""

    num_sample_reviews: Annotated[int, Field(ge=100)] = 10_000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    num_train: PositiveInt | None = None
    """train on this many reviews only; none: on all that are not held out"""
    num_val: NonNegativeInt = 1000
    """training reviews held out to choose the checkpoint; 0 trains on all and keeps the last weights"""
    num_test: PositiveInt | None = None
    """test on this many reviews only; none: on all"""
    test: bool = True
    """use the test set at the end; a search of hyperparameters must not"""

    model: str = "tiny"
    """name on the Hugging Face Hub, or folder, of a pretrained encoder; tiny: a small ModernBERT from scratch"""
    vocab_size: Annotated[int, Field(ge=200)] = 4000
    """words and letters that `tiny` knows at most: the most frequent ones of the training reviews"""
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)] = 64
    """width of `tiny`, a multiple of 32, which is the width of its attention heads"""
    num_layers: PositiveInt = 2
    """layers of `tiny`"""
    max_length: MaxLength = 256
    """tokens of a review at most, with the two that mark its ends"""
    truncation: Literal["head", "tail", "head_tail"] = "head"
    """what is kept of longer reviews; head_tail: the first quarter of the tokens, and the last ones"""
    dropout: Fraction | None = None
    """probability of dropout everywhere in the model; none: as the model's config has it (tiny: 0.1)"""
    num_frozen_layers: NonNegativeInt = 0
    """lowest layers that are not trained: 1 is the embeddings, 2 also the first layer of the encoder, ..."""

    epochs: PositiveInt = 4
    """passes over the training reviews"""
    global_batch_size: PositiveInt = 32
    """reviews in an optimizer step, of all processes together, however many there are"""
    micro_batch_size: PositiveInt = 32
    """reviews in a forward pass of a process at most; what a step has more is accumulated"""
    max_tokens: PositiveInt | None = None
    """tokens, padding included, in a forward pass of a process at most; a longer review gets one of its own"""
    sort_window: PositiveInt = 50
    """global batches among which reviews are sorted by length; 1 for batches that are not sorted"""
    pad_multiple: PositiveInt = 1
    """pad to a multiple of this; 8 suits the matrix units of GPUs"""
    learning_rate: PositiveFloat = 2e-3
    """peak learning rate of AdamW"""
    layer_decay: PositiveFraction = 1.0
    """learning rate of each layer as a multiple of that of the layer above; below 1, lower layers change less"""
    weight_decay: NonNegativeFloat = 0.01
    """decay of weight matrices, decoupled from the gradient; biases and layer norms do not decay"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    label_smoothing: Fraction = 0.0
    """probability mass spread over both classes in the training loss"""
    max_grad_norm: PositiveFloat | None = 1.0
    """clip the gradient to this L2 norm"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """numbers in the forward pass; parameters stay fp32"""

    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    collective_timeout_s: PositiveFloat = 600.0
    """seconds a process waits for the others before it gives up"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Test the trained model of a run on the whole test set and write its report again."""

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
class PredictConfig:
    """Say of each review whether it is positive or negative, with the trained model of a run."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    text: str | None = None
    """a review"""
    file: Path | None = None
    """file of reviews: .txt with one a line, or .csv with a column `review`"""
    out: Path | None = None
    """CSV file for the predictions on `file`; default: print them"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train several pretrained models, or with 1 process and with N, and compare accuracy and speed."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    models: tuple[str, ...] = ()
    """pretrained models to compare, each as for --model of train; without, numbers of processes are compared"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    nproc: tuple[PositiveInt, ...] = (1, 2)
    """numbers of processes to compare; models are compared with the largest of them"""
    num_threads: PositiveInt = 1
    """CPU threads of each process, the same for all variants, so that only the number of processes differs"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ..."""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SearchConfig:
    """Search learning rate, batch size, dropout and weight decay with Optuna; validation reviews judge."""

    config: str = "sample"
    """preset or YAML file of train that all trials share"""
    model: str | None = None
    """as for train; default: as in the config"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    num_trials: PositiveInt = 12
    """trials in all, with those of the search that is continued"""
    epochs: PositiveInt | None = None
    """epochs of each trial; default: as in the config"""
    learning_rate: tuple[PositiveFloat, PositiveFloat] = (3e-4, 6e-3)
    """lowest and highest learning rate, searched on a logarithmic scale"""
    global_batch_size: tuple[PositiveInt, ...] = (16, 32, 64)
    """global batch sizes to choose from"""
    dropout: tuple[Fraction, Fraction] = (0.0, 0.3)
    """lowest and highest probability of dropout"""
    weight_decay: tuple[PositiveFloat, PositiveFloat] = (1e-3, 1e-1)
    """lowest and highest weight decay, searched on a logarithmic scale"""
    num_unpruned: NonNegativeInt = 4
    """finished trials before the first may be stopped early, because it is worse than their median at its epoch"""
    seed: NonNegativeInt = 0
    """seed of the search; the trials themselves all have the seed of the config"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes of each trial"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    out_dir: Path = Path("results")
    """folder for the search"""
    resume: Path | None = None
    """search folder to continue"""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "dropout", "weight_decay"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"--{name.replace('_', '-')}: {low:g} is more than {high:g}")
