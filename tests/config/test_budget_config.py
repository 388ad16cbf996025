"""What a budget says."""

from __future__ import annotations

import dataclasses

import pytest

from liteasr.config import Budget, BudgetConfig, ConfigError, parse_budget
from liteasr.config.budget import GOALS


def errors_of(config: BudgetConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_budget(config)
    return caught.value.errors


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("269.93M", 269_930_000),
        ("269.93m", 269_930_000),
        ("7.41 M", 7_410_000),
        (" 2.01M ", 2_010_000),
        ("0.4B", 400_000_000),
        ("0.4 b", 400_000_000),
        ("950K", 950_000),
        ("1_000k", 1_000_000),
        ("429e6", 429_000_000),
        ("4.29E+8", 429_000_000),
        ("7410000", 7_410_000),
        ("7_410_000", 7_410_000),
    ],
)
def test_a_number_of_parameters(text: str, amount: int) -> None:
    budget = parse_budget(BudgetConfig(encoder_params=text))
    assert budget == Budget("encoder_params", amount, 8)
    assert isinstance(budget.amount, float)


@pytest.mark.parametrize(
    "text",
    [
        *("", "six", "M", "0", "0M", "0.0B", "0e6", "-7M", "+7M", "nan", "inf", "7.41", "7,41M"),
        *("7T", "7MM", "7 M M", "7e6M", "1e400", "7e-6", "7_M", "_7M", "7__0M", "0x7M", "٧M"),
    ],
)
def test_no_number_of_parameters(text: str) -> None:
    (error,) = errors_of(BudgetConfig(encoder_params=text))
    assert error.startswith(f"compression.budget.encoder_params: {text!r} is no number")
    for form in ("269.93M", "K, B", "429e6", "7410000"):
        assert form in error


@pytest.mark.parametrize("kind", GOALS[1:])
def test_the_other_goals(kind: str) -> None:
    config = BudgetConfig(granularity=16)
    setattr(config, kind, 0.25)
    assert parse_budget(config) == Budget(kind, 0.25, 16)


def test_no_goal_is_no_budget() -> None:
    assert parse_budget(BudgetConfig()) is None
    assert parse_budget(BudgetConfig(granularity=1)) is None


def test_every_key_but_the_granularity_is_a_goal() -> None:
    keys = [field.name for field in dataclasses.fields(BudgetConfig)]
    assert keys == [*GOALS, "granularity"]


def test_all_that_is_wrong_at_once() -> None:
    errors = errors_of(BudgetConfig("six", 1.0, 0.5, 0.5, float("nan"), granularity=0))
    assert errors[0].startswith(", ".join(f"compression.budget.{key}" for key in GOALS) + ": only")
    starts = ["encoder_params: 'six'", "encoder_ratio: 1.0", "max_error: nan", "granularity: 0"]
    assert len(errors) == 1 + len(starts)
    for start, error in zip(starts, errors[1:], strict=True):
        assert error.startswith(f"compression.budget.{start}")


def test_a_budget_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget("max_error", 0.1, 8).amount = 0.2  # type: ignore[misc]
