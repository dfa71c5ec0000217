"""One contract for every entry of MODELS."""

import dataclasses
import inspect

import pytest
import torch

from ardmvc_core.models import MODELS
from ardmvc_core.training import Trainer

SHAPES = [((1, 8, 8), (1, 8, 8)), ((5,), (3,), (4,))]


def _views(shapes, samples: int = 12):
    stream = torch.Generator().manual_seed(2)
    return tuple(torch.rand(samples, *shape, generator=stream) for shape in shapes)


@pytest.mark.parametrize("name", MODELS)
def test_config_is_frozen_and_says_its_name(name):
    config = MODELS[name].config()
    assert config.name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"
    parameters = inspect.signature(MODELS[name].config).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_output_has_the_promised_shapes(name, shapes):
    model = MODELS[name].build(MODELS[name].config(), shapes, 3).eval()
    output = model(_views(shapes))
    assert len(output.view_latents) == len(shapes)
    assert all(latent.shape[0] == 12 and latent.dim() == 2 for latent in output.view_latents)
    assert output.consensus.shape[0] == 12
    assert output.assignments.shape == output.logits.shape == (12, 3)
    assert torch.allclose(output.assignments.sum(dim=1), torch.ones(12))
    for encoded, latent in zip(model.encode(_views(shapes)), output.view_latents, strict=True):
        assert torch.equal(encoded, latent)


@pytest.mark.parametrize("name", MODELS)
def test_sample_does_not_depend_on_its_batch_in_evaluation_mode(name):
    model = MODELS[name].build(MODELS[name].config(), SHAPES[1], 3).eval()
    views = _views(SHAPES[1])
    alone = model(tuple(view[:2] for view in views))
    assert torch.allclose(alone.assignments, model(views).assignments[:2], atol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_trains_every_parameter_in_one_epoch_per_stage(name, shapes):
    torch.manual_seed(0)
    model = MODELS[name].build(MODELS[name].config(), shapes, 3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    stages = [dataclasses.replace(stage, epochs=1) for stage in MODELS[name].stages(MODELS[name].config(), 1)]
    trainer = Trainer(model, stages, _views(shapes), batch_size=6, seed=1)
    for _ in stages:
        losses = trainer.run_epoch()
    assert trainer.finished
    assert losses["total"] == pytest.approx(sum(v for k, v in losses.items() if k != "total"))
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())
