"""The GAN attack against golden numbers of the published code, and its losses by hand."""

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.generators.gan import (
    FittedGAN,
    GANConfig,
    GANNetworks,
    GANTrainer,
    added,
    discriminator_terms,
    fit_gan,
    gan_step,
    generator_term,
    norm_term,
    official_gan,
    perturbations,
)
from ardmvc_core.attacks.generators.gan_networks import Discriminator, Generator, initialise_normal
from ardmvc_core.attacks.objectives.shifts import complementarity_shift, consistency_shift
from ardmvc_core.attacks.searches.pgd import frozen
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.models.comvc import CoMVCConfig
from ardmvc_core.models.simvc import build

VARIANTS = ("official_init", "soft")
VANISHING = 1e-9


def state(file, prefix, rename=lambda name: name):
    """Tensors of one prefix, in double precision where they are floating."""
    found = {}
    for key in file.files:
        if key.startswith(prefix):
            value = torch.from_numpy(file[key])
            found[rename(key[len(prefix) :])] = value.double() if value.is_floating_point() else value
    return found


@pytest.fixture(scope="module")
def published(golden):
    """Per variant: target, networks, views, budget and the file, as before the published step."""
    file, weights = golden("attack"), golden("models_comvc")
    views = tuple(torch.from_numpy(file[f"view{v}"]).double() for v in range(2))
    shapes = tuple(tuple(view.shape[1:]) for view in views)
    target = state(weights, "cnn/state/", lambda name: name.replace("clustering_module.", "head."))
    budget = Threat(eps=float(file["perturbation_eps"]), bounds=tuple(file["box"].tolist()))

    def make(variant):
        model = build(CoMVCConfig(encoder="cnn_small"), shapes, int(weights["cnn/n_clusters"])).double()
        model.load_state_dict(target)
        networks = GANNetworks(official_gan(), shapes, 0, torch.device("cpu"))
        networks.generator.double().load_state_dict(state(file, f"{variant}/generator/"))
        networks.discriminator.double().load_state_dict(state(file, f"{variant}/discriminator/"))
        return SimpleNamespace(file=file, views=views, budget=budget, model=model, networks=networks)

    return make


def test_official_preset_has_the_published_constants(golden):
    file, config = golden("attack"), official_gan()
    assert config.mu_com == config.mu_con == float(file["adv_weight"])
    assert config.mu_norm == float(file["perturb_weight"])
    assert config.learning_rate == float(file["learning_rate"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_networks_and_perturbation(published, assert_close, variant):
    case = published(variant)
    want = {name: case.file[f"{variant}/{name}"] for name in ("disc_real", "disc_fake")}
    outputs = case.networks.generator(case.views)
    moves = perturbations(outputs, official_gan(), case.budget)
    attacked = added(case.views, moves, case.budget)
    for v in range(2):
        assert_close(outputs[v], case.file[f"{variant}/generator_output{v}"], 2e-7, "generator output")
        assert_close(moves[v], case.file[f"{variant}/perturbation{v}"], 2e-7, "perturbation")
        assert_close(attacked[v], case.file[f"{variant}/adversarial_view{v}"], 2e-7, "attacked view")
    discriminator = copy.deepcopy(case.networks.discriminator)
    assert_close(discriminator(case.views).sigmoid(), want["disc_real"], 1e-9, "scores of clean views")
    assert_close(discriminator(attacked).sigmoid(), want["disc_fake"], 1e-9, "scores of attacked views")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_distances(published, assert_close, variant, mode):
    case = published(variant)
    case.model.train(mode == "train")
    moves = perturbations(case.networks.generator(case.views), official_gan(), case.budget)
    with torch.no_grad():
        clean, attacked = case.model(case.views), case.model(added(case.views, moves, case.budget))
    com = complementarity_shift(clean, attacked, "norm_sum")
    con = consistency_shift(clean, attacked, "norm_sum")
    assert_close(com + con, case.file[f"{variant}/multi_hid_{mode}"], 1e-9, "both shifts")
    assert_close(con, case.file[f"{variant}/hid_{mode}"], 1e-9, "shift of the consensus")
    assert_close(com, case.file[f"{variant}/multi_hid_{mode}_parts"][1:].sum(), 1e-9, "shift of the latents")


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_published_step(published, assert_close, variant):
    case = published(variant)
    file, networks = case.file, case.networks
    before = {
        "generator": copy.deepcopy(dict(networks.generator.named_parameters())),
        "discriminator": copy.deepcopy(dict(networks.discriminator.named_parameters())),
    }
    case.model.train()
    with frozen(case.model):
        terms = gan_step(networks, official_gan(), case.budget, case.model, case.views)

    want = {
        name: float(file[f"{variant}/loss_{name}"]) for name in ("d_real", "d_fake", "d", "g_gan", "perturb", "adv")
    }
    assert_close(terms["real"], want["d_real"], 1e-9, "real")
    assert_close(terms["fake"], want["d_fake"], 1e-9, "fake")
    assert_close(terms["real"] + terms["fake"], want["d"], 1e-9, "both")
    assert_close(terms["gan"], want["g_gan"], 1e-9, "gan")
    assert_close(terms["norm"], want["perturb"], 1e-9, "norm")
    assert_close(-(terms["com"] + terms["con"]), want["adv"], 1e-9, "shifts")
    reported = terms["norm"] - 5 * (terms["com"] + terms["con"])
    assert_close(reported, float(file[f"{variant}/loss_g_reported"]), 1e-9, "reported loss")
    assert all(parameter.grad is None for parameter in case.model.parameters())

    for part in ("generator", "discriminator"):
        network = getattr(networks, part)
        parameters = dict(network.named_parameters())
        names = file[f"{variant}/{part}_param_names"].tolist()
        assert sorted(names) == sorted(parameters)
        for i, name in enumerate(names):
            gradient = parameters[name].grad
            norm = float(file[f"{variant}/{part}_grad_l2"][i])
            if norm < VANISHING:  # in front of a normalisation: the stored gradient is rounding noise
                continue
            what = f"{part} {name}"
            assert_close(gradient.norm(), norm, 1e-9, f"gradient norm of {what}")
            assert_close(gradient.sum(), file[f"{variant}/{part}_grad_sum"][i], 1e-9, f"gradient sum of {what}")
            assert_close(gradient, file[f"{variant}/{part}_grad/{name}"], 2e-7, f"gradient of {what}")
            change = parameters[name].detach() - before[part][name]
            assert_close(change.norm(), file[f"{variant}/{part}_change_l2"][i], 1e-6, f"change of {what}")
            first = change.flatten()[:8]
            first = torch.cat([first, first.new_zeros(8 - len(first))])
            stored = torch.from_numpy(file[f"{variant}/{part}_change_first8"][i]).nan_to_num()
            assert_close(first, stored, 1e-6, f"first changes of {what}")
            total = parameters[name].sum()
            assert_close(total, file[f"{variant}/{part}_sum_after"][i], 1e-6, f"weights of {what} after the step")

    after = dict(networks.discriminator.named_buffers())
    for name, value in state(file, f"{variant}/discriminator_buffers_after/").items():
        assert_close(after[name], value, 1e-9, f"discriminator buffer {name}")
    target = dict(case.model.named_buffers())
    for name, value in state(file, f"{variant}/target_buffers_after/").items():
        assert_close(target[name.replace("clustering_module.", "head.")], value, 1e-9, f"target buffer {name}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_scores_after_the_discriminator_step(published, assert_close, variant):
    case = published(variant)
    case.model.train()
    with torch.no_grad():
        moves = perturbations(case.networks.generator(case.views), official_gan(), case.budget)
        attacked = added(case.views, moves, case.budget)
    with frozen(case.model):
        gan_step(case.networks, official_gan(), case.budget, case.model, case.views)
    scores = case.networks.discriminator(attacked).sigmoid()
    assert_close(scores, case.file[f"{variant}/disc_fake_after_d_step"], 1e-9, "scores after the step")


def test_game_losses_by_hand():
    real, fake = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])  # scores ½, ½ and ¾, ½
    terms = discriminator_terms(real, fake, "minimax")
    assert terms[0].item() == pytest.approx(math.log(2))
    assert terms[1].item() == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert generator_term(fake, "minimax").item() == pytest.approx(-(math.log(4) + math.log(2)) / 2)
    terms = discriminator_terms(real, fake, "lsgan")
    assert [term.item() for term in terms] == pytest.approx([1 / 4, (9 / 16 + 1 / 4) / 2])
    assert generator_term(fake, "lsgan").item() == pytest.approx((1 / 16 + 1 / 4) / 2)
    assert discriminator_terms(real, torch.tensor([[500.0, 0.0]]), "minimax")[1].isfinite()


def test_norm_terms_by_hand():
    moves = (torch.tensor([[0.3, 0.4], [0.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.6, 0.8]]))  # lengths ½, 0 and 1, 1
    budget = Threat(eps=0.2)
    hinge = GANConfig(norm_budget=0.09)
    assert norm_term(moves, hinge, budget).item() == pytest.approx((0.25 - 0.09) / 2 + (1 - 0.09))
    # Without a bound of its own, it is ε² times two values: 0.08.
    assert norm_term(moves, GANConfig(), budget).item() == pytest.approx((0.25 - 0.08) / 2 + (1 - 0.08))
    length = norm_term(moves, GANConfig(norm_penalty="mean_l2"), budget)
    assert length.item() == pytest.approx(0.25 + 1)


def test_outputs_become_perturbations_in_the_ball():
    outputs = (torch.tensor([[-1.0, 0.1, 0.5]]), torch.tensor([[1.0, 0.5, 0.0]]))
    budget = Threat(eps=(0.2, 0.4), attacked_views=(0,))
    scaled = perturbations(outputs, GANConfig(output="tanh"), budget)
    torch.testing.assert_close(scaled[0], torch.tensor([[-0.2, 0.02, 0.1]]))
    cut = perturbations(outputs, GANConfig(output="clamp"), budget)
    torch.testing.assert_close(cut[0], torch.tensor([[-0.2, 0.1, 0.2]]))
    assert not scaled[1].any()
    assert not cut[1].any()
    views = (torch.tensor([[0.1, 0.5, 0.95]]),)
    torch.testing.assert_close(
        added(views, (torch.tensor([[-0.2, 0.0, 0.2]]),), budget)[0], torch.tensor([[0, 0.5, 1]])
    )


@pytest.mark.parametrize(
    "field",
    [
        {"gan_loss": "wgan"},
        {"distance": "l1"},
        {"norm_penalty": "none"},
        {"output": "sigmoid"},
        {"init": "xavier"},
        {"mu_com": -1.0},
        {"mu_con": math.nan},
        {"mu_norm": math.inf},
        {"norm_budget": 0.0},
        {"epochs": 0},
        {"learning_rate": math.nan},
        {"decay_share": 1.5},
        {"batch_size": 1},
    ],
)
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        GANConfig(**field)


SHAPES = [
    (1, 28, 28),
    (1, 8, 8),
    (3, 128, 64),
    (1, 27, 30),
    (2, 16, 40),
    (1, 3, 3),
    (1, 2, 2),
    (1, 1, 9),
    (17,),
    (2, 5),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_networks_fit_any_view(shape):
    torch.manual_seed(0)
    views = (torch.rand(4, *shape), torch.rand(4, 6))
    shapes = (shape, (6,))
    outputs = Generator(shapes)(views)
    assert [output.shape for output in outputs] == [view.shape for view in views]
    assert all(output.abs().max() <= 1 for output in outputs)
    logits = Discriminator(shapes)(views)
    assert logits.shape == (2, 4)
    # Scores are per sample: without batch statistics no other sample matters.
    discriminator = Discriminator(shapes).eval()
    torch.testing.assert_close(discriminator(views)[:, :1], discriminator(tuple(view[:1] for view in views)))


def test_published_layers_have_the_published_size():
    assert sum(p.numel() for p in Generator(((1, 28, 28),)).parameters()) == 11936
    assert sum(p.numel() for p in Discriminator(((1, 28, 28),)).parameters()) == 10553


def test_normal_initialisation_saturates_the_output():
    torch.manual_seed(0)
    generator = Generator(((1, 28, 28),))
    initialise_normal(generator)
    weights = torch.cat([m.weight.detach().flatten() for m in generator.modules() if isinstance(m, nn.Conv2d)])
    assert weights.mean().abs() < 0.05
    assert weights.std().item() == pytest.approx(1, abs=0.05)
    output = generator((torch.rand(20, 1, 28, 28),))[0]
    assert (output.abs() > 0.99).float().mean() > 0.4  # with images 55–72 %


class Linear(nn.Module):
    """Two views of 8 × 8; cluster 1 where the mean of all values is above 0.9."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def encode(self, views):
        return tuple(view.flatten(1) for view in views)

    def forward(self, views):
        latents = self.encode(views)
        score = self.scale * (torch.cat(latents, dim=1).mean(1) - 0.9)
        logits = torch.stack([-score, score], dim=1)
        return SimpleNamespace(view_latents=latents, consensus=logits, logits=logits, assignments=logits.softmax(1))


@pytest.fixture
def attackable():
    stream = torch.Generator().manual_seed(3)
    # Means near 0.96: upwards the bounds stop a shift, so that the largest one crosses the boundary.
    views = tuple(torch.rand(20, 1, 8, 8, generator=stream) * 0.08 + 0.92 for _ in range(2))
    return Linear(), views


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def test_fitted_generator_crosses_the_boundary(attackable):
    model, views = attackable
    config = GANConfig(epochs=15, learning_rate=3e-3, batch_size=10, mu_com=0.0)
    gan = fit_gan(config, Threat(eps=0.15), model, views, seeded())
    before, after = model(views).logits.argmax(1), model(gan(model, views)).logits.argmax(1)
    assert before.tolist() == [1] * 20
    assert (before != after).float().mean() > 0.9
    assert model.scale.grad is None
    assert model.scale.requires_grad


def trainer(attackable, **fields):
    model, views = attackable
    config = GANConfig(**{"epochs": 4, "batch_size": 8, "decay_share": 0.5, **fields})
    return GANTrainer(config, Threat(eps=0.1), model, views, seeded())


def test_stop_and_go_on_is_exact(attackable):
    through, first = trainer(attackable), trainer(attackable)
    terms = [through.run_epoch() for _ in range(4)]
    kept = io.BytesIO()
    first.run_epoch()
    torch.save(first.state_dict(), kept)
    first.run_epoch()  # what happens after saving does not reach the saved state
    kept.seek(0)
    again = trainer(attackable)
    again.load_state_dict(torch.load(kept, weights_only=True))
    assert again.epoch == 1
    assert [again.run_epoch() for _ in range(3)] == terms[1:]
    assert again.finished
    for want, got in zip(through.perturb()(*attackable), again.perturb()(*attackable), strict=True):
        assert torch.equal(want, got)


def test_state_holds_the_statistics_of_a_target_in_training_mode(attackable):
    target = nn.BatchNorm1d(3)
    first = trainer(attackable)
    first.model = target
    assert set(first.state_dict()["target_buffers"]) == {"running_mean", "running_var", "num_batches_tracked"}
    state = first.state_dict()
    target(torch.rand(5, 3))
    first.load_state_dict(state)
    assert not target.running_mean.any()
    target.eval()
    assert first.state_dict()["target_buffers"] == {}


def test_both_optimizers_start_anew_at_a_tenth(attackable):
    fit = trainer(attackable, learning_rate=1e-2)
    for _ in range(2):
        fit.run_epoch()
    old = fit.networks.generator_optimizer
    fit.run_epoch()
    for optimizer in (fit.networks.generator_optimizer, fit.networks.discriminator_optimizer):
        assert optimizer is not old
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
        steps = {float(entry["step"]) for entry in optimizer.state_dict()["state"].values()}
        assert steps == {2.0}  # ⌊20 / 8⌋ batches of one epoch: moments were dropped


def test_finished_attack_does_not_follow_later_epochs(attackable):
    fit = trainer(attackable)
    fit.run_epoch()
    early = fit.perturb()
    before = early(*attackable)
    fit.run_epoch()
    for want, got, later in zip(before, early(*attackable), fit.perturb()(*attackable), strict=True):
        assert torch.equal(want, got)
        assert not torch.equal(want, later)


def test_fitting_leaves_the_global_stream_alone(attackable):
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    trainer(attackable).run_epoch()
    assert torch.equal(torch.rand(3), want)


def test_a_single_sample_is_refused(attackable):
    model, views = attackable
    with pytest.raises(ValueError, match="at least 2 samples"):
        GANTrainer(GANConfig(), Threat(eps=0.1), model, tuple(view[:1] for view in views), seeded())


@pytest.mark.parametrize(("output", "share"), [("tanh", 0.5), ("clamp", 0.75)])
def test_saturation_by_hand(output, share):
    class Fixed(nn.Module):
        def forward(self, views):
            return (torch.tensor([[0.995, -1.0, 0.5, 0.0]]).expand(len(views[0]), 4), views[1])

    budget = Threat(eps=0.3, attacked_views=(0,))
    gan = FittedGAN(Fixed(), GANConfig(output=output), budget)
    assert gan.saturation((torch.rand(3, 4), torch.ones(3, 2))) == share
