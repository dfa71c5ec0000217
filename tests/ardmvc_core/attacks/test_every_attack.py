"""One contract for all attacks: inside the budget, nothing changed, the same again for a seed, and it does its work."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.generators.gan import GANConfig, fit_gan
from ardmvc_core.attacks.noise import NOISE_KINDS, NoiseConfig, prepare_noise
from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.objectives.per_batch import contrast
from ardmvc_core.attacks.objectives.per_sample import ce, features
from ardmvc_core.attacks.searches.apgd import apgd
from ardmvc_core.attacks.threat import Threat

SETTINGS = {
    "noise": [{"kind": kind} for kind in NOISE_KINDS],
    "apgd": [{"objective": ce}, {"objective": features()}, {"objective": contrast}],
    "gan": [{"epochs": 8, "batch_size": 16}, {"epochs": 8, "batch_size": 16, "output": "clamp", "gan_loss": "lsgan"}],
}
CASES = [(name, fields) for name in SETTINGS for fields in SETTINGS[name]]
each_attack = pytest.mark.parametrize(
    ("name", "fields"),
    CASES,
    ids=[f"{n}-{'-'.join(str(getattr(v, '__name__', v)) for v in f.values())}" for n, f in CASES],
)


class Cliff(nn.Module):
    """Two views of 64 values; cluster 0 where their mean is above 0.98, else cluster 1.

    With views at the upper bound, whatever moves about half of the values by ε leads over the cliff.
    """

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(64), nn.BatchNorm1d(64)])
        self.weight = nn.Parameter(torch.tensor(30.0))
        self.fixed = nn.Parameter(torch.tensor(0.98), requires_grad=False)

    def encode(self, views):
        return tuple(norm(view.flatten(1)) for norm, view in zip(self.norms, views, strict=True))

    def forward(self, views):
        latents = self.encode(views)
        score = self.weight * (torch.cat(latents, dim=1).mean(1) - self.fixed)
        logits = torch.stack([score, -score], dim=1)
        return SimpleNamespace(view_latents=latents, consensus=logits, logits=logits, assignments=logits.softmax(1))


@pytest.fixture
def views():
    stream = torch.Generator().manual_seed(1)
    return (1 - 0.01 * torch.rand(48, 1, 8, 8, generator=stream), 1 - 0.01 * torch.rand(48, 64, generator=stream))


def prepare(name, fields, model, views, budget, seed=0):
    stream = torch.Generator().manual_seed(seed)
    if name == "noise":
        return prepare_noise(NoiseConfig(**fields), model, views, stream, budget=budget)
    if name == "apgd":

        def perturb(model, views):
            clean = clean_reference(model, views, len(views[0]))
            return apgd(model, views, clean, budget=budget, steps=20, generator=stream, **fields).best_views

        return perturb
    return fit_gan(GANConfig(**fields), budget, model, views, stream)


@each_attack
@pytest.mark.parametrize(
    "budget",
    [Threat(eps=0.1), Threat(eps=(0.02, 0.3)), Threat(eps=0.2, attacked_views=(1,))],
    ids=["one-eps", "eps-per-view", "one-view"],
)
def test_stays_in_budget(name, fields, budget, views):
    model = Cliff().eval()
    attacked = prepare(name, fields, model, views, budget)(model, views)
    assert len(attacked) == len(views)
    for clean, moved, eps in zip(views, attacked, budget.eps_per_view(2), strict=True):
        assert moved.shape == clean.shape
        assert moved.dtype == clean.dtype
        assert not moved.requires_grad
        assert (moved - clean).abs().max() <= eps + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert torch.equal(moved, clean) == (eps == 0)


@each_attack
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_leaves_the_model_as_it_was(name, fields, training, views):
    model = Cliff().train(training)
    before = copy.deepcopy(model.state_dict())
    prepare(name, fields, model, views, Threat(eps=0.1))(model, views)
    assert [module.training for module in model.modules()] == [training] * 4
    assert [parameter.requires_grad for parameter in (model.weight, model.fixed)] == [True, False]
    assert all(parameter.grad is None for parameter in model.parameters())
    kept = dict(model.named_parameters()) if training else model.state_dict()
    for key, value in kept.items():
        assert torch.equal(value, before[key]), key


@each_attack
def test_same_seed_same_views(name, fields, views):
    model, budget = Cliff().eval(), Threat(eps=0.1)
    torch.manual_seed(1)
    first = prepare(name, fields, model, views, budget)(model, views)
    torch.manual_seed(2)
    again = prepare(name, fields, model, views, budget)(model, views)
    for v in range(2):
        assert torch.equal(first[v], again[v])


@each_attack
def test_flips_samples_at_the_edge(name, fields, views):
    model = Cliff().eval()
    attacked = prepare(name, fields, model, views, Threat(eps=0.2))(model, views)
    with torch.no_grad():
        assert model(views).logits.argmax(1).tolist() == [0] * 48
        assert (model(attacked).logits.argmax(1) == 1).float().mean() > 0.9
