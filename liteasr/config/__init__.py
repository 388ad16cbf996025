"""What a run is: schemas of a recipe, reading and merging, checks. Imports no torch.

Example:
    >>> recipe = load_recipe("tiny_fast", ["run.seed=1"])
    >>> recipe.run.name, recipe.run.seed, recipe.compression.budget.encoder_params
    ('tiny_fast', 1, '6.48M')
"""

from liteasr.config.budget import Budget, parse_budget, parse_size
from liteasr.config.check import reads_transcripts
from liteasr.config.check_compare import check_comparison
from liteasr.config.check_compression import METHOD_NAMES, check_goal, parse_thresholds
from liteasr.config.compose import parse_overrides
from liteasr.config.errors import ConfigError
from liteasr.config.load import load_recipe, to_yaml
from liteasr.config.schema import (
    DEMO_SPLITS,
    EVALUATION_ROLES,
    FSDP,
    ROLES,
    TRANSCRIPT_COLUMNS,
    AttentionKernel,
    BudgetConfig,
    CompressionConfig,
    DataConfig,
    DecodingConfig,
    Dtype,
    EvaluationConfig,
    ExportConfig,
    FinetuneConfig,
    Logger,
    LongForm,
    ModelConfig,
    Recipe,
    RunConfig,
    Schedule,
    SourceConfig,
    SourceKind,
    Task,
    Trainable,
    TrainerConfig,
    TrainText,
    Weights,
)
from liteasr.config.schema_compare import CompareConfig, CompareMethodConfig, SearchConfig

__all__ = [
    "DEMO_SPLITS",
    "FSDP",
    "METHOD_NAMES",
    "EVALUATION_ROLES",
    "ROLES",
    "TRANSCRIPT_COLUMNS",
    "AttentionKernel",
    "Budget",
    "BudgetConfig",
    "CompareConfig",
    "CompareMethodConfig",
    "CompressionConfig",
    "ConfigError",
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
    "SearchConfig",
    "SourceConfig",
    "SourceKind",
    "Task",
    "Trainable",
    "TrainText",
    "TrainerConfig",
    "Weights",
    "check_comparison",
    "check_goal",
    "load_recipe",
    "parse_budget",
    "parse_overrides",
    "parse_size",
    "parse_thresholds",
    "reads_transcripts",
    "to_yaml",
]
