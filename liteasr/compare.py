"""``python -m liteasr.compare --config RECIPE [key=value …]``: methods and sizes side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import lightning as L

from liteasr.builders import build_datamodule, build_module, build_trainer, check_sources
from liteasr.cli import recipe_parser, run_main
from liteasr.compare_report import best_entries, comparison_markdown, comparison_table
from liteasr.comparison import Comparison, check_entries, smallest_accepted, smallest_size
from liteasr.config import (
    ConfigError,
    Recipe,
    check_comparison,
    load_recipe,
    to_yaml,
)
from liteasr.console import console
from liteasr.environment import environment
from liteasr.files import write_text
from liteasr.loading import require_weights
from liteasr.module import WhisperModule
from liteasr.reporting import write_report_or_warn
from liteasr.runfolder import RunFolder, is_first_process

__all__ = ["compare", "main"]


def compare(recipe: Recipe, *, keep_models: bool = False) -> dict[str, Any]:
    """Compress one model by every method to every size, and measure each on the same sets.

    Each method calibrates once, on the same clips. Every finished result is kept, so that
    ``run.resume`` goes on where a run stopped, and may add methods and sizes.

    Args:
        recipe: What to compare, in its section ``compare``.
        keep_models: Write each model to ``models/<name>-<size>``.

    Returns:
        The content of ``compare.json``.

    Raises:
        ConfigError: If the recipe or its data cannot be used. A run folder that this call made is
            gone then.
    """
    L.seed_everything(recipe.run.seed, workers=True, verbose=False)
    run = RunFolder(recipe)
    if is_first_process():
        run.check()
    _check_parts(recipe, run)
    module = build_module(recipe)
    datamodule = build_datamodule(recipe, module)
    datamodule.check()
    run.open()
    try:
        comparison = Comparison(recipe, run, module, datamodule)
        content = _run(recipe, comparison, keep_models)
        content["search"] = _search(recipe, comparison, module, keep_models)
    except ConfigError:
        run.discard()
        raise
    content["calibration"] = _calibration(content)
    if is_first_process():
        _write(recipe, run, content)
    return content


def _check_parts(recipe: Recipe, run: RunFolder) -> None:
    """Everything that can be told before anything is loaded.

    Raises:
        ConfigError: If something is missing, or a part cannot be made.
    """
    errors = list(check_comparison(recipe))
    if errors:
        raise ConfigError(errors)
    require_weights(recipe.model.id)
    check_entries(recipe, run)
    build_trainer(recipe, None)


def _run(recipe: Recipe, comparison: Comparison, keep_models: bool) -> dict[str, Any]:
    """The dense model, then every method at every size."""
    names, sizes = recipe.compare.methods, recipe.compare.encoder_params
    pairs = [(name, size) for name in names for size in sizes]
    dense = comparison.dense()
    results = []
    for number, (name, size) in enumerate(pairs, start=1):
        if is_first_process():
            console.print(f"{number} of {len(pairs)}: {name} at {size}")
        results.append(comparison.result(name, size))
        if keep_models:
            comparison.keep_model(name, size)
    return {
        "dense": dense,
        "calibration": {},
        "results": results,
        "best": best_entries(results, sizes),
        "search": None,
    }


def _search(
    recipe: Recipe, comparison: Comparison, module: WhisperModule, keep_models: bool
) -> dict[str, Any] | None:
    """The smallest encoder whose WER on ``data.val`` is near enough to the dense one's."""
    search = recipe.compare.search
    if search.max_wer_increase is None:
        return None
    name = search.method or next(iter(recipe.compare.methods))
    dense = comparison.dense("val")
    allowed = dense["wer"] + search.max_wer_increase
    tried: list[dict[str, Any]] = []

    def accept(size: int) -> bool:
        result = comparison.result(name, str(size), "val")
        # WER is rounded to four digits.
        accepted = result["wer"] is not None and result["wer"] <= allowed + 1e-6
        tried.append({**result, "accepted": accepted})
        if is_first_process() and result["wer"] is not None:
            verdict = "near enough" if accepted else "too high"
            console.print(f"{size / 1e6:.3f} M: WER {result['wer']:.2f} %, {verdict}")
        return accepted

    low = smallest_size(module, recipe.compression.budget.granularity)
    high = dense["encoder_params"]
    found = smallest_accepted(low, high, search.tolerance * high, accept)
    if found is not None and keep_models:
        comparison.keep_model(name, str(found))
    return {
        "name": name,
        "max_wer_increase": search.max_wer_increase,
        "tolerance": search.tolerance,
        "dense": dense,
        "tried": tried,
        "result": None if found is None else comparison.result(name, str(found)),
    }


def _calibration(content: dict[str, Any]) -> dict[str, Any]:
    """Clips and fingerprint, the same for all results; taken out of each."""
    search = content["search"] or {"tried": [], "result": None}
    results = [*content["results"], *search["tried"]]
    results += [search["result"]] if search["result"] else []
    shared: dict[str, Any] = {}
    for result in results:
        shared = result.pop("calibration")
    return shared


def _write(recipe: Recipe, run: RunFolder, content: dict[str, Any]) -> None:
    """``compare.json``, tables, and the report with its plots."""
    write_text(run.environment, json.dumps(environment(), indent=2) + "\n")
    write_text(run.comparison, json.dumps(content, indent=2) + "\n")
    run.report.mkdir(exist_ok=True)
    sizes = recipe.compare.encoder_params
    if content["results"]:
        console.print(comparison_table(content, sizes))
    search = content["search"]
    text = comparison_markdown(content, sizes, recipe.model.id)
    write_text(run.report / "compare.md", text)
    write_report_or_warn(run.path)
    if search is not None:
        found = search["result"]
        size = "none below the dense one" if found is None else f"{found['encoder_params']:,}"
        console.print(f"smallest encoder that is near enough, by {search['name']}: {size}")
    console.print(f"report: {run.report}")


def dry_run(recipe: Recipe) -> None:
    """Check everything that can be checked without loading weights.

    Raises:
        ConfigError: Naming what is wrong.
    """
    run = RunFolder(recipe)
    run.check()
    _check_parts(recipe, run)
    check_sources(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = recipe_parser("compare")
    parser.add_argument(
        "--keep-models", action="store_true", help="write each model to models/<name>-<size>"
    )
    arguments = parser.parse_intermixed_args(argv)

    def body() -> None:
        recipe = load_recipe(arguments.config, arguments.overrides, for_comparison=True)
        if arguments.print_config:
            print(to_yaml(recipe), end="")
        if arguments.dry_run:
            dry_run(recipe)
            print(f"{arguments.config}: everything but the weights is in order")
        if not (arguments.print_config or arguments.dry_run):
            compare(recipe, keep_models=arguments.keep_models)

    return run_main(body, "compare")


if __name__ == "__main__":
    sys.exit(main())
