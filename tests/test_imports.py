"""Holds the dependency table of the architecture: no import goes back up the flow of data."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "liteasr"
OURS = "liteasr"

_ABOVE_LOSSES = {
    *("liteasr.module", "liteasr.data", "liteasr.config", "liteasr.callbacks"),
    *("liteasr.compression", "liteasr.builders"),
}

_ABOVE_RANKS = {
    *("liteasr.module", "liteasr.data", "liteasr.config", "liteasr.callbacks", "liteasr.modeling"),
    *("liteasr.compression.surgery", "liteasr.compression.methods", "liteasr.compression.plan"),
}

# Part of the package → what it must not import, directly. "liteasr" is all of the rest of it.
FORBIDDEN = {
    "config": {"torch", "lightning", "transformers", "datasets", "liteasr"},
    "text.py": {"torch", "lightning"},
    "data": {"liteasr.module", "liteasr.callbacks", "liteasr.compression"},
    "metrics.py": {"lightning", "liteasr"},
    "evaluation_counts.py": {"lightning", "transformers", "liteasr.module", "liteasr.data"},
    "ctc.py": {"lightning", "transformers", *_ABOVE_LOSSES},
    "errors.py": {"torch", "lightning", "transformers", "liteasr"},
    "distributed.py": {"lightning", "transformers", "liteasr.module", "liteasr.data"},
    "distillation.py": {"lightning", *_ABOVE_LOSSES},
    "objective.py": {"lightning", *_ABOVE_LOSSES},
    "sharding.py": {"lightning", "transformers", "liteasr"},
    "evaluation_steps.py": {
        *("liteasr.module", "liteasr.data", "liteasr.callbacks", "liteasr.builders"),
        *("liteasr.compression", "liteasr.config"),
    },
    "finetuning.py": {"liteasr.fit", "liteasr.compare", "liteasr.comparison", "liteasr.reporting"},
    "callbacks/training.py": {"transformers", "liteasr.module", "liteasr.compression"},
    "speed.py": {"lightning", "transformers", "liteasr"},
    "loading.py": {"lightning", "liteasr.module", "liteasr.compression", "liteasr.callbacks"},
    "module.py": {"liteasr.callbacks", "liteasr.data", "liteasr.builders", "liteasr.export"},
    "modeling/products.py": {"transformers", "lightning", "liteasr"},
    "modeling/linear.py": {"transformers", "lightning", "liteasr.compression"},
    "modeling/attention.py": {"transformers", "lightning", "liteasr.compression"},
    "modeling/rank_space.py": {"lightning", "liteasr.compression"},
    "modeling/tiles.py": {"lightning", "liteasr.compression"},
    "modeling/fast.py": {"lightning", "transformers", "liteasr.compression"},
    "modeling/configuration.py": {"torch", "lightning", "liteasr"},
    "modeling/whisper.py": {"lightning", "liteasr.compression"},
    "compression/statistics.py": {"torch.nn", "lightning", "transformers", "liteasr"},
    "compression/attention_factors.py": {"torch.nn", "lightning", "transformers", "liteasr"},
    "compression/factorize.py": {"torch.nn", "lightning", "transformers", "liteasr"},
    "compression/shapes.py": {"torch", "lightning", "transformers", "liteasr"},
    "compression/thresholds.py": {"torch.nn", "lightning", "transformers", *_ABOVE_RANKS},
    "compression/allocate.py": {"torch.nn", "lightning", "transformers", *_ABOVE_RANKS},
    "compression/spending.py": {"lightning", "liteasr.data", "liteasr.callbacks", "liteasr.config"},
    "compression/plan.py": {"torch", "lightning", "transformers", "liteasr"},
    "compression/spectra.py": {"torch.nn", "lightning", "transformers", "liteasr"},
    "compression/surgery.py": {"lightning", "liteasr.data", "liteasr.callbacks", "liteasr.config"},
    "compression/methods.py": {"lightning", "liteasr.data", "liteasr.config", "liteasr.module"},
    "callbacks": {"liteasr.data", "liteasr.config", "liteasr.builders"},
    "onnx": {
        *("lightning", "liteasr.module", "liteasr.data", "liteasr.callbacks"),
        *("liteasr.compression", "liteasr.loading", "liteasr.export"),
    },
    "model_card.py": {"torch", "lightning", "transformers"},
    "export.py": {"lightning", "liteasr.callbacks", "liteasr.module"},
    "stages.py": {"liteasr.fit", "liteasr.compare", "liteasr.comparison"},
    "comparison.py": {"liteasr.fit", "liteasr.compare", "liteasr.plots"},
    "compare_report.py": {"torch", "lightning", "transformers", "liteasr.module"},
    "transcripts.py": {"torch", "lightning", "transformers", "liteasr.data", "liteasr.module"},
    "recognition.py": {"lightning", "liteasr.callbacks", "liteasr.compression", "liteasr.builders"},
    "benchmarking": {
        *("lightning", "liteasr.callbacks", "liteasr.builders", "liteasr.stages", "liteasr.fit"),
        *("liteasr.evaluate", "liteasr.transcribe", "liteasr.benchmark", "liteasr.cli"),
    },
    "benchmarking/timing.py": {
        *("transformers", "liteasr.module", "liteasr.data", "liteasr.compression"),
        *("liteasr.loading", "liteasr.config", "liteasr.benchmarking"),
    },
    "benchmarking/settings.py": {"transformers", "liteasr.module", "liteasr.data"},
    "benchmarking/hardware.py": {"transformers", "liteasr"},
    "benchmarking/shapes.py": {"liteasr.module", "liteasr.data", "liteasr.loading"},
    "benchmarking/encoders.py": {"liteasr.module", "liteasr.data", "liteasr.loading"},
    "benchmarking/report.py": {"torch", "transformers", "liteasr.module", "liteasr.data"},
    "benchmarking/plot.py": {"torch", "transformers", "liteasr.module", "liteasr.data"},
    "benchmark.py": {"lightning", "transformers", "liteasr.module", "liteasr.data"},
    "plots.py": {"torch", "lightning", "transformers", "liteasr.module", "liteasr.config"},
    "predictions.py": {"torch", "lightning", "transformers", "liteasr.module", "liteasr.data"},
    "reporting": {
        *("torch", "lightning", "transformers", "liteasr.module", "liteasr.data"),
        *("liteasr.callbacks", "liteasr.builders", "liteasr.stages", "liteasr.fit"),
    },
    "report.py": {"torch", "lightning", "transformers", "liteasr.module", "liteasr.data"},
}


def imported(path):
    """Dotted names that a file imports, relative imports resolved, type-checking blocks too."""
    package = (OURS, *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_under(name, root):
    return name == root or name.startswith(root + ".")


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_nothing_imports_what_it_must_not(part):
    target = PACKAGE / part
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert files
    own = ".".join([OURS, *part.removesuffix(".py").split("/")])
    siblings_allowed = target.is_dir()
    for file in files:
        for name in imported(file):
            if is_under(name, own) and siblings_allowed:
                continue
            wrong = [root for root in FORBIDDEN[part] if is_under(name, root)]
            assert not wrong, f"{file.relative_to(PACKAGE)} imports {name}"


def test_every_file_of_the_table_exists():
    assert [part for part in FORBIDDEN if not (PACKAGE / part).exists()] == []


def test_the_walk_sees_relative_imports():
    names = set(imported(PACKAGE / "modeling" / "whisper.py"))
    assert "liteasr.modeling.configuration.LiteWhisperConfig" in names
