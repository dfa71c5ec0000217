"""SEM against the published numbers, its schedule, and its configuration."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from ardmvc_core.losses.sem import info_nce
from ardmvc_core.losses.view_weights import cmi_weights, jsd_weights, mmd_weights
from ardmvc_core.models import sem
from ardmvc_core.models.sem import SEM, SEMConfig, SEMNetwork, build, contrast_terms, stages
from ardmvc_core.networks.encoders import bf16_encoders
from ardmvc_core.networks.kmeans import calibrate_kmeans
from ardmvc_core.training import Trainer
from ardmvc_core.types import StepContext

SMALL = {"hidden_widths": (6, 5, 7), "feature_width": 4, "latent_width": 3, "kmeans_restarts": 2}
SHAPES = [((1, 8, 8), (1, 8, 8)), ((5,), (3,), (4,))]


def _views(shapes, samples: int = 12):
    stream = torch.Generator().manual_seed(2)
    return tuple(torch.rand(samples, *shape, generator=stream) for shape in shapes)


def _context(seed: int = 0) -> StepContext:
    return StepContext(epoch=0, step=0, generator=torch.Generator().manual_seed(seed))


def _network(shapes, **fields) -> tuple[SEMConfig, SEMNetwork]:
    torch.manual_seed(0)
    config = SEMConfig(**{**SMALL, **fields})
    return config, build(config, shapes, 3)


def _splitmix(seed: int, count: int) -> np.ndarray:
    """The first `count` outputs of SplitMix64 as uniform numbers in [0, 1)."""
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def _our_name(name: str) -> str:
    part, view, _, layer = name.split(".", 3)
    if part == "feature_contrastive_modules":
        return f"projections.{view}.{layer}"
    return f"{part}.{view}.layers.{layer}"


class Case:
    """One stored network with its views; `restore` puts the defined weights back."""

    def __init__(self, numbers, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.numbers = numbers
        self.name = name
        self.names = [_our_name(str(stored)) for stored in self["param_names"]]
        shapes = [tuple(int(size) for size in str(shape).split(",")) for shape in self["param_shapes"]]
        weights = [index for index, shape in enumerate(shapes) if len(shape) == 2]
        self.state = {}
        for index, (shape, seed) in enumerate(zip(shapes, self["param_seeds"], strict=True)):
            fan_in = shapes[max(w for w in weights if w <= index)][1]  # a bias follows its weight
            uniform = _splitmix(int(seed), math.prod(shape)).reshape(shape)
            values = (2 * uniform - 1) * float(self["gain"]) / math.sqrt(fan_in)
            self.state[self.names[index]] = torch.from_numpy(values)
        self.views = tuple(torch.from_numpy(self[f"x{v}"]).to(dtype) for v in range(len(self["dims"])))
        widths = {"feature_width": int(self["feature_dim"]), "latent_width": int(self["high_feature_dim"])}
        self.fields = {**widths, "learning_rate": float(numbers["net/learning_rate"])}
        self.network = build(SEMConfig(**self.fields), tuple((int(dim),) for dim in self["dims"]), 3).to(dtype)
        self.restore()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[f"net/{self.name}/{name}"]

    def restore(self) -> None:
        buffers = dict(self.network.named_buffers())
        self.network.load_state_dict({**buffers, **self.state})
        self.network.zero_grad()

    def parameters(self) -> list[torch.Tensor]:
        found = dict(self.network.named_parameters())
        assert set(found) == set(self.names)
        return [found[name] for name in self.names]

    def noisy(self, views, mode, generator):
        """Stands in for `corrupted`, with the stored noise."""
        assert mode == "dae"
        return tuple(view + torch.from_numpy(self[f"noise{v}"]).to(view) for v, view in enumerate(views))


_CASES: dict[str, Case] = {}


@pytest.fixture(params=["v2_784_512_128", "v3_small"])
def case(request, golden) -> Case:
    if request.param not in _CASES:  # some ten million weights are generated once, not for every test
        _CASES[request.param] = Case(golden("sem"), request.param)
    _CASES[request.param].restore()
    return _CASES[request.param]


def _first(tensor: torch.Tensor, count: int = 4) -> np.ndarray:
    entries = np.zeros(count)
    entries[: min(count, tensor.numel())] = tensor.detach().flatten()[:count].double().numpy()
    return entries


def _lengths(parameters) -> list[float]:
    return [0.0 if p.grad is None else p.grad.double().norm().item() for p in parameters]


def test_weights_are_generated_as_defined(golden, assert_close, case):
    numbers = golden("sem")
    wanted = numbers["splitmix_check_values"]
    assert_close(_splitmix(int(numbers["splitmix_check_seed"]), len(wanted)), wanted, 1e-15)
    assert_close([p.norm().item() for p in case.parameters()], case["param_l2"], 1e-9)
    assert_close(np.stack([_first(p) for p in case.parameters()]), case["param_first4"], 1e-15)


def test_published_cases_are_those_that_are_tested(golden):
    assert set(golden("sem")["net/case_names"]) == {"v2_784_512_128", "v3_small"}


def test_published_pass(assert_close, case):
    output = case.network(case.views)
    for v, made in enumerate(case.network.reconstruct(output.features)):
        assert_close(output.features[v], case[f"h{v}"], 1e-9, f"h{v}")
        assert_close(output.view_latents[v], case[f"z{v}"], 1e-9, f"z{v}")
        assert_close(made, case[f"xr{v}"], 1e-9, f"xr{v}")
    side_by_side = np.concatenate([case[f"z{v}"] for v in range(len(case.views))], axis=1)
    assert_close(output.embedding, side_by_side, 1e-9)
    assert_close(output.consensus, side_by_side, 1e-9)


@pytest.mark.parametrize(("contrast", "mode"), [("infonce", "ae"), ("pscl", "ae"), ("rince", "ae"), ("infonce", "dae")])
def test_published_training_step(monkeypatch, assert_close, case, contrast, mode):
    _training_step(monkeypatch, assert_close, case, contrast, mode, (1e-9, 1e-9))


@pytest.mark.parametrize(("contrast", "mode"), [("infonce", "ae"), ("pscl", "ae"), ("rince", "ae"), ("infonce", "dae")])
def test_published_training_step_in_single_precision(monkeypatch, golden, assert_close, contrast, mode):
    single = Case(golden("sem"), "v3_small", torch.float32)
    _training_step(monkeypatch, assert_close, single, contrast, mode, (4e-5, 1e-4))


def _training_step(monkeypatch, assert_close, case, contrast, mode, tolerances) -> None:
    step = f"step_{contrast}_{mode}"
    loss_tolerance, gradient_tolerance = tolerances
    if mode == "dae":
        monkeypatch.setattr(sem, "corrupted", case.noisy)
    config = SEMConfig(**case.fields, contrast=contrast, reconstruction=mode, warmup_epochs=0)
    case.network.view_weights.copy_(torch.from_numpy(case["view_weights"]))
    latents = case.network.encode(case.views)
    for v, w in product(range(len(latents)), repeat=2):
        lone = torch.zeros(len(latents), len(latents), dtype=latents[0].dtype)
        lone[v, w] = 1
        pair = sum(contrast_terms(config, latents, lone).values())
        assert_close(pair, case[f"{step}/pair_losses"][v, w], loss_tolerance, f"pair {v} {w}")
    (objective,) = stages(config, 1)[0].objectives
    terms = objective.terms(case.network, case.views, _context())
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, case[f"{step}/total"], loss_tolerance, "total")
    optimizer = objective.optimizer(case.network)
    total.backward()
    parameters = case.parameters()
    assert_close(_lengths(parameters), case[f"{step}/grad_l2"], gradient_tolerance, "gradient lengths")
    first = np.stack([_first(p.grad) for p in parameters])
    assert_close(first, case[f"{step}/grad_first4"], gradient_tolerance, "gradients")
    optimizer.step()
    if latents[0].dtype == torch.float64:
        sums = [p.detach().sum().item() for p in parameters]
        assert_close(sums, case[f"{step}/param_sum_after"], 1e-9, "sums after Adam")
        assert_close(np.stack([_first(p) for p in parameters]), case[f"{step}/param_first4_after"], 1e-9, "after Adam")


@pytest.mark.parametrize("mode", ["ae", "dae"])
def test_published_warmup(monkeypatch, assert_close, case, mode):
    if mode == "dae":
        monkeypatch.setattr(sem, "corrupted", case.noisy)
    warmup = stages(SEMConfig(**case.fields, reconstruction=mode), 1)[0]
    terms = warmup.objectives[0].terms(case.network, case.views, _context())
    assert list(terms) == [f"reconstruction_{v}" for v in range(len(case.views))]
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, case[f"rec_{mode}/total"], 1e-9)
    total.backward()
    assert_close(_lengths(case.parameters()), case[f"rec_{mode}/grad_l2"], 1e-9)


@pytest.mark.parametrize("n_clusters", [3, 10])
@pytest.mark.parametrize("shape", [(784,), (1, 28, 28)])
def test_two_digit_views_need_the_published_number_of_parameters(shape, n_clusters):
    model = build(SEMConfig(), (shape, shape), n_clusters)
    assert sum(p.numel() for p in model.parameters()) == 10_809_920


def test_image_is_read_row_by_row_and_comes_back_as_an_image():
    _, images = _network(SHAPES[0])
    _, vectors = _network(((64,), (64,)))
    vectors.load_state_dict(images.state_dict())
    views = _views(SHAPES[0])
    flat = tuple(view.reshape(len(view), 64) for view in views)
    output = images(views)
    assert torch.equal(output.embedding, vectors(flat).embedding)
    for view, made in zip(views, images.reconstruct(output.features), strict=True):
        assert made.shape == view.shape
    assert torch.equal(made.flatten(1), vectors.reconstruct(output.features)[1])


def test_latents_have_length_one_and_are_what_is_clustered():
    _, model = _network(SHAPES[1])
    output = model(_views(SHAPES[1]))
    for latent in output.view_latents:
        assert torch.allclose(latent.norm(dim=1), torch.ones(12))
    calibrate_kmeans(model, _views(SHAPES[1]), 0)
    distances = torch.cdist(torch.cat(output.view_latents, dim=1), model.head.centroids)
    assert torch.equal(model(_views(SHAPES[1])).logits.argmax(1), distances.argmin(1))


def test_encoders_run_in_bf16_and_their_features_do_not_leave_so():
    _, model = _network(SHAPES[1])
    plain = model(_views(SHAPES[1]))
    with bf16_encoders(model):
        rounded = model(_views(SHAPES[1]))
    assert rounded.features[0].dtype == torch.float32
    assert not torch.equal(rounded.features[0], plain.features[0])
    assert torch.allclose(rounded.features[0], plain.features[0], atol=0.05)


def test_every_ordered_pair_counts_with_its_own_weight():
    latents = tuple(torch.nn.functional.normalize(torch.rand(6, 4), dim=1) for _ in range(3))
    weights = torch.arange(9.0).reshape(3, 3)
    terms = contrast_terms(SEMConfig(), latents, weights)
    assert set(terms) == {f"contrast_{v}_{w}" for v in range(3) for w in range(v, 3)}
    by_hand = sum(weights[v, w] * info_nce(latents[v], latents[w]) for v in range(3) for w in range(3))
    assert sum(terms.values()).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("mode", ["dae", "mae"])
def test_contrast_compares_clean_views_and_noise_comes_from_the_steps_stream(mode):
    config, model = _network(SHAPES[1], reconstruction=mode, warmup_epochs=0, reconstruction_weight=0.5)
    views = _views(SHAPES[1])
    (objective,) = stages(config, 1)[0].objectives
    before = torch.get_rng_state()
    noisy, again, other = (objective.terms(model, views, _context(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    clean = stages(SEMConfig(**SMALL), 1)[1].objectives[0].terms(model, views, _context(1))
    for name in clean:
        assert torch.equal(noisy[name], again[name])
        assert torch.equal(noisy[name], clean[name]) == name.startswith("contrast")
        assert torch.equal(noisy[name], other[name]) == name.startswith("contrast")
    warmup = stages(SEMConfig(**SMALL, reconstruction=mode), 1)[0].objectives[0].terms(model, views, _context(1))
    for name, value in warmup.items():
        assert value.item() == pytest.approx(2 * noisy[name].item())


@pytest.mark.parametrize(
    ("fields", "epochs", "wanted"),
    [
        ({}, 300, [("warmup", 100), ("contrast_1", 100), ("contrast_2", 100), ("contrast_3", 100)]),
        ({"warmup_epochs": 0}, 10, [("contrast_1", 4), ("contrast_2", 3), ("contrast_3", 3)]),
        ({"warmup_epochs": 2}, 2, [("warmup", 2), ("contrast_1", 1), ("contrast_2", 1)]),
        ({"warmup_epochs": 0, "rounds": 1}, 7, [("contrast_1", 7)]),
    ],
)
def test_epochs_are_those_of_the_contrast_and_split_evenly(fields, epochs, wanted):
    plan = stages(SEMConfig(**fields), epochs)
    assert [(stage.name, stage.epochs) for stage in plan] == wanted
    assert all(stage.renew_optimizers == (stage.name != "warmup") for stage in plan)
    assert all((stage.prepare is None) == (stage.name == "warmup") for stage in plan)


def test_adam_may_be_kept_within_a_round():
    assert not any(stage.renew_optimizers for stage in stages(SEMConfig(renew_optimizer=False), 6))


def test_a_corrupted_reconstruction_takes_a_second_pass():
    passes = {
        mode: [stage.objectives[0].passes for stage in stages(SEMConfig(reconstruction=mode, rounds=1), 1)]
        for mode in ("ae", "dae", "mae")
    }
    assert passes == {"ae": [1, 1], "dae": [1, 2], "mae": [1, 2]}


def _by_sign(features, *_) -> np.ndarray:
    """Stands in for k-means, whose clusters depend on the draw."""
    return (features[:, 0] > np.median(features[:, 0])).astype(int)


@pytest.mark.parametrize("measure", ["cmi", "jsd", "mmd"])
def test_first_round_weighs_by_features_and_later_ones_by_latents(monkeypatch, measure):
    monkeypatch.setattr(sem, "view_clusters", _by_sign)
    config, model = _network(SHAPES[1], measure=measure, mmd_samples=8)
    views = _views(SHAPES[1])
    first, second, third = stages(config, 3)[1:]
    output = model(views)
    for stage, rows in ((first, output.features), (second, output.view_latents), (third, output.view_latents)):
        model.view_weights.fill_(math.nan)
        assert stage.prepare is not None
        stage.prepare(model, views, 5)
        if measure == "cmi":
            wanted = cmi_weights([_by_sign(view.detach().numpy()) for view in rows])
        else:
            wanted = jsd_weights(rows) if measure == "jsd" else mmd_weights(rows, 8)
        assert torch.allclose(model.view_weights.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
def test_trains_every_parameter_in_one_epoch(shapes):
    torch.manual_seed(0)
    config = SEMConfig(warmup_epochs=0, kmeans_restarts=2)
    model = SEM.build(config, shapes, 3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    trainer = Trainer(model, SEM.stages(config, 1), _views(shapes), batch_size=6, seed=1)
    losses = trainer.run_epoch()
    assert trainer.finished
    assert losses["total"] == pytest.approx(sum(v for k, v in losses.items() if k != "total"))
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())


def _trainer(mode: str) -> tuple[Trainer, SEMNetwork]:
    config, model = _network(SHAPES[1], warmup_epochs=1, reconstruction=mode)
    return Trainer(model, stages(config, 5), _views(SHAPES[1]), batch_size=6, seed=1), model


@pytest.mark.parametrize("done", range(6))
def test_resumed_training_has_the_same_view_weights_and_ends_the_same(done):
    whole, model = _trainer("dae")
    part, _ = _trainer("dae")
    for _ in range(done):
        part.run_epoch()
    rest, resumed = _trainer("dae")
    rest.load_state_dict(part.state_dict())
    while not whole.finished:
        whole.run_epoch()
    while not rest.finished:
        rest.run_epoch()
    assert not torch.equal(model.view_weights, torch.ones(3, 3))
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_widths", (5, 0, 5)),
        ("hidden_widths", (5, 5)),
        ("feature_width", 0),
        ("latent_width", 0),
        ("learning_rate", math.nan),
        ("warmup_epochs", -1),
        ("rounds", 0),
        ("contrast", "cosine"),
        ("temperature", 0.0),
        ("temperature", math.inf),
        ("pscl_squared_radius", math.nan),
        ("rince_temperature", -1.0),
        ("rince_strength", 0.0),
        ("rince_q", 0.0),
        ("rince_q", 1.1),
        ("rince_q", math.nan),
        ("measure", "hsic"),
        ("kmeans_restarts", 0),
        ("mmd_samples", 1),
        ("reconstruction", "vae"),
        ("reconstruction_weight", -0.1),
        ("reconstruction_weight", math.nan),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        SEMConfig(**{field: value})


def test_a_single_view_and_a_missing_view_are_refused():
    with pytest.raises(ValueError, match="at least two views"):
        build(SEMConfig(**SMALL), ((5,),), 3)
    with pytest.raises(ValueError, match="views must be 3 tensors"):
        _network(SHAPES[1])[1](_views(SHAPES[1])[:2])
