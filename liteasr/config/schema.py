"""Dataclass schemas of a recipe: every key, its type, its default and its unit.

The schemas know nothing of how a recipe is read (:mod:`liteasr.config.load`) or of which
combinations make sense (:mod:`liteasr.config.check`). Durations are seconds, sizes counts of
utterances, clips or parameters, WER percent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from liteasr.config.schema_compare import CompareConfig

__all__ = [
    "DEMO_SPLITS",
    "EVALUATION_ROLES",
    "FSDP",
    "ROLES",
    "TRANSCRIPT_COLUMNS",
    "AttentionKernel",
    "BudgetConfig",
    "CompressionConfig",
    "DataConfig",
    "DecodingConfig",
    "Dtype",
    "EvaluationConfig",
    "ExportConfig",
    "FinetuneConfig",
    "Logger",
    "LongForm",
    "ModelConfig",
    "Recipe",
    "RunConfig",
    "Schedule",
    "SourceConfig",
    "SourceKind",
    "SpecAugmentConfig",
    "Task",
    "TrainText",
    "Trainable",
    "TrainerConfig",
    "Weights",
]

ROLES = ("calibration", "train", "val", "test")
"""Keys of ``data`` that hold sources by name."""

EVALUATION_ROLES = ("val", "test")
"""Those whose speech is measured, and must not be learned."""

TRANSCRIPT_COLUMNS = ["text", "sentence", "normalized_text", "transcript", "transcription"]

FSDP = "fsdp"
"""Strategy that splits the weights over processes while they are trained."""

DEMO_SPLITS = ("calibration", "evaluation")
"""Values of ``split`` of the built-in demo data."""


class Dtype(Enum):
    """Storage type of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Weights(Enum):
    """Where the weights come from."""

    pretrained = "pretrained"
    random = "random"


class AttentionKernel(Enum):
    """Attention implementation, by its name in transformers."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Task(Enum):
    """Whisper task token of a multilingual checkpoint."""

    transcribe = "transcribe"
    translate = "translate"


class SourceKind(Enum):
    """Where a set of utterances comes from."""

    hub = "hub"
    folder = "folder"
    manifest = "manifest"
    demo = "demo"


class LongForm(Enum):
    """How audio over 30 s is decoded.

    ``timestamps`` is Whisper's sequential algorithm, which needs a checkpoint that predicts
    timestamps; ``windows`` cuts at quiet places and joins the texts, for one that does not.
    """

    timestamps = "timestamps"
    windows = "windows"


class Schedule(Enum):
    """Learning rate after the warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class TrainText(Enum):
    """How the transcripts of training are written."""

    as_is = "as_is"
    plain = "plain"


class Trainable(Enum):
    """Which parameters a training stage updates."""

    factors = "factors"
    encoder = "encoder"
    all = "all"


class Logger(Enum):
    """Where a run logs besides ``metrics.csv``."""

    tensorboard = "tensorboard"
    wandb = "wandb"


@dataclass
class RunConfig:
    """Where a run lives and whether it may touch what is already there."""

    name: str = MISSING
    """Name of the run; the recipe's file name without its ending, unless given."""
    dir: str = "runs/${run.name}"
    """Folder that receives everything the run writes."""
    resume: bool = False
    """Go on with the run already in ``dir``: finished stages are not repeated."""
    overwrite: bool = False
    """Delete the run already in ``dir`` first."""
    seed: int = 0
    """Seed of every random draw (calibration clips, shuffling, initialisation)."""


@dataclass
class ModelConfig:
    """The Whisper checkpoint to compress."""

    id: str = MISSING
    """Hub id or local folder, dense Whisper or lite-whisper; ``demo``: the model in the package."""
    weights: Weights = Weights.pretrained
    """``pretrained``, or ``random`` for training from nothing: then ``id`` needs no weights, and
    the model is measured only after training."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    processor: str | None = None
    """Hub id or folder of tokenizer and feature extractor; the checkpoint's own if absent."""
    language: str | None = None
    """Spoken language of a multilingual checkpoint (``en``); absent for English-only ones."""
    task: Task | None = None
    """Task of a multilingual checkpoint; absent for English-only ones."""
    dtype: Dtype = Dtype.float32
    """Storage type of the weights while the run works; ``export.dtype`` is what is written."""
    attention: AttentionKernel = AttentionKernel.sdpa
    """Attention implementation of transformers."""


@dataclass
class SourceConfig:
    """One named set of utterances."""

    kind: SourceKind = MISSING
    """``hub`` data set, ``folder`` in audiofolder layout (or, where no transcripts are read, of any
    audio), JSONL ``manifest``, built-in ``demo``."""
    path: str = ""
    """Hub id (or a local copy of its Parquet files), folder, or manifest file; not for ``demo``."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str = "test"
    """Split of a hub data set; of ``demo``, ``calibration`` or ``evaluation``."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    streaming: bool = False
    """Read a hub data set over the network without storing it."""
    text: list[str] = field(default_factory=lambda: list(TRANSCRIPT_COLUMNS))
    """Columns that may hold the transcript; the first one present is used. Calibration reads none,
    nor does training by ``encoder_distillation_weight`` alone: there may be none then."""
    skip: int = 0
    """Utterances passed over at the start, at least 0."""
    limit: int | None = None
    """Utterances taken at most, at least 1, after ``skip``; all if absent."""


@dataclass
class DataConfig:
    """Sets of speech; what is measured (validation, test) shares no file with the others."""

    root: str = "."
    """Folder that fragments refer to as ``${data.root}``; has no effect of its own."""
    calibration: dict[str, SourceConfig] = field(default_factory=dict)
    """Sets that calibration clips are drawn from, evenly, by name."""
    train: dict[str, SourceConfig] = field(default_factory=dict)
    """Sets of the training stage, by name."""
    val: dict[str, SourceConfig] = field(default_factory=dict)
    """Sets whose WER is measured during training, by name."""
    test: dict[str, SourceConfig] = field(default_factory=dict)
    """Sets whose WER is reported, by name."""
    calibration_clips: int = 100
    """Clips (windows of at most 30 s) that calibration sees in all."""
    calibration_batch_size: int = 8
    """Clips a calibration step on one process."""
    train_batch_size: int = 8
    """Clips a training step on one process."""
    train_text: TrainText = TrainText.as_is
    """How transcripts are learned: ``as_is``, or ``plain`` (lower case, without punctuation but
    within words) for a checkpoint that writes so, where corpora differ."""
    train_timestamps: float = 0.0
    """Share of the training clips that are learned with timestamps, from 0 to 1: those of their
    ``segments`` where a folder or manifest tells them (``start``, ``end``, ``text``; not in a
    stream), else start and end of the clip."""
    train_speed: float = 0.0
    """Largest change of the speed (and with it the pitch) of a training clip, as a share, in either
    direction: 0.1 plays each at 0.9 to 1.1 times its speed, another one each epoch."""
    train_packed: float = 0.0
    """Share of the training windows, from 0 to 1, in which a clip is followed by others as far as
    the window holds them, instead of silence (for short clips; Distil-Whisper, arXiv 2311.00430,
    does so with all). With timestamps the last one is cut where the window ends, as in long audio,
    and the model learns where the segment that is cut begins."""
    eval_batch_size: int = 16
    """Utterances decoded together on one process."""
    num_workers: int = 1
    """Processes that decode audio, for each loader; 0 decodes in the main process."""
    max_bad_fraction: float = 0.05
    """Share of unreadable files above which a run stops (below it they are skipped and named)."""


@dataclass
class DecodingConfig:
    """How text is generated when WER is measured."""

    num_beams: int = 1
    """Beams; 1 is greedy."""
    max_new_tokens: int | None = None
    """Tokens generated for one window at most; the checkpoint's limit if absent."""
    long_form: LongForm = LongForm.timestamps
    """How audio over 30 s is decoded: ``timestamps`` is Whisper's sequential algorithm, ``windows``
    cuts at quiet places, for a checkpoint that predicts no timestamps."""


@dataclass
class BudgetConfig:
    """What the compression has to reach. At most one of the five goals may be set."""

    encoder_params: str | None = None
    """Goal: parameters of the encoder without its positional embedding, e.g. ``269.93M``."""
    encoder_ratio: float | None = None
    """Goal: the same as a share of the dense encoder, above 0 and below 1."""
    encoder_flops_ratio: float | None = None
    """Goal: arithmetic of the encoder as a share of the dense one, above 0 and below 1."""
    encoder_time_ratio: float | None = None
    """Goal: time of the encoder for one window, as measured on the machine and in the type of the
    run, as a share of that of the dense one run the same way; above 0 and below 1."""
    max_error: float | None = None
    """Goal: predicted relative error of the encoder's output, above 0 and below 1."""
    granularity: int = 8
    """Ranks are multiples of this number of components under a budget."""


@dataclass
class CompressionConfig:
    """What the compression callback does."""

    method: str = "auto"
    """``auto``, ``sensitivity`` (these need a budget), ``pca`` as published, the
    dotted path of a class, or ``none``."""
    callback: str = "liteasr.callbacks.CompressionCallback"
    """Dotted path of the callback class."""
    thresholds: str | None = None
    """Kept energy for attention layers and for MLP layers, ``attention:mlp``. Only method ``pca``
    uses them; absent means ``0.99:0.999`` there."""
    rank_multiple: int = 16
    """Ranks are multiples of this number of components in the published rule (method ``pca``)."""
    max_rank_attention: float = 0.5
    """Largest rank of q, k, v and out projections in the published rule (method ``pca``), as a
    share of the encoder's width."""
    max_rank_mlp: float = 0.8
    """Largest rank of fc1 and fc2 in the published rule (method ``pca``), as a share of the
    encoder's width."""
    padding_weight: float | None = None
    """Weight of a frame of padding in the statistics, where a frame of speech counts 1; 1 for
    ``pca`` as published, 0.05 for the other methods, if absent."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What to reach: a size, a speed or an error."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the method, e.g. ``metric: scalar``."""
    save_every: int = 16
    """Calibration batches between two saves of the statistics; 0 saves only at the end."""


@dataclass
class SpecAugmentConfig:
    """Masks over the log-mel features of training clips (SpecAugment), by transformers' names."""

    mask_time_prob: float | None = None
    """Share of the frames that is masked; what the checkpoint's ``config.json`` says if absent."""
    mask_time_length: int = 10
    """Frames (of 10 ms) of one mask."""
    mask_feature_prob: float | None = None
    """Share of the mel bins that is masked; what ``config.json`` says if absent."""
    mask_feature_length: int = 10
    """Mel bins of one mask."""


@dataclass
class FinetuneConfig:
    """The training stage after compression (or alone, with ``compression.method: none``)."""

    max_steps: int = 0
    """Optimizer steps; 0 skips the stage."""
    trainable: Trainable = Trainable.factors
    """Which parameters are updated: those of the encoder's low-rank layers (``factors``), of the
    whole encoder, or all."""
    learning_rate: float = 2e-4
    """Learning rate of AdamW at its peak, after the warm-up; a factor without a unit."""
    weight_decay: float = 0.01
    """Weight decay of AdamW; a factor without a unit."""
    warmup_steps: int = 50
    """Optimizer steps of linear warm-up."""
    schedule: Schedule = Schedule.cosine
    """Learning rate after the warm-up."""
    cross_entropy_weight: float = 1.0
    """Weight of the cross-entropy of the transcripts in the training loss."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy: the share of the target that all tokens divide."""
    encoder_distillation_weight: float = 0.0
    """Weight of the relative error of the encoder's output against the teacher's. Without the other
    two losses the decoder is not run."""
    logit_distillation_weight: float = 0.0
    """Weight of the divergence (in nats) of the distribution of each token from the teacher's."""
    teacher: str | None = None
    """Checkpoint that distillation learns from, as in ``model.id``, which is it if absent."""
    ctc_weight: float = 0.0
    """Share of a CTC loss on the encoder's output in the training loss; for training from nothing,
    where the decoder would learn the language long before it listens."""
    flat_start_steps: int = 0
    """First optimizer steps in which the CTC loss is replaced by the cross-entropy of a flat
    alignment (the transcript in equal shares of the loud frames), from which CTC starts sooner."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Masks over the features; a teacher hears them too."""
    gradient_checkpointing: bool = False
    """Keep only what goes from layer to layer for the backward pass and compute the rest again: a
    fraction of the memory, for about a third more time."""
    val_every: int = 500
    """Optimizer steps between two measurements of validation WER, and between two checkpoints."""
    patience: int | None = None
    """Measurements of validation WER without a better one after which training stops early; never
    if absent."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is what is measured and kept; no
    average if absent."""


@dataclass
class EvaluationConfig:
    """What is measured before and after."""

    dense: bool = True
    """Measure the WER of the checkpoint as it came."""
    encoder_error: bool = True
    """Measure the relative error of the encoder's output against the dense encoder, or the
    teacher's where nothing is compressed."""


@dataclass
class TrainerConfig:
    """Arguments of ``lightning.Trainer``, under its names."""

    accelerator: str = "auto"
    """Kind of device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, …."""
    devices: Any = "auto"
    """Devices of each node, one process each: ``auto`` (all GPUs, or one process on the CPU), a
    count, ``-1`` for all, or a list of their numbers."""
    num_nodes: int = 1
    """Machines that the run is spread over."""
    strategy: str = "auto"
    """How processes work together; ``auto`` is ``ddp`` where there are several. ``fsdp`` splits the
    weights over the processes in the training stage (FSDP2)."""
    precision: str = "32-true"
    """Arithmetic of the forward and backward passes."""
    accumulate_grad_batches: int = 1
    """Batches of one process that make an optimizer step."""
    gradient_clip_val: float | None = 1.0
    """Largest norm of the gradient of an optimizer step; larger ones are scaled down to it. No
    limit if absent or 0."""
    log_every_n_steps: int = 10
    """Optimizer steps between two rows of ``metrics.csv``."""
    loggers: list[Logger] = field(default_factory=list)
    """Loggers besides ``metrics.csv``: ``tensorboard`` (a folder of the run) and
    ``wandb`` (its own environment variables apply). No argument of Lightning's by this name."""
    num_threads: int | None = None
    """CPU threads of torch; all cores if absent. Not an argument of Lightning's."""


@dataclass
class ExportConfig:
    """The Hugging Face folder that a run writes."""

    dtype: Dtype | None = None
    """Storage type of the weights; that of the original checkpoint if absent."""


@dataclass
class Recipe:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
