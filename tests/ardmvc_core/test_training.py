"""The trainer: exact continuation, fresh batches, stages, and its refusals."""

import io
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from ardmvc_core.models import MODELS
from ardmvc_core.models.ar_dmvc import ARDMVCAMConfig, ARDMVCConfig
from ardmvc_core.models.comvc import CoMVCConfig
from ardmvc_core.seeding import seed_everything
from ardmvc_core.training import NonFiniteLoss, Trainer
from ardmvc_core.types import Stage, StageObjective

SHAPES = ((1, 8, 8),) * 3
SWITCHED_ON = ARDMVCAMConfig(
    train_steps=2,
    train_step_ratio=0.5,
    inner_objective="both",
    inner_pairs="all",
    inner_updates_statistics=True,
    kl_direction="code",
    kl_stop_gradient=True,
)


def _views(samples: int = 20, shapes=SHAPES):
    stream = torch.Generator().manual_seed(2)
    return tuple(torch.rand(samples, *shape, generator=stream) for shape in shapes)


def _trainer(config, *, epochs: int = 4, shapes=SHAPES, start: int = 0, **options) -> Trainer:
    seed_everything(start)
    model = MODELS[config.name].build(config, shapes, 3)
    stages = MODELS[config.name].stages(config, epochs)
    return Trainer(model, stages, _views(shapes=shapes), **{"batch_size": 6, "seed": 7, **options})


def _through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [SWITCHED_ON, ARDMVCAMConfig(train_steps=2), CoMVCConfig()])
def test_four_epochs_are_two_and_a_checkpoint_and_two(config, precision):
    whole = _trainer(config, precision=precision)
    losses = [whole.run_epoch() for _ in range(4)]

    first = _trainer(config, precision=precision)
    begun = [first.run_epoch() for _ in range(2)]
    state = _through_a_file(first.state_dict())
    second = _trainer(config, start=99, precision=precision)  # other weights, other global streams
    second.load_state_dict(state)
    assert second.epoch == 2
    assert begun + [second.run_epoch() for _ in range(2)] == losses
    assert second.finished
    assert _same(whole.state_dict(), second.state_dict())


def test_state_is_a_copy():
    trainer = _trainer(CoMVCConfig())
    trainer.run_epoch()
    state = trainer.state_dict()
    kept = _through_a_file(state)
    trainer.run_epoch()
    assert _same(state, kept)


@pytest.mark.parametrize("config", [ARDMVCConfig(adversarial_weight=0), ARDMVCAMConfig()])
def test_without_weights_it_is_comvc_bit_for_bit(config):
    if isinstance(config, ARDMVCAMConfig):
        config = replace(config, adversarial_weight=0.0, mitigator_weight=0.0)
    plain, robust = _trainer(CoMVCConfig(mute_dead_units=True)), _trainer(config)
    for _ in range(3):
        assert plain.run_epoch() == robust.run_epoch()
    assert _same(plain.state_dict(), robust.state_dict())


def test_attack_during_training_changes_the_result():
    plain, robust = _trainer(CoMVCConfig()), _trainer(ARDMVCConfig(train_steps=1))
    plain.run_epoch()
    robust.run_epoch()
    assert not _same(plain.state_dict()["model"], robust.state_dict()["model"])


def test_bf16_trains_and_leaves_the_model_in_fp32():
    full, rounded = _trainer(ARDMVCConfig(train_steps=1)), _trainer(ARDMVCConfig(train_steps=1), precision="bf16")
    exact, coarse = full.run_epoch(), rounded.run_epoch()
    assert coarse != exact
    assert coarse["total"] == pytest.approx(exact["total"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())
    assert not any(getattr(module, "bf16", False) for module in rounded.model.modules())


class _Recorder(nn.Module):
    """A network of one number that the tests' objectives pull about."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self.other = nn.Parameter(torch.zeros(()))


def _sgd(name: str):
    return lambda model: torch.optim.SGD([getattr(model, name)], lr=1.0)


def _pull(target: str, towards: float = 1.0):
    return lambda model, views, step: {f"{target}_term": -towards * getattr(model, target)}


def test_last_incomplete_batch_is_dropped_and_the_rest_is_seen_once():
    seen = []

    def terms(model, views, step):
        seen.append((step.epoch, step.step, views[0][:, 0].tolist()))
        return {"pull": model.number * 1.0}

    stage = Stage(name="train", epochs=2, objectives=(StageObjective(terms=terms, optimizer=_sgd("number")),))
    rows = torch.arange(8.0)[:, None]
    trainer = Trainer(_Recorder(), (stage,), (rows, rows), batch_size=3, seed=0)
    trainer.run_epoch()
    trainer.run_epoch()
    assert [(epoch, step, len(batch)) for epoch, step, batch in seen] == [(0, 0, 3), (0, 1, 3), (1, 2, 3), (1, 3, 3)]
    orders = [seen[0][2] + seen[1][2], seen[2][2] + seen[3][2]]
    assert all(len(set(order)) == 6 for order in orders)
    assert orders[0] != orders[1]


def test_stages_follow_each_other_with_their_own_preparation_and_optimizers():
    prepared = []
    stages = tuple(
        Stage(
            name=name,
            epochs=epochs,
            objectives=(StageObjective(terms=_pull(target), optimizer=_sgd(target)),),
            prepare=lambda model, views, seed, name=name: prepared.append((name, len(views[0]))),
        )
        for name, epochs, target in (("first", 2, "number"), ("second", 1, "other"))
    )
    trainer = Trainer(_Recorder(), stages, (torch.rand(4, 1),) * 2, batch_size=2, seed=0)
    names = []
    while not trainer.finished:
        names.append(trainer.stage_name)
        trainer.run_epoch()
    assert names == ["first", "first", "second"]
    assert trainer.stage_name == "second"
    assert prepared == [("first", 4), ("second", 4)]
    assert (trainer.epoch, trainer.epochs, trainer.step) == (3, 3, 6)
    assert (trainer.model.number.item(), trainer.model.other.item()) == (4.0, 2.0)
    with pytest.raises(RuntimeError, match="all 3 epochs"):
        trainer.run_epoch()


def test_preparation_is_not_repeated_after_a_checkpoint():
    prepared = []
    stage = Stage(
        name="train",
        epochs=3,
        objectives=(StageObjective(terms=_pull("number"), optimizer=_sgd("number")),),
        prepare=lambda model, views, seed: prepared.append(1),
    )
    views = (torch.rand(4, 1),) * 2
    first = Trainer(_Recorder(), (stage,), views, batch_size=2, seed=0)
    first.run_epoch()
    second = Trainer(_Recorder(), (stage,), views, batch_size=2, seed=0)
    second.load_state_dict(_through_a_file(first.state_dict()))
    second.run_epoch()
    assert prepared == [1]


def test_objectives_take_turns_and_leave_no_gradient_behind():
    # Each loss has gradients on both numbers, but each optimizer moves one: by 1 per batch, not by what the other left.
    def both(name):
        return lambda model, views, step: {name: -(model.number + model.other)}

    objectives = tuple(StageObjective(terms=both(f"for_{name}"), optimizer=_sgd(name)) for name in ("number", "other"))
    stage = Stage(name="train", epochs=1, objectives=objectives)
    trainer = Trainer(_Recorder(), (stage,), (torch.rand(6, 1),) * 2, batch_size=2, seed=0)
    losses = trainer.run_epoch()
    assert (trainer.model.number.item(), trainer.model.other.item()) == (3.0, 3.0)
    # Before the steps the sum of the numbers is 0, 2, 4 for the first objective and 1, 3, 5 for the second.
    assert losses == {"for_number": -2.0, "for_other": -3.0, "total": -5.0}


def test_non_finite_loss_names_stage_epoch_step_and_term_before_the_optimizer_moves():
    def terms(model, views, step):
        bad = float("nan") if step.step >= 3 else 0.0
        return {"good": -model.number, "bad": model.number * bad}

    stages = tuple(
        Stage(name=name, epochs=1, objectives=(StageObjective(terms=terms, optimizer=_sgd("number")),))
        for name in ("warm-up", "train")
    )
    trainer = Trainer(_Recorder(), stages, (torch.rand(4, 1),) * 2, batch_size=2, seed=0)
    trainer.run_epoch()
    with pytest.raises(NonFiniteLoss, match="bad is not finite in stage 'train', epoch 1, step 3") as error:
        trainer.run_epoch()
    assert (error.value.stage, error.value.epoch, error.value.step, error.value.term) == ("train", 1, 3, "bad")
    assert trainer.model.number.item() == 3.0
    copy = pickle.loads(pickle.dumps(error.value))
    assert (str(copy), copy.term) == (str(error.value), "bad")


def test_check_at_the_end_of_the_epoch_names_the_earliest_step():
    def terms(model, views, step):
        early, late = (float("inf") if step.step >= first else 0.0 for first in (1, 2))
        return {"late": model.number + late, "early": model.number - early}

    stage = Stage(name="train", epochs=1, objectives=(StageObjective(terms=terms, optimizer=_sgd("number")),))
    trainer = Trainer(_Recorder(), (stage,), (torch.rand(8, 1),) * 2, batch_size=2, seed=0)
    trainer._checks_every_step = False  # as on an accelerator
    with pytest.raises(NonFiniteLoss, match="early is not finite in stage 'train', epoch 0, step 1"):
        trainer.run_epoch()
    assert trainer.step == 4


def test_infinite_gradient_of_a_finite_loss_is_found_at_the_end_of_the_epoch():
    def terms(model, views, step):
        return {"root": model.number.sqrt()}  # 0 with an infinite slope

    stage = Stage(name="train", epochs=1, objectives=(StageObjective(terms=terms, optimizer=_sgd("number")),))
    trainer = Trainer(_Recorder(), (stage,), (torch.rand(2, 1),) * 2, batch_size=2, seed=0)
    with pytest.raises(NonFiniteLoss, match="a parameter is not finite in stage 'train', epoch 0"):
        trainer.run_epoch()


def test_black_and_constant_views_train_without_nan():
    trainer = _trainer(ARDMVCAMConfig(train_steps=1), epochs=1)
    trainer._views = tuple(torch.zeros_like(view) for view in trainer._views)
    assert all(value == value for value in trainer.run_epoch().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 21}, "batch_size must be ≤ the number of samples 20, got 21"),
        ({"batch_size": 1}, "batch_size must be ≥ 2"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16"),
        ({"epochs": 0}, "≥ 1 epoch"),
    ],
)
def test_impossible_training_is_refused_before_it_starts(options, message):
    with pytest.raises(ValueError, match=message):
        _trainer(CoMVCConfig(), **options)


def test_checkpoint_of_another_training_is_refused_with_the_difference():
    first, second = _trainer(CoMVCConfig()), _trainer(CoMVCConfig(), batch_size=5)
    with pytest.raises(ValueError, match="batch_size 6 → 5"):
        second.load_state_dict(first.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_continues_exactly_on_a_gpu(precision):
    def make(start: int) -> Trainer:
        seed_everything(start)
        model = MODELS["ar_dmvc_am"].build(SWITCHED_ON, SHAPES, 3).cuda()
        stages = MODELS["ar_dmvc_am"].stages(SWITCHED_ON, 4)
        return Trainer(model, stages, _views(), batch_size=6, seed=7, precision=precision)

    whole, first, second = make(0), make(0), make(1)
    losses = [whole.run_epoch() for _ in range(4)]
    begun = [first.run_epoch() for _ in range(2)]
    second.load_state_dict(_through_a_file(first.state_dict()))
    assert begun + [second.run_epoch() for _ in range(2)] == losses
    assert _same(whole.state_dict()["model"], second.state_dict()["model"])
