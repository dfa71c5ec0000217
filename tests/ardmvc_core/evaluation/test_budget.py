"""Budgets: what is resolved, what is refused, and what a digest is of."""

import dataclasses
import math

import pytest

from ardmvc_core.attacks.generators.gan import official_gan
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.evaluation.budget import EvalBudget


@pytest.mark.parametrize(
    ("name", "eps"),
    [
        ("noisy_digits", 0.10),
        ("noisy_mnist", 0.30),
        ("patched_mnist", 0.30),
        ("noisy_fashion", 0.15),
        ("regdb", 8 / 255),
        ("npz", 0.10),
    ],
)
def test_budget_resolves_to_the_data_sets_eps(name, eps):
    resolved = EvalBudget().resolve(name, 2)
    assert resolved.eps == eps
    assert resolved.resolve(name, 2) == resolved
    assert EvalBudget(eps=0.05).resolve(name, 2).threat() == Threat(eps=0.05)


def test_given_eps_wins_and_is_checked():
    assert EvalBudget(eps=0.2).resolve("noisy_digits", 2).eps == 0.2
    assert EvalBudget(eps=(0.1, 0.2)).resolve("other", 2).eps == (0.1, 0.2)
    with pytest.raises(ValueError, match="eps must be given for data set 'other'"):
        EvalBudget().resolve("other", 2)
    with pytest.raises(ValueError, match=r"one per view \(3\)"):
        EvalBudget(eps=(0.1, 0.2)).resolve("npz", 3)


def test_digest_is_of_values():
    resolved = EvalBudget().resolve("noisy_digits", 2)
    assert len(resolved.digest()) == 16
    assert int(resolved.digest(), 16) >= 0
    assert EvalBudget(eps=0.1).resolve("npz", 2).digest() == resolved.digest()
    one = dataclasses.replace(resolved, eps=1)
    assert one.digest() == dataclasses.replace(one, eps=1.0).digest()
    official = dataclasses.replace(official_gan(), mu_com=2.0)
    for change in ({"tier": "plus"}, {"seed": 8}, {"eps": 0.11}, {"official": official}, {"probe_samples": 9}):
        assert dataclasses.replace(resolved, **change).digest() != resolved.digest()
    assert not hasattr(EvalBudget(), "digest")


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({}, "56c6a9d92d993ad0"),
        ({"tier": "standard"}, "20096ac1b0dbd25a"),
        ({"further_attacks": ("gan_official",)}, "c501979d314f594f"),
        ({"eps": (0.1, 0.2), "attacked_views": (0,)}, "abd7e4d697b48e60"),
    ],
)
def test_a_budget_that_names_no_other_threat_has_the_digest_that_it_had_without_them(fields, digest, monkeypatch):
    monkeypatch.setattr("ardmvc_core.evaluation.budget.EVALUATION_VERSION", 2)
    monkeypatch.setattr("ardmvc_core.evaluation.budget.TIERS_VERSION", 4)
    assert EvalBudget(**fields).resolve("noisy_digits", 2).digest() == digest
    assert EvalBudget(**fields, l2_eps=0.3).resolve("noisy_digits", 2).digest() == digest


def test_the_size_in_l2_counts_where_the_budget_names_the_attack():
    named = EvalBudget(further_attacks=("view_dropped", "apgd_l2", "square")).resolve("noisy_digits", 2)
    assert named.other_threats == ("apgd_l2", "view_dropped")
    assert dataclasses.replace(named, l2_eps=0.2).digest() != named.digest()
    assert EvalBudget(l2_eps=(0.1, 0.2)).resolve("noisy_digits", 2).l2_eps == (0.1, 0.2)
    with pytest.raises(ValueError, match=r"l2_eps must be one number or one per view \(2\), got \(0.1, 0.2, 0.3\)"):
        EvalBudget(l2_eps=(0.1, 0.2, 0.3)).resolve("noisy_digits", 2)


@pytest.mark.parametrize(
    "field",
    [
        {"eps": 0.0},
        {"eps": 8},
        {"eps": math.nan},
        {"eps": (0.1, 2.0)},
        {"samples": 0},
        {"probe_samples": 0},
        {"batch_size": 1},
        {"tier": "tuned"},
        {"further_attacks": ("gan",)},
        {"further_attacks": ("apgd_l1",)},
        {"l2_eps": 0.0},
        {"l2_eps": math.nan},
        {"l2_eps": (0.1, -0.1)},
        {"further_attacks": ("square", "square")},
    ],
)
def test_impossible_budgets_are_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        EvalBudget(**field)
