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
Augmentation = Literal["none", "deletion", "swap", "synonyms", "eda"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Fine-tune BERT on the topics of news with Colossal-AI."""

    num_sample_articles: Annotated[int, Field(ge=100)] = 8_000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    num_train: PositiveInt | None = None
    """train on this many articles only; none: on all that are not held out"""
    num_val: NonNegativeInt = 400
    """training articles held out to choose the checkpoint; 0 trains on all and keeps the last weights"""
    num_test: PositiveInt | None = None
    """test on this many articles only; none: on all"""
    test: bool = True
    """use the test set at the end"""
    clean: bool = False
    """write backslashes, tags and HTML entities as plain text"""
    remove_stop_words: bool = False
    """leave out frequent words such as "the" and "of" (scikit-learn's list)"""
    augmentation: Augmentation = "none"
    """change training articles anew in each epoch: delete or swap words, replace them by synonyms, or one of these and
    insertion in turn (eda: Wei and Zou 2019, arXiv 1901.11196)"""
    augmentation_rate: PositiveFraction = 0.1
    """share of the words of an article that are changed"""
    thesaurus: Path | None = None
    """file with synonyms, one group a line, commas between; default: a few groups of words from news"""

    model: str = "tiny"
    """name on the Hugging Face Hub, or folder, of BERT, RoBERTa or DistilBERT; tiny: a small BERT from scratch"""
    vocab_size: Annotated[int, Field(ge=200)] = 2000
    """words and letters that `tiny` knows at most: the most frequent ones of the training articles"""
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)] = 64
    """width of `tiny`"""
    num_layers: PositiveInt = 2
    """layers of `tiny`"""
    num_heads: PositiveInt = 4
    """attention heads of `tiny`, which share its width in equal parts"""
    max_length: Annotated[int, Field(ge=8)] = 128
    """tokens of an article at most, with the two that mark its ends; the rest is cut off"""
    dropout: Fraction | None = None
    """probability of dropout everywhere in the model; none: as the model's config has it (tiny: 0.1)"""

    tp_size: PositiveInt = 1
    """tensor parallel: so many processes share each layer, on the same articles (BERT only)"""
    pp_size: PositiveInt = 1
    """pipeline parallel: so many stages share the layers, on the same articles (BERT only)"""
    dp_size: Literal["auto"] | PositiveInt = "auto"
    """data parallel: so many copies of all that, on other articles each; auto: what the processes allow"""
    zero_stage: Annotated[int, Field(ge=0, le=2)] = 0
    """ZeRO among the copies: 1 shares out the optimizer state, 2 the gradients as well; with bf16 or fp16"""

    epochs: PositiveInt = 3
    """passes over the training articles"""
    micro_batch_size: PositiveInt = 32
    """articles in a forward pass of a copy"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward passes of a copy before an optimizer step; in a pipeline they follow each other through the stages"""
    sort_window: PositiveInt = 50
    """global batches among which articles are sorted by length; 1 for batches that are not sorted"""
    pad_multiple: PositiveInt = 1
    """pad to a multiple of this; 8 suits the matrix units of GPUs"""
    learning_rate: PositiveFloat = 2e-3
    """peak learning rate of AdamW"""
    weight_decay: NonNegativeFloat = 0.01
    """decay of weight matrices, decoupled from the gradient; biases and layer norms do not decay"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    label_smoothing: Fraction = 0.0
    """probability mass spread over all classes in the training loss"""
    max_grad_norm: PositiveFloat | None = 1.0
    """clip the gradient to this L2 norm"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """numbers of parameters, activations and gradients, with a master copy in fp32; fp16 on GPUs only"""

    baseline: bool = True
    """also fit TF-IDF and logistic regression on the same articles, to compare with"""
    log_every: PositiveInt = 10
    """optimizer steps between records of loss, throughput and memory"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""


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
    """Say which topic articles are about, with the trained model of a run."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    text: str | None = None
    """an article: title, or title and description"""
    file: Path | None = None
    """file of articles: .txt with one a line, or .csv in one of the forms of the data set, with or without a class"""
    out: Path | None = None
    """CSV file for the predictions on `file`; default: print them"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train with each parallel layout, or with several models, with and without cleaning or augmentation; compare."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    what: Literal["layouts", "cleaning", "augmentation"] = "layouts"
    """layouts: data, tensor, pipeline or, of 4 processes and more, their mixtures; cleaning: without, with, and without
    stop words; augmentation: none and each kind"""
    models: tuple[str, ...] = ()
    """pretrained models to compare instead, each as for --model of train"""
    model: str | None = None
    """as for train; default: as in the config"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    num_train: PositiveInt | None = None
    """as for train; default: as in the config"""
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
