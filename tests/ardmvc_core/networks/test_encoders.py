"""Encoders and decoders fit their shapes and sizes, the fusion and the head are what the papers say."""

import math

import pytest
import torch

from ardmvc_core.networks.decoders import build_decoder, dense_decoder
from ardmvc_core.networks.encoders import Encoder, bf16_encoders, build_encoder, build_encoders, dense_encoder
from ardmvc_core.networks.heads import ClusteringHead, WeightedMean


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "shape", "features", "parameters"),
    [
        ("cnn_small", (1, 28, 28), 1024, 111_680),
        ("cnn_small", (3, 128, 64), 24_128, 112_832),
        ("cnn_tiny", (1, 28, 28), 15_488, 19_008),
        ("cnn_tiny", (3, 128, 64), 226_432, 19_584),
        ("cnn_large", (3, 128, 64), 3072, 186_816),
        # 8×8: three 3×3 convolutions 1→32→32→64 with bias, BatchNorm on the last two
        ("cnn_digits", (1, 8, 8), 256, 320 + 9_248 + 64 + 18_496 + 128),
    ],
)
def test_published_sizes(kind, shape, features, parameters):
    encoder = build_encoder(kind, shape)
    assert encoder.out_features == features
    assert _count(encoder) == parameters
    assert encoder(torch.rand(2, *shape)).shape == (2, features)


def test_small_tiny_and_large_end_as_published():
    views = torch.rand(4, 1, 28, 28)
    assert build_encoder("cnn_small", (1, 28, 28))(views).min() >= 0
    assert build_encoder("cnn_digits", (1, 8, 8))(torch.rand(4, 1, 8, 8)).min() >= 0
    assert build_encoder("cnn_tiny", (1, 28, 28))(views).min() < 0  # its last layer is BatchNorm


def test_flattening_is_by_channel_then_row_then_column():
    encoder = build_encoder("cnn_small", (1, 28, 28))
    views = torch.rand(2, 1, 28, 28)
    image = torch.nn.Sequential(*list(encoder.layers)[:-1])(views)
    assert torch.equal(encoder(views), image.reshape(2, -1))


@pytest.mark.parametrize(
    ("shape", "features"),
    [((1, 8, 8), 256), ((1, 28, 28), 1024), ((3, 128, 64), 24_128), ((5,), 128)],
)
def test_auto_goes_by_the_shape(shape, features):
    assert build_encoder("auto", shape).out_features == features


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("cnn_large", (1, 28, 28)), ("cnn_small", (1, 8, 8)), ("cnn_digits", (1, 3, 8)), ("cnn_small", (7,))],
)
def test_encoder_that_does_not_fit_is_refused_with_both_named(kind, shape):
    with pytest.raises(ValueError, match=kind) as error:
        build_encoder(kind, shape)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(("kind", "shape"), [("dense", (28, 28)), ("auto", (3, 4)), ("vgg", (1, 28, 28))])
def test_other_misfits_are_refused(kind, shape):
    with pytest.raises(ValueError, match=kind):
        build_encoder(kind, shape)


def test_dense_encoder_has_the_widths_asked_for():
    encoder = dense_encoder((2,), (8, 5))
    assert [type(layer).__name__ for layer in encoder.layers] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "ReLU"]
    assert encoder(torch.rand(3, 2)).shape == (3, 5)


def test_dense_networks_read_images_by_channel_then_row_then_column():
    torch.manual_seed(0)
    images = torch.rand(3, 2, 4, 5)
    flat, whole = dense_encoder((40,), (8, 6)), build_encoder("dense", (2, 4, 5), (8, 6))
    whole.layers[1:].load_state_dict({f"{int(k[0]) + 1}{k[1:]}": v for k, v in flat.layers.state_dict().items()})
    assert torch.equal(whole(images), flat(images.reshape(3, -1)))
    way_back, decoder = dense_decoder((40,), (8, 6), sigmoid=True), build_decoder("dense", (2, 4, 5), (8, 6))
    decoder.load_state_dict(way_back.state_dict())
    latents = whole(images)
    assert torch.equal(decoder(latents), way_back(latents).reshape(3, 2, 4, 5))


def test_views_must_have_latents_of_one_width():
    with pytest.raises(ValueError, match=r"same width.*\[1024, 128\]"):
        build_encoders("auto", ((1, 28, 28), (5,)), (256, 128))
    assert len(build_encoders("auto", ((1, 28, 28), (5,)), (256, 1024))) == 2
    with pytest.raises(ValueError, match="at least two views"):
        build_encoders("auto", ((1, 28, 28),), (256, 128))


def test_fusion_starts_as_the_mean_and_weighs_by_softmax():
    fusion = WeightedMean(3)
    latents = tuple(torch.rand(2, 4) for _ in range(3))
    assert torch.allclose(fusion(latents), torch.stack(latents).mean(dim=0))
    fusion.weights.data = torch.tensor([0.0, 0.6931472, 1.0986123])  # log 1, log 2, log 3
    wanted = (latents[0] + 2 * latents[1] + 3 * latents[2]) / 6
    assert torch.allclose(fusion(latents), wanted)


def test_head_normalises_after_the_relu():
    torch.manual_seed(0)
    head = ClusteringHead(6, 3)
    hidden, logits = head(torch.randn(50, 6))
    assert hidden.shape == (50, 100)
    assert logits.shape == (50, 3)
    assert hidden.min() < 0
    assert torch.allclose(hidden.mean(dim=0), torch.zeros(100), atol=1e-5)
    with pytest.raises(ValueError, match="n_clusters must be ≥ 2"):
        ClusteringHead(6, 1)


def test_units_that_are_off_on_training_samples_stay_off_in_inference_mode():
    torch.manual_seed(0)
    head = ClusteringHead(6, 3, 20, mute_dead_units=True)
    with torch.no_grad():
        head.hidden[0].bias[:5] -= 100
        training = torch.randn(50, 6)
        for _ in range(200):
            head(training)  # the running variance of a dead unit ends at nearly 0
        head.eval()
        before = head(training)
        strange = training.clone()
        strange[:, 0] += 400 / head.hidden[0].weight[0, 0]
        assert head.hidden[0](strange)[:, 0].min() > 0
        raw = head(strange)[0][:, 0]
        head.find_dead_units(training)
        assert (head.alive == 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert all(map(torch.equal, head(training), before))
        muted = head(strange)[0][:, 0]
        assert raw.min() > 1000
        assert muted.abs().max() < 1
        head.train()
        assert head(torch.cat([training, strange]))[0][:, 0].abs().max() > 0.5  # training does not know of it


def test_published_heads_have_no_entry_of_it():
    assert "alive" not in ClusteringHead(6, 3).state_dict()
    assert "alive" in ClusteringHead(6, 3, mute_dead_units=True).state_dict()


def test_bf16_holds_inside_only_and_latents_stay_float32():
    torch.manual_seed(0)
    model = torch.nn.ModuleList(build_encoders("cnn_digits", ((1, 8, 8),) * 2, (4, 4)))
    views = torch.rand(4, 1, 8, 8)
    full = model[0](views)
    with bf16_encoders(model):
        rounded = model[0](views)
    with pytest.raises(RuntimeError, match="inside"), bf16_encoders(model):
        raise RuntimeError("inside")
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, full)
    assert torch.allclose(rounded, full, atol=0.1)
    assert all(not encoder.bf16 for encoder in model if isinstance(encoder, Encoder))
    assert torch.equal(model[0](views), full)


@pytest.mark.parametrize(
    ("kind", "shape", "latent_shape", "parameters"),
    [
        ("cnn_small", (1, 28, 28), (64, 4, 4), 111_489),
        ("cnn_small", (3, 128, 64), (64, 29, 13), 112_643),
        # two 3×3 transposed convolutions 32→32 with bias and BatchNorm, one to C channels
        ("cnn_tiny", (1, 28, 28), (32, 22, 22), 2 * (9_248 + 64) + 289),
        ("cnn_tiny", (3, 128, 64), (32, 122, 58), 2 * (9_248 + 64) + 867),
        # seven of 64→64, BatchNorm on three of them, one to 3 channels
        ("cnn_large", (3, 128, 64), (64, 12, 4), 7 * 36_928 + 3 * 128 + 1_731),
        # 64→32→32→1, BatchNorm after the first two
        ("cnn_digits", (1, 8, 8), (64, 2, 2), (18_464 + 64) + (9_248 + 64) + 289),
    ],
)
def test_published_sizes_of_decoders(kind, shape, latent_shape, parameters):
    decoder = build_decoder(kind, shape)
    assert decoder.latent_shape == latent_shape
    assert math.prod(latent_shape) == build_encoder(kind, shape).out_features
    assert _count(decoder) == parameters
    assert decoder(torch.rand(2, math.prod(latent_shape))).shape == (2, *shape)


def test_small_decoder_has_the_published_sizes_in_between():
    decoder = build_decoder("cnn_small", (1, 28, 28))
    image = torch.rand(2, 64, 4, 4)
    sizes = []
    for layer in decoder.layers:
        image = layer(image)
        if isinstance(layer, torch.nn.Upsample | torch.nn.ConvTranspose2d):
            sizes.append(tuple(image.shape[1:]))
    assert sizes == [(64, 8, 8), (64, 10, 10), (64, 12, 12), (64, 24, 24), (64, 26, 26), (1, 28, 28)]
    assert decoder.layers[0].mode == "nearest"


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("cnn_small", (1, 29, 31)),
        ("cnn_small", (2, 17, 30)),
        ("cnn_large", (1, 61, 70)),
        ("cnn_tiny", (2, 9, 7)),
        ("cnn_digits", (1, 9, 11)),
        ("auto", (3, 16, 19)),
        ("auto", (1, 5, 7)),
    ],
)
def test_image_of_any_size_comes_back_in_it(kind, shape):
    encoder, decoder = build_encoder(kind, shape), build_decoder(kind, shape)
    images = torch.rand(2, *shape)
    assert decoder(encoder(images)).shape == images.shape


@pytest.mark.parametrize(("kind", "shape"), [("cnn_small", (1, 28, 28)), ("cnn_tiny", (1, 9, 9)), ("auto", (1, 8, 9))])
def test_decoded_image_is_between_0_and_1_and_trains_every_parameter(kind, shape):
    torch.manual_seed(0)
    decoder = build_decoder(kind, shape)
    image = decoder(10 * torch.randn(4, math.prod(decoder.latent_shape)))
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.01
    (image * torch.rand_like(image)).sum().backward()
    assert all(parameter.grad.any() for parameter in decoder.parameters())


def test_decoder_reads_channel_then_row_then_column():
    decoder = build_decoder("cnn_digits", (1, 8, 8)).eval()
    image = torch.rand(3, *decoder.latent_shape)
    assert torch.equal(decoder(image.flatten(1)), decoder.layers(image))


def test_dense_decoder_mirrors_the_encoder():
    decoder = dense_decoder((7,), (8, 5))
    assert [type(layer).__name__ for layer in decoder.layers] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert _count(decoder) == (5 * 8 + 8) + 2 * 8 + (8 * 7 + 7)
    assert decoder(torch.rand(3, 5)).shape == (3, 7)
    values = build_decoder("auto", (7,), (8, 5), sigmoid=True)(100 * torch.randn(50, 5))
    assert values.min() >= 0
    assert values.max() <= 1
    values = build_decoder("dense", (7,), (8, 5))(100 * torch.randn(50, 5))
    assert values.min() < 0
