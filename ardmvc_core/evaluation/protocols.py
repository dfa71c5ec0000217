"""How robust a trained model is: the probe of every round, the strict evaluation at the end, the published protocol.

strict: target in inference mode and verified unchanged, cluster → class map fixed on clean data, worst case per
sample over all attacks. official: as published (training-mode target, map fitted again after the attack), for
comparison with published tables only.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ardmvc_core.attacks.budget import AttackBudget
from ardmvc_core.attacks.generators.gan import FittedGAN, fit_gan
from ardmvc_core.attacks.noise import NOISE_KINDS, NoiseConfig, prepare_noise
from ardmvc_core.attacks.searches.pgd import frozen
from ardmvc_core.attacks.searches.white_box import WhiteBoxConfig, prepare_white_box
from ardmvc_core.attacks.target import EvaluationError, assign, attacked_views, device_of, inference_target
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import ResolvedBudget
from ardmvc_core.evaluation.metrics import clustering_scores, eps_name, flip_rate
from ardmvc_core.evaluation.score_card import Evaluation, ScoreCard, as_array
from ardmvc_core.evaluation.worst_case import evaluate_suite, scored_samples
from ardmvc_core.networks.encoders import bf16_encoders
from ardmvc_core.networks.kmeans import KMeansHead, embeddings, published_clusters
from ardmvc_core.seeding import derive_seed, generator
from ardmvc_core.types import Perturb, Views


@dataclass(frozen=True, kw_only=True)
class PreparedAttack:
    """An attack that is ready to be scored."""

    name: str
    """Group of its metrics."""
    perturb: Perturb
    budget: AttackBudget
    """What its output is projected into, and the noise floor is drawn from."""
    in_worst_case: bool = True
    """Whether it counts for `robust/…`."""


def probe(model: nn.Module, data: MultiViewDataset, budget: ResolvedBudget) -> Evaluation:
    """The cheap evaluation of every round: clean scores and a short white-box attack on assignments.

    Returns: `clean/…`, `guard/…` and `probe/{acc,nmi,ari,acc_refit,flip}`.
    Raises: EvaluationError as `evaluate_attacks`.
    """
    data = scored_samples(model, data, budget)
    config = WhiteBoxConfig(steps=budget.probe_steps, step_ratio=budget.step_ratio, batch_size=budget.batch_size)
    perturb = prepare_white_box(
        config, model, data.views, generator(budget.seed, "probe"), budget=budget.attack_budget()
    )
    with inference_target(model) as verify:
        clean = assign(model, data.views, budget.batch_size)
        card = ScoreCard(as_array(data.labels), clean, data.n_clusters)
        views = tuple(view[: budget.probe_samples] for view in data.views)
        with _attack_precision(model, budget):
            attacked = attacked_views("probe", perturb, model, views, budget.attack_budget())
        clusters = assign(model, attacked, budget.batch_size)
        verify("the probe")
    card.attack("probe", clusters)
    return card.evaluation()


def evaluate_strict(
    model: nn.Module,
    data: MultiViewDataset,
    attacker_views: Views,
    budget: ResolvedBudget,
    surrogates: Sequence[nn.Module] = (),
) -> Evaluation:
    """The full evaluation: the budget's tier of the suite; without one the noise floor, every white-box objective, and
    the GAN at each of its ε.

    Args: model: left as it was found. data: the scored part. attacker_views: V × (M, *shape_v), M ≥ 2, what the GAN is
        fitted on; which part that is, is the caller's choice. surrogates: for the transfer attack of a tier.
    Returns: with a tier, as `evaluate_suite`; else what `evaluate_attacks` gives for `pgd_<objective>`, `gan` and
        `gan_<ε>`, and `guard/gan_saturation`, the share of the GAN's output values without gradient at the main ε.
    Raises: EvaluationError as `evaluate_attacks`.
    """
    data = scored_samples(model, data, budget)
    if budget.tier is not None:
        return evaluate_suite(model, data, attacker_views, budget, surrogates=surrogates).evaluation
    main = budget.attack_budget()
    attacks = []
    for objective in budget.objectives:
        config = WhiteBoxConfig(
            objective=objective,
            steps=budget.steps,
            step_ratio=budget.step_ratio,
            restarts=budget.restarts,
            batch_size=budget.batch_size,
        )
        name = f"pgd_{objective}"
        perturb = prepare_white_box(config, model, data.views, generator(budget.seed, name), budget=main)
        attacks.append(PreparedAttack(name=name, perturb=perturb, budget=main))
    gans = _fitted_gans(model, attacker_views, budget)
    evaluation = evaluate_attacks(model, data, [*attacks, *gans], budget)
    gan = gans[0].perturb
    assert isinstance(gan, FittedGAN)
    return replace(evaluation, values={**evaluation.values, "guard/gan_saturation": gan.saturation(data.views)})


def _fitted_gans(model: nn.Module, attacker_views: Views, budget: ResolvedBudget) -> list[PreparedAttack]:
    """The GAN at the main ε (first, and the only one in the worst case) and at the further ones."""
    device = device_of(model, attacker_views)
    views = tuple(view.to(device) for view in attacker_views)
    main = budget.attack_budget()
    budgets = [("gan", main), *((f"gan_{eps_name(eps)}", replace(main, eps=eps)) for eps in budget.gan_eps)]
    gans = []
    with inference_target(model) as verify:
        for name, attack_budget in budgets:
            with _attack_precision(model, budget):
                fitted = fit_gan(budget.gan, attack_budget, model, views, generator(budget.seed, name))
            verify(f"the fitting of '{name}'")
            gans.append(PreparedAttack(name=name, perturb=fitted, budget=attack_budget, in_worst_case=name == "gan"))
    return gans


def evaluate_attacks(
    model: nn.Module, data: MultiViewDataset, attacks: Sequence[PreparedAttack], budget: ResolvedBudget
) -> Evaluation:
    """Scores prepared attacks on a model in inference mode; their output is projected, whatever they claim.

    Args: model: left as it was found. data: the scored part; without labels only label-free metrics appear. attacks:
        at least one, with different names. budget: read for ε, samples, noise, batch size and seed.
    Returns: `clean/{acc,nmi,ari}`, `guard/{clusters_used,min_share,weak_attacks}`, `noise/flip` (worst of the kinds,
        each the mean over its draws; `noise_<ε>/flip` at further ε), per attack `<name>/{acc,nmi,ari,acc_refit,flip}`,
        and `robust/{acc,nmi,ari,flip,kappa}` over the attacks that are in the worst case. Noise is a floor and not part
        of the worst case, which would otherwise grow with the number of draws.
    Raises: EvaluationError if the target is in training mode, a buffer or parameter changes, an attack returns values
        that are not finite or views of another form, or the model gives logits that are not finite.
    """
    if not attacks or len({attack.name for attack in attacks}) != len(attacks):
        raise ValueError(f"attacks must have different names, at least one, got {[attack.name for attack in attacks]}")
    data = scored_samples(model, data, budget)
    with inference_target(model) as verify:
        card = ScoreCard(as_array(data.labels), assign(model, data.views, budget.batch_size), data.n_clusters)
        verify("the clean pass")
        floors = _noise_floors(model, data.views, card, [attack.budget for attack in attacks], budget)
        verify("the noise")
        strongest = 0.0
        for attack in attacks:
            with _attack_precision(model, budget):
                attacked = attacked_views(attack.name, attack.perturb, model, data.views, attack.budget)
            clusters = assign(model, attacked, budget.batch_size)
            verify(f"attack '{attack.name}'")
            card.attack(attack.name, clusters, floors.get(attack.budget))
            flip = card.values[f"{attack.name}/flip"]
            if attack is attacks[0] or (attack.in_worst_case and flip > strongest):
                strongest = flip
                card.examples(data.views, attacked, clusters)
    worst_case = tuple(attack.name for attack in attacks if attack.in_worst_case)
    if worst_case:
        card.robust(worst_case)
    return card.evaluation()


def _attack_precision(model: nn.Module, budget: ResolvedBudget) -> AbstractContextManager[None]:
    """While perturbations are looked for; never while they are scored."""
    return bf16_encoders(model, budget.attack_precision == "bf16")


def _noise_floors(
    model: nn.Module, views: Views, card: ScoreCard, budgets: Sequence[AttackBudget], budget: ResolvedBudget
) -> dict[AttackBudget, float]:
    """Flip rate of noise for each distinct budget; also put on the card."""
    if not budget.noise_draws:
        return {}
    floors = {}
    main = budget.attack_budget()
    for attack_budget in dict.fromkeys([main, *budgets]):
        worst = 0.0
        for kind in NOISE_KINDS:
            stream = generator(budget.seed, "noise", kind)
            flips = []
            for _ in range(budget.noise_draws):
                noise = prepare_noise(NoiseConfig(kind=kind), model, views, stream, budget=attack_budget)
                flips.append(flip_rate(card.clean, assign(model, noise(model, views), budget.batch_size)))
            worst = max(worst, sum(flips) / len(flips))
        floors[attack_budget] = worst
        name = "noise" if attack_budget == main else f"noise_{eps_name(attack_budget.eps)}"
        card.values[f"{name}/flip"] = worst
    return floors


def evaluate_official(model: nn.Module, data: MultiViewDataset, budget: ResolvedBudget) -> Evaluation:
    """The published protocol: target in training mode, attacker fitted and scored on the same data, map fitted again.

    Batch statistics undo what moves a whole batch, and a new map forgives any consistent relabelling, so these numbers
    flatter a model: they stand beside published tables and nowhere else. Batches are shuffled from the budget's seed.

    Args: model: not changed; a copy is attacked, because its running statistics drift. data: the attacked half, with
        labels.
    Returns: `official/{pre,post}/{acc,nmi,ari}`: one clean pass before the attacker is fitted, and one attacked pass
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
        attack_budget = budget.attack_budget()
        with _attack_precision(target, budget):
            gan = fit_gan(budget.official, attack_budget, target, data.views, generator(budget.seed, "official"))
        attacked = attacked_views("gan", gan, target, data.views, attack_budget)
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
    return scores.named(f"official/{phase}")
