"""The published protocol on models small enough to work the scores out by hand."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from small_targets import FOUR, dataset, resolved
from torch import nn

from ardmvc_core.attacks.generators.gan import official_gan
from ardmvc_core.attacks.target import EvaluationError
from ardmvc_core.evaluation.official import evaluate_official
from ardmvc_core.evaluation.worst_case import probe
from ardmvc_core.models import MODELS
from ardmvc_core.networks.kmeans import KMeansHead
from ardmvc_core.types import EmbeddingOutput


class BatchCentred(nn.Module):
    """Cluster 1 where the first view, normalised by BatchNorm, is above 0."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.weight = nn.Parameter(torch.ones(()))

    def encode(self, views):
        return views

    def forward(self, views):
        score = self.weight * self.norm(views[0])
        logits = torch.cat([-score, score], dim=1)
        return SimpleNamespace(view_latents=views, consensus=score, logits=logits, assignments=logits.softmax(1))


def test_official_protocol_scores_in_training_mode():
    # All values are above 0: in inference mode, with mean 0 stored, there would be one cluster only and ACC ½.
    data = dataset([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    model = BatchCentred()
    assert probe(model, data, resolved()).metrics()["clean/acc"] == 1 / 2
    got = evaluate_official(model, data, resolved(eps=0.1)).metrics()
    phases = [f"official/{phase}/{score}" for phase in ("pre", "post") for score in ("acc", "nmi", "ari")]
    # 0.1 cannot bridge the gap between 0.1 and 0.9, and batch statistics follow any common shift.
    assert {name: got[name] for name in phases} == dict.fromkeys(phases, 1.0)
    assert set(got) == {*phases, "guard/official_gan_saturation"}
    assert model.norm.num_batches_tracked == 0


def test_official_protocol_takes_a_last_batch_of_one():
    data = dataset([0.1] * 10 + [0.9] * 11, [0] * 10 + [1] * 11)
    budget = resolved(eps=0.1, official=dataclasses.replace(official_gan(), batch_size=10, epochs=1))
    assert 0 <= evaluate_official(BatchCentred(), data, budget).metrics()["official/post/acc"] <= 1


class Sampled(nn.Module):
    """The views themselves, clustered by k-means; in training mode with noise from torch's global stream."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.head = KMeansHead(2, 2)

    def encode(self, views):
        return views

    def forward(self, views):
        features = self.weight * torch.cat(views, dim=1)
        if self.training:
            features = features + 0.01 * torch.randn_like(features)
        logits = self.head(features)
        return EmbeddingOutput(
            view_latents=views, consensus=features, logits=logits, assignments=logits.softmax(1), embedding=features
        )


def test_official_protocol_fits_k_means_anew_and_leaves_the_global_stream_alone():
    data = dataset([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    model = Sampled()
    model.head.centroids.fill_(5.0)  # frozen centroids that would put everything into one cluster
    assert probe(model, data, resolved()).metrics()["clean/acc"] == 1 / 2
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = evaluate_official(model, data, resolved(eps=0.1)).metrics()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert evaluate_official(model, data, resolved(eps=0.1)).metrics() == first
    # Two groups 0.8 apart, moved by 0.1 at most: k-means finds them before and after.
    assert (first["official/pre/acc"], first["official/post/acc"]) == (1.0, 1.0)
    assert torch.equal(model.head.centroids, torch.full((2, 2), 5.0))


def test_attacks_found_in_bf16_are_scored_in_full_precision():
    data = dataset([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    network = MODELS["simvc"].build(MODELS["simvc"].config(dense_widths=(4, 4)), data.view_shapes, 2).eval()
    seen = []
    # The protocol attacks a copy, which takes its hooks along.
    network.encoders[0].register_forward_hook(lambda encoder, *_: seen.append((encoder.bf16, torch.is_grad_enabled())))
    official = dataclasses.replace(official_gan(), epochs=2, batch_size=10)
    found = evaluate_official(network, data, resolved(eps=0.1, attack_precision="bf16", official=official))
    assert 0 <= found.metrics()["official/post/acc"] <= 1
    assert not network.encoders[0].bf16
    assert {bf16 for bf16, _ in seen} == {True, False}
    with pytest.raises(ValueError, match="attack_precision must be one of fp32, bf16, got 'fp16'"):
        resolved(attack_precision="fp16")


def test_official_protocol_needs_labels():
    with pytest.raises(EvaluationError, match="needs labels"):
        evaluate_official(BatchCentred(), dataclasses.replace(FOUR, labels=None), resolved())
