"""Our attacks against the Adversarial Robustness Toolbox (ART), on one classifier and from the same labels."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from ardmvc_core.attacks.objectives.clean_reference import CleanReference, clean_reference
from ardmvc_core.attacks.objectives.per_sample import ce
from ardmvc_core.attacks.searches.apgd import apgd
from ardmvc_core.attacks.searches.square import square
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.types import ModelOutput, Views

EPS = 0.06
BUDGET = Threat(eps=EPS)
SIDE = 6
SEEDS = (0, 1)
ONE_POINT = 0.01


class Classifier(nn.Module):
    """Logits of small digits. It does not read the last row and the last column: ART puts no square there, so that an
    image that is read to its edges would be ours to break and not ART's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images[..., :SIDE, :SIDE])


class OneView(nn.Module):
    """The classifier as a model of one view."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, views: Views) -> ModelOutput:
        logits = self.classifier(views[0])
        return ModelOutput(view_latents=views, consensus=logits, logits=logits, assignments=logits.softmax(1))


@dataclass(frozen=True)
class Victim:
    model: OneView
    images: torch.Tensor
    """(N, 1, H, W) held out."""
    reference: CleanReference

    @property
    def labels(self) -> np.ndarray:
        return np.eye(10)[self.reference.clusters.numpy()]

    def for_art(self) -> PyTorchClassifier:
        return PyTorchClassifier(
            self.model.classifier,
            nn.CrossEntropyLoss(),
            tuple(self.images.shape[1:]),
            10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )

    def flip_rate(self, attacked: torch.Tensor) -> float:
        """As our model sees it, and only for points inside the budget."""
        assert float((attacked - self.images).abs().max()) <= EPS + 1e-6
        assert float(attacked.min()) >= 0
        assert float(attacked.max()) <= 1
        with torch.no_grad():
            clusters = self.model((attacked,)).logits.argmax(1)
        return float((clusters != self.reference.clusters).float().mean())


@pytest.fixture(scope="module")
def victim() -> Victim:
    pixels, classes = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = F.adaptive_avg_pool2d(pixels.float().view(-1, 1, 8, 8) / 16, SIDE)
    images = F.pad(images, (0, 1, 0, 1), value=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier()
        optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
        for _ in range(30):
            for rows in torch.randperm(1000).split(50):
                optimizer.zero_grad()
                F.cross_entropy(classifier(images[rows]), classes[rows]).backward()
                optimizer.step()
    model = OneView(classifier).eval()
    held_out = images[1000:]
    with torch.no_grad():
        accuracy = float((classifier(held_out).argmax(1) == classes[1000:]).float().mean())
    assert accuracy > 0.85
    return Victim(model, held_out, clean_reference(model, (held_out,), 1000))


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def numpy_seed():
    """ART draws from NumPy's global stream, which is put back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    yield np.random.seed
    np.random.set_state(state)  # noqa: NPY002


def test_square_flips_as_many_as_art(victim, numpy_seed):
    queries = 500
    ours, theirs = [], []
    for seed in SEEDS:
        found = square(
            victim.model,
            (victim.images,),
            victim.reference,
            BUDGET,
            queries=queries,
            generator=stream(seed),
            batch_size=1000,
        )
        ours.append(victim.flip_rate(found.views[0]))
        numpy_seed(seed)
        attack = SquareAttack(
            victim.for_art(), norm=np.inf, eps=EPS, max_iter=queries, nb_restarts=1, batch_size=1000, verbose=False
        )
        theirs.append(victim.flip_rate(torch.from_numpy(attack.generate(victim.images.numpy(), victim.labels))))
    assert 0.3 < np.mean(theirs) < 0.7
    assert abs(np.mean(ours) - np.mean(theirs)) <= ONE_POINT, (ours, theirs)


def test_apgd_flips_as_many_as_art(victim, numpy_seed):
    steps = 50
    ours, theirs = [], []
    for seed in SEEDS:
        found = apgd(victim.model, (victim.images,), victim.reference, ce, BUDGET, steps=steps, generator=stream(seed))
        ours.append(victim.flip_rate(found.views[0]))
        numpy_seed(seed)
        attack = AutoProjectedGradientDescent(
            victim.for_art(),
            norm=np.inf,
            eps=EPS,
            eps_step=2 * EPS,
            max_iter=steps,
            nb_random_init=1,
            batch_size=1000,
            loss_type="cross_entropy",
            verbose=False,
        )
        theirs.append(victim.flip_rate(torch.from_numpy(attack.generate(victim.images.numpy(), victim.labels))))
    assert 0.3 < np.mean(theirs) < 0.7
    assert abs(np.mean(ours) - np.mean(theirs)) <= ONE_POINT, (ours, theirs)
