"""EAMC's alignment losses against the published numbers and by hand."""

import math

import pytest
import torch

from ardmvc_core.losses.alignment import attention_alignment, discriminator_loss, generator_loss
from ardmvc_core.losses.ddc import cluster_orthogonality, gaussian_kernel, kernel_width, squared_distances


def _cases(golden, dtype: torch.dtype):
    """(name, read): `read` gives an array of the case as a leaf tensor."""
    numbers = golden("eamc")
    for name in numbers["case_names"]:

        def read(part: str, prefix: str = name) -> torch.Tensor:
            return torch.from_numpy(numbers[f"{prefix}/{part}"]).to(dtype).requires_grad_()

        yield str(name), {key.split("/", 1)[1]: numbers[key] for key in numbers if key.startswith(f"{name}/")}, read


def _logits(scores: torch.Tensor) -> torch.Tensor:
    return scores.logit().squeeze(dim=2)


def test_published_attention(golden, assert_close):
    for name, wanted, read in _cases(golden, torch.float64):
        latents, fused, weights = read("encoder_outputs"), read("fused"), read("attention_weights")
        rel_sigma = float(wanted["rel_sigma"])
        for view, rows in enumerate(latents):
            assert_close(kernel_width(squared_distances(rows), rel_sigma).sqrt(), wanted["encoder_sigmas"][view], 1e-9)
            assert_close(gaussian_kernel(rows, rel_sigma), wanted["encoder_kernels"][view], 1e-9, name)
        assert_close(kernel_width(squared_distances(fused), rel_sigma).sqrt(), wanted["fused_sigma"], 1e-9)
        assert_close(gaussian_kernel(fused, rel_sigma), wanted["fused_kernel"], 1e-9, name)
        loss = attention_alignment(fused, tuple(latents), weights, rel_sigma)
        assert_close(loss, wanted["attention_loss"], 1e-9, name)
        loss.backward()
        assert_close(weights.grad, wanted["attention_grad_weights"], 1e-9, name)
        assert_close(fused.grad, wanted["attention_grad_fused"], 1e-9, name)
        assert_close(latents.grad, wanted["attention_grad_encoder_outputs"], 1e-9, name)


def test_published_game(golden, assert_close):
    for name, wanted, read in _cases(golden, torch.float64):
        other = read("disc_other_view")
        loss = generator_loss(_logits(other))
        assert_close(loss, wanted["generator_loss"], 1e-9, name)
        loss.backward()
        assert_close(other.grad, wanted["generator_grad_other_view"], 1e-9, name)
        first, other = read("disc_first_view"), read("disc_other_view")
        loss = discriminator_loss(_logits(first), _logits(other))
        assert_close(loss, wanted["discriminator_loss"], 1e-9, name)
        loss.backward()
        assert_close(first.grad, wanted["discriminator_grad_first_view"], 1e-9, name)
        assert_close(other.grad, wanted["discriminator_grad_other_view"], 1e-9, name)
        assert_close(cluster_orthogonality(read("output")), wanted["ddc2_flipped"], 1e-9, name)


def test_published_numbers_in_single_precision(golden, assert_close):
    for name, wanted, read in _cases(golden, torch.float32):
        first, other = _logits(read("disc_first_view")), _logits(read("disc_other_view"))
        latents = tuple(read("encoder_outputs"))
        losses = {
            "attention_loss": attention_alignment(
                read("fused"), latents, read("attention_weights"), float(wanted["rel_sigma"])
            ),
            "generator_loss": generator_loss(other),
            "discriminator_loss": discriminator_loss(first, other),
            "ddc2_flipped": cluster_orthogonality(read("output")),
        }
        for term, value in losses.items():
            assert value.dtype == torch.float32
            assert_close(value, wanted[term], 1e-5, f"{name} {term}")


def test_attention_by_hand():
    # Distances of 0, 1, 1.5 on a line: 0,0,0,¼,¼,1,1,2¼,2¼ → median ¼, so with rel_sigma 2 the kernel is exp(−d²).
    fused = torch.tensor([[0.0], [1.0], [1.5]], dtype=torch.float64)
    latents = (fused, fused[[1, 0, 2]])
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    # Exchanging the first two rows exchanges two pairs of entries, of which three quarters count.
    expected = 4 * (0.75 * (math.exp(-0.25) - math.exp(-2.25))) ** 2
    assert attention_alignment(fused, latents, weights, rel_sigma=2.0).item() == pytest.approx(expected)


def test_attention_vanishes_where_all_kernels_are_one():
    fused = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    # A view's own width: its scale does not matter.
    assert attention_alignment(fused, (fused, 3 * fused, fused + 1), weights).item() == pytest.approx(0, abs=1e-20)


def test_game_by_hand():
    # Scores: σ(ln 4) = 0.8, σ(−ln 4) = 0.2, σ(0) = 0.5.
    first = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]], dtype=torch.float64)
    other = torch.tensor([[-math.log(4), 0.0], [math.log(4), math.log(4)]], dtype=torch.float64)
    generator = -(math.log(0.2) + math.log(0.5)) / 2 - math.log(0.8)
    assert generator_loss(other).item() == pytest.approx(generator)
    discriminator = -(math.log(0.8) + math.log(0.5)) - math.log(0.5) - math.log(0.2)
    assert discriminator_loss(first, other).item() == pytest.approx(discriminator)


def test_saturated_scores_keep_their_gradient():
    other = torch.full((1, 2), -200.0, requires_grad=True)
    loss = generator_loss(other)
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert other.grad.tolist() == [[-0.5, -0.5]]
    first = torch.full((1, 2), -200.0, requires_grad=True)
    loss = discriminator_loss(first, torch.full((1, 2), 200.0))
    loss.backward()
    assert loss.item() == pytest.approx(400)
    assert first.grad.tolist() == [[-0.5, -0.5]]


def test_shapes_that_do_not_belong_together_are_refused():
    rows = torch.rand(4, 2)
    with pytest.raises(ValueError, match="weights must have shape"):
        attention_alignment(rows, (rows, rows), torch.ones(3))
    with pytest.raises(ValueError, match="first and other must have the same shape"):
        discriminator_loss(torch.zeros(1, 4), torch.zeros(2, 4))
