"""What the section ``compare`` of a recipe may not say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from liteasr.config.budget import parse_size
from liteasr.config.check_compression import METHOD_NAMES, check_method, parse_thresholds
from liteasr.config.errors import ConfigError, did_you_mean
from liteasr.config.schema import Recipe
from liteasr.config.schema_compare import CompareMethodConfig

__all__ = ["check_compare", "check_comparison"]

# Entries name folders, and sizes and keys are put beside them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_compare(recipe: Recipe) -> Iterator[str]:
    """Values of the section that are wrong whatever is run, as messages that name the keys."""
    compare = recipe.compare
    if not compare.methods:
        yield "compare.methods: names no method"
    for name, entry in compare.methods.items():
        yield from _entry(name, entry)
    yield from _sizes(compare.encoder_params)
    yield from _search(recipe)


def check_comparison(recipe: Recipe) -> Iterator[str]:
    """What a comparison needs and ``fit`` does not, as messages that name the keys."""
    compare, data = recipe.compare, recipe.data
    if not compare.is_asked_for:
        yield (
            "compare.encoder_params, compare.search.max_wer_increase: nothing to compare; "
            "name sizes (compare.encoder_params=[7.1M,6.8M]), or the WER that a search may lose"
        )
    if compare.encoder_params and not data.test:
        yield "data.test: names no source, but compare.encoder_params asks for WER"
    if compare.search.max_wer_increase is not None and not data.val:
        yield "data.val: names no source, but compare.search measures WER there"


def _entry(name: str, entry: CompareMethodConfig) -> Iterator[str]:
    key = f"compare.methods.{name}"
    if not _NAME.fullmatch(name):
        yield f"{key}: the name must be of letters, digits, - and _, since folders are named so"
    if entry.method == "none":
        yield f"{key}.method: none compresses nothing; the dense encoder is measured in any case"
    else:
        yield from check_method(f"{key}.method", entry.method)
    if entry.thresholds is not None:
        try:
            parse_thresholds(entry.thresholds, f"{key}.thresholds")
        except ConfigError as error:
            yield from error.errors
        if entry.method in METHOD_NAMES and entry.method != "pca":
            yield f"{key}.thresholds: belong to method pca, and the method is {entry.method}"
    weight = entry.padding_weight
    if weight is not None and not 0 <= weight <= 1:
        yield f"{key}.padding_weight: {weight} is not between 0 and 1"


def _sizes(sizes: list[str]) -> Iterator[str]:
    seen: dict[float, str] = {}
    for text in sizes:
        try:
            size = parse_size(text, "compare.encoder_params")
        except ConfigError as error:
            yield from error.errors
            continue
        if size in seen:
            yield f"compare.encoder_params: {seen[size]} and {text} are the same size"
        seen[size] = text


def _search(recipe: Recipe) -> Iterator[str]:
    search, methods = recipe.compare.search, recipe.compare.methods
    most = search.max_wer_increase
    if most is not None and most < 0:
        yield f"compare.search.max_wer_increase: {most} is not at least 0"
    if not 0 < search.tolerance < 1:
        yield f"compare.search.tolerance: {search.tolerance} is not above 0 and below 1"
    if search.method is not None and search.method not in methods:
        hint = did_you_mean(search.method, methods)
        yield (
            f"compare.search.method: {search.method!r} is no entry of compare.methods "
            f"({', '.join(methods)}){hint}"
        )
