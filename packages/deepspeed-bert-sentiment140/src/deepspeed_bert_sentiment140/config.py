"""Every setting of the project, with its unit; presets in `configs/` name only what differs from these defaults.

What DeepSpeed does (stage of ZeRO, buckets, offload, optimizer) is in its own JSON files in `deepspeed/`, which
`--deepspeed` chooses; where they say "auto", the fields here decide.
"""

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
Share = Annotated[float, Field(ge=0, le=0.5)]
Rule = Literal["entities", "links", "users", "repeats"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Fine-tune BERT on the sentiment of tweets with DeepSpeed."""

    num_sample_tweets: Annotated[int, Field(ge=200)] = 12_000
    """size of the generated training file (data: sample)"""
    sample_negative: PositiveFraction = 0.5
    """share of negative tweets among the generated ones that are not neutral, to try classes of different sizes"""
    num_classes: Literal[2, 3] = 2
    """2: negative and positive, neutral tweets are left out; 3: neutral as well, which must be in the training file"""
    test_set: Literal["held_out", "official"] = "held_out"
    """held_out: tweets of users held out of the training file; official: the data set's own, labelled by hand"""
    test_share: Share = 0.1
    """share of the users whose tweets are held out to test (test_set: held_out)"""
    val_share: Share = 0.05
    """share of the users whose tweets are held out to choose the checkpoint; 0 keeps the last weights"""
    num_train: PositiveInt | None = None
    """train on this many tweets only; none: on all"""
    num_test: PositiveInt | None = None
    """test on this many tweets only; none: on all"""
    test: bool = True
    """use the test set at the end"""
    cleaning: tuple[Rule, ...] = ("entities", "links", "users", "repeats")
    """rules of cleaning; what each changed is in the report"""
    chunk_rows: PositiveInt = 50_000
    """rows of the file that are read, cleaned and tokenised at once"""

    model: str = "tiny"
    """name on the Hugging Face Hub, or folder, of BERT, DistilBERT or RoBERTa; tiny: a small BERT from scratch"""
    vocab_size: Annotated[int, Field(ge=200)] = 2000
    """words and letters that `tiny` knows at most: the most frequent ones of the training tweets"""
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)] = 64
    """width of `tiny`; its two attention heads share it"""
    num_layers: PositiveInt = 2
    """layers of `tiny`"""
    max_length: Annotated[int, Field(ge=8)] = 64
    """tokens of a tweet at most, with the two that mark its ends; the rest is cut off"""
    dropout: Fraction | None = None
    """probability of dropout everywhere in the model; none: as the model's config has it (tiny: 0.1)"""
    num_frozen_layers: NonNegativeInt = 0
    """lowest layers that are not trained: 1 is the embeddings, 2 also the first layer of the encoder, ..."""

    deepspeed: str = "zero1"
    """DeepSpeed's own config: a file in `deepspeed/` without .json (zero0, zero1, ...), or a JSON file of yours"""
    parallel: Literal["data", "tensor", "pipeline"] = "data"
    """data: each process has other tweets; tensor: all share each layer (AutoTP); pipeline: each has some layers"""
    activation_checkpointing: bool = False
    """compute activations again in the backward pass instead of keeping them"""

    epochs: PositiveInt = 2
    """passes over the training tweets"""
    micro_batch_size: PositiveInt = 32
    """tweets in a forward pass of a process"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward passes of a process before an optimizer step"""
    sort_window: PositiveInt = 50
    """global batches among which tweets are sorted by length; 1 for batches that are not sorted"""
    pad_multiple: PositiveInt = 1
    """pad to a multiple of this; 8 suits the matrix units of GPUs"""
    imbalance: Literal["none", "weights", "oversampling", "focal"] = "none"
    """classes of different sizes: weigh the loss, repeat tweets of small classes, or focal loss (arXiv 1708.02002)"""
    focal_gamma: NonNegativeFloat = 2.0
    """how much focal loss neglects tweets that are easy"""
    learning_rate: PositiveFloat = 2e-3
    """peak learning rate of AdamW"""
    layer_decay: PositiveFraction = 1.0
    """learning rate of each layer as a multiple of that of the layer above; below 1, lower layers change less"""
    weight_decay: NonNegativeFloat = 0.01
    """decay of weight matrices, decoupled from the gradient; biases and layer norms do not decay"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    label_smoothing: Fraction = 0.0
    """probability mass spread over all classes in the training loss"""
    max_grad_norm: PositiveFloat | None = 1.0
    """clip the gradient to this L2 norm"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """numbers of parameters, activations and gradients; fp16 on GPUs only"""

    baseline: bool = True
    """also fit TF-IDF and logistic regression on the same tweets, to compare with"""
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
    """Say of each tweet whether it is positive or negative, with the trained model of a run."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    text: str | None = None
    """a tweet"""
    file: Path | None = None
    """file of tweets: .txt with one a line in UTF-8, or .csv in the form of the data set"""
    out: Path | None = None
    """CSV file for the predictions on `file`; default: print them"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train with each stage of ZeRO, or with each kind of parallelism, or several models, and compare."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    what: Literal["zero", "parallel", "imbalance"] = "zero"
    """zero: stages 0 to 3 and offload; parallel: data, tensor, pipeline; imbalance: the ways with unequal classes"""
    models: tuple[str, ...] = ()
    """pretrained models to compare instead, each as for --model of train"""
    model: str | None = None
    """as for train; default: as in the config"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    nproc: PositiveInt = 2
    """processes of each run"""
    num_threads: PositiveInt = 1
    """CPU threads of each process"""
    seeds: PositiveInt = 1
    """runs of each variant, with seeds 0, 1, ..."""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""
