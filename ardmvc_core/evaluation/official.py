"""The published protocol: target in training mode, map fitted again after the attack.

For comparison with published tables only; `worst_case` has the evaluation that decides.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ardmvc_core.attacks.generators.gan import fit_gan
from ardmvc_core.attacks.searches.pgd import frozen
from ardmvc_core.attacks.target import EvaluationError, assign, attacked_views, device_of
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import ResolvedBudget
from ardmvc_core.evaluation.metrics import PUBLISHED, clustering_scores
from ardmvc_core.evaluation.score_card import Evaluation
from ardmvc_core.networks.encoders import bf16_encoders
from ardmvc_core.networks.kmeans import KMeansHead, embeddings, published_clusters
from ardmvc_core.seeding import derive_seed, generator
from ardmvc_core.types import Views


def evaluate_official(model: nn.Module, data: MultiViewDataset, budget: ResolvedBudget) -> Evaluation:
    """The published protocol: target in training mode, attacker fitted and scored on the same data, map fitted again.

    Batch statistics undo what moves a whole batch, and a new map forgives any consistent relabelling, so these numbers
    flatter a model: they stand beside published tables and nowhere else. Batches are shuffled from the budget's seed.

    Args: model: not changed; a copy is attacked, because its running statistics drift. data: the attacked half, with
        labels.
    Returns: `official/{pre,post}/…` of `PUBLISHED`: one clean pass before the attacker is fitted, and one attacked pass
        with its last epoch; `guard/official_gan_saturation`. A model with a k-means head gets its clusters from k-means
        fitted anew to each pass, as published, and not from its frozen centroids.
    Raises: EvaluationError without labels or for logits that are not finite.
    Source: Huang et al. 2024 (AR-DMVC), as its published code does it.
    """
    if data.labels is None:
        raise EvaluationError("the official protocol needs labels: it fits the map to them before and after the attack")
    data = data.to(device_of(model, data.views))
    target = copy.deepcopy(model).train()
    values: dict[str, float] = {}
    with frozen(target), _own_random_stream(budget.seed):
        values |= _official_scores("pre", target, data, data.views, budget)
        threat = budget.threat()
        with bf16_encoders(target, budget.attack_precision == "bf16"):
            gan = fit_gan(budget.official, threat, target, data.views, generator(budget.seed, "official"))
        attacked = attacked_views("gan", gan, target, data.views, threat)
        values |= _official_scores("post", target, data, attacked, budget)
    values["guard/official_gan_saturation"] = gan.saturation(data.views)
    return Evaluation(values, {})


@contextmanager
def _own_random_stream(seed: int) -> Iterator[None]:
    """Targets that sample in training mode draw from torch's global streams; these are left as they were found."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "official", "samples"))
        yield


def _official_scores(
    phase: str, target: nn.Module, data: MultiViewDataset, views: Views, budget: ResolvedBudget
) -> dict[str, float]:
    """Scores of shuffled batches under a map fitted to these very assignments."""
    assert data.labels is not None
    order = torch.randperm(len(data), generator=generator(budget.seed, "official", phase)).to(views[0].device)
    shuffled = tuple(view[order] for view in views)
    if hasattr(target, "head") and isinstance(target.head, KMeansHead):
        features = embeddings(target, shuffled, budget.official.batch_size).double().cpu().numpy()
        clusters = published_clusters(features, data.n_clusters, derive_seed(budget.seed, "official", phase, "k-means"))
    else:
        clusters = assign(target, shuffled, budget.official.batch_size)
    scores = clustering_scores(data.labels[order], clusters, data.n_clusters)
    return scores.named(f"official/{phase}", PUBLISHED)
