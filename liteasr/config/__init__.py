"""What a run is: schemas of a recipe, reading and merging, checks. Imports no torch.

Example:
    >>> recipe = load_recipe("tiny_fast", ["run.seed=1"])
    >>> recipe.run.name, recipe.run.seed, recipe.compression.thresholds
    ('tiny_fast', 1, '0.99:0.995')
"""

from liteasr.config.check import METHOD_NAMES, parse_thresholds
from liteasr.config.compose import parse_overrides
from liteasr.config.errors import ConfigError
from liteasr.config.load import load_recipe, to_yaml
from liteasr.config.schema import (
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
)

__all__ = [
    "METHOD_NAMES",
    "ROLES",
    "TRANSCRIPT_COLUMNS",
    "AttentionKernel",
    "BudgetConfig",
    "CompressionConfig",
    "ConfigError",
    "DataConfig",
    "DecodingConfig",
    "Dtype",
    "EvaluationConfig",
    "ExportConfig",
    "FinetuneConfig",
    "LongForm",
    "ModelConfig",
    "Recipe",
    "RunConfig",
    "Schedule",
    "SourceConfig",
    "SourceKind",
    "Task",
    "Trainable",
    "TrainerConfig",
    "load_recipe",
    "parse_overrides",
    "parse_thresholds",
    "to_yaml",
]
