"""One contract for every entry of MODELS; what it says stands in `model_contract`."""

from collections.abc import Callable
from typing import Any

import model_contract as contract
import pytest
from model_contract import CASE_CHECKS, CASES, CHEAP, LARGE_IMAGES, PLANTED, PLANTED_CHECKS

from ardmvc_core.models import MODELS

every_model = pytest.mark.parametrize("name", MODELS)


def cheap(name: str) -> Any:
    return MODELS[name].config(**CHEAP.get(name, {}))


@every_model
def test_config_is_frozen_and_says_its_name(name: str) -> None:
    contract.check_config(name, MODELS[name])


@pytest.mark.parametrize("check", CASE_CHECKS)
@pytest.mark.parametrize("case", CASES)
@every_model
def test_every_case(name: str, case: str, check: Callable[..., None]) -> None:
    check(MODELS[name], cheap(name), CASES[case])


@pytest.mark.parametrize("check", [contract.check_output, contract.check_training])
@every_model
def test_images_of_published_size(name: str, check: Callable[..., None]) -> None:
    check(MODELS[name], cheap(name), LARGE_IMAGES)


@pytest.mark.parametrize("check", PLANTED_CHECKS)
@pytest.mark.parametrize("case", PLANTED)
@every_model
def test_planted_clusters(name: str, case: str, check: Callable[..., None]) -> None:
    check(MODELS[name], cheap(name), PLANTED[case])


@pytest.mark.parametrize("case", ["two small images, K 2", "three vectors, K 50"])
@every_model
def test_a_checkpoint_goes_on_bit_for_bit(name: str, case: str) -> None:
    contract.check_resume(MODELS[name], cheap(name), CASES[case])


@every_model
def test_calibration_does_not_disturb_training(name: str) -> None:
    contract.check_calibration(MODELS[name], cheap(name), CASES["three vectors, K 50"])


@every_model
def test_every_protocol_scores_it(name: str) -> None:
    contract.check_evaluation(MODELS[name], cheap(name), CASES["three vectors, K 50"])


def test_settings_name_models_that_there_are() -> None:
    assert set(CHEAP) <= set(MODELS)
