"""Figures: they hold what they say, survive what is missing, and no text covers another."""

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from study.records import Goal, TrialRecord
from study.reporting.study_figures import front, history, importance, slices, study_figures
from study.reporting.tables import report_figures
from study.reporting.trial_figures import (
    confusion_figure,
    example_pictures,
    load_arrays,
    load_part_digests,
    strongest_attack,
    trial_figures,
)
from trainables.saved_trial import DamagedCheckpoint

ROBUST = [Goal("robust/acc", "max")]
SPACE = {
    "model.adversarial_weight": {"log_uniform": [0.01, 10]},
    "model.train_eps": {"uniform": [0.02, 0.3]},
    "model.encoder": {"choice": ["cnn_small", "cnn_tiny"]},
}


def trials(count: int = 12) -> list[TrialRecord]:
    found = []
    for n in range(count):
        weight = 0.0 if n == 1 else 10 ** (-2 + 3 * n / count)
        robust = 0.2 + 0.4 * math.sin(n) ** 2
        metrics = {"clean/acc": 0.95 - robust / 5, "robust/acc": robust, "spread/robust/acc": 0.02}
        overrides = {"model.adversarial_weight": weight, "model.train_eps": 0.02 + n / 50}
        overrides |= {"model.encoder": "cnn_tiny" if n % 2 else "cnn_small"}
        found.append(
            TrialRecord(
                number=n, state="COMPLETE", values=(robust,), overrides=overrides, baseline=n < 2, round=4, rounds=4,
                metrics=metrics, budget="a",
            )
        )  # fmt: skip
    found[4] = replace(found[4], state="PRUNED", values=(), round=1)
    found[7] = replace(found[7], state="FAIL", values=(), metrics={})
    return found


def arrays(classes: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(100) % classes
    clean = (labels + 1) % classes
    gan = np.where(np.arange(100) < 40, (clean + 1) % classes, clean)
    weak = np.where(np.arange(50) < 5, (clean[:50] + 1) % classes, clean[:50])

    def table(clusters: np.ndarray) -> np.ndarray:
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (labels[: len(clusters)], clusters), 1)
        return counts

    found = {"labels": labels, "clusters/clean": clean, "clusters/gan": gan, "clusters/noise": weak}
    found |= {f"confusion/class_{name}": table(c) for name, c in (("clean", clean), ("gan", gan), ("noise", weak))}
    found |= {
        "examples/clusters_clean": clean[:3],
        "examples/clusters_attacked": gan[:3],
        "examples/labels": labels[:3],
    }
    for v in range(2):
        found[f"examples/view_{v}_clean"] = random.random((3, 1, 8, 8), dtype=np.float32)
        found[f"examples/view_{v}_attacked"] = np.clip(found[f"examples/view_{v}_clean"] + 0.1, 0, 1)
    return found


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def assert_readable(figure: Figure) -> None:
    """No visible text covers another or leaves the page."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    beyond = set()  # ticks beyond the axis' end are not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond |= {id(tick.label1) for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    boxes = []
    for text in figure.findobj(Text):
        shown = text.get_visible() and (text.axes is None or text.axes.get_visible()) and id(text) not in beyond
        if shown and text.get_text().strip():
            boxes.append((text.get_text(), text.get_window_extent(renderer)))
    page = figure.bbox
    for text, box in boxes:
        inside = box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text!r} leaves the page"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        shrunk = first.padded(-1), second.padded(-1)
        assert not shrunk[0].overlaps(shrunk[1]), f"{one!r} covers {other!r}"
    figure.savefig(io.BytesIO(), format="png")


def test_front_marks_what_is_beaten_by_none() -> None:
    records = [*trials()[:2], replace(trials()[2], metrics={"clean/acc": 0.1, "robust/acc": 0.1}, values=(0.1,))]
    # trial 0: robust 0.2, clean 0.91; trial 1: robust 0.483, clean 0.853: neither beats the other, both beat trial 2
    figure = front(records, ROBUST)
    assert figure is not None
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "best in both")
    assert list(line.get_xdata()) == pytest.approx([0.95 - (0.2 + 0.4 * math.sin(1) ** 2) / 5, 0.91])
    assert {"trial 0", "trial 1", "clean/acc (fraction)", "robust/acc (fraction)"} <= set(texts(figure))
    assert "trial 2" not in texts(figure)
    assert_readable(figure)


def test_history_steps_only_upwards() -> None:
    figure = history(trials(), ROBUST[0])
    assert figure is not None
    line = figure.axes[0].get_lines()[0]
    steps = np.asarray(line.get_ydata(), dtype=float)
    assert (np.diff(steps) >= 0).all()
    assert steps[-1] == pytest.approx(0.2 + 0.4 * math.sin(11) ** 2)  # sin² is largest at 11
    assert {"stopped early", "failed", "baseline", "searched"} <= set(texts(figure))
    assert_readable(figure)


def test_slices_use_a_log_axis_and_keep_zero_apart() -> None:
    figure = slices(trials(), ROBUST[0], SPACE)
    assert figure is not None
    weight, eps, encoder = figure.axes
    assert (weight.get_xscale(), eps.get_xscale(), encoder.get_xscale()) == ("log", "linear", "linear")
    assert [tick.get_text() for tick in weight.get_xticklabels()][:2] == ["0", "0.01"]
    assert [tick.get_text() for tick in encoder.get_xticklabels()] == ["cnn_small", "cnn_tiny"]
    assert_readable(figure)


def test_importance() -> None:
    figure = importance({"model.train_eps": 0.75, "model.adversarial_weight": 0.25}, "robust/acc")
    assert {"train_eps", "adversarial_weight", "0.75", "0.25"} <= set(texts(figure))
    assert_readable(figure)


def test_confusion_puts_what_is_right_on_the_diagonal() -> None:
    figure = confusion_figure(arrays(), "Trial 3")
    assert figure is not None
    clean, attacked = figure.axes
    assert (clean.get_title(), attacked.get_title()) == ("clean, 100 samples", "under gan, 100 samples")
    assert [tick.get_text() for tick in clean.get_xticklabels()] == ["1", "2", "3", "4", "0"]
    shares = np.asarray(clean.get_images()[0].get_array())
    assert shares.diagonal().tolist() == [1.0] * 5
    assert np.asarray(attacked.get_images()[0].get_array()).diagonal() == pytest.approx([0.6] * 5)
    assert_readable(figure)


def test_confusion_shows_the_worst_case_where_it_is_known() -> None:
    worst = {**arrays(), "clusters/robust": arrays()["clusters/gan"], "confusion/class_robust": np.eye(5, dtype=int)}
    figure = confusion_figure(worst, "Trial 3 at ε 0.1")
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["clean, 100 samples", "worst case, 5 samples"]


def test_the_attack_that_moves_most_is_shown() -> None:
    assert strongest_attack(arrays()) == "gan"
    only_probe = {"clusters/clean": np.array([0, 1]), "clusters/probe": np.array([0, 0])}
    assert strongest_attack(only_probe) == "probe"
    assert strongest_attack({"clusters/clean": np.array([0, 1])}) is None
    assert strongest_attack({}) is None


def test_pictures_show_view_change_and_cluster() -> None:
    figure = example_pictures(arrays(), "Trial 3")
    assert figure is not None
    assert len(figure.axes) == 3 * 6
    assert {"view 0", "change", "attacked", "view 1", "class 0\ncluster 1 → 2"} <= set(texts(figure))
    assert_readable(figure)


def test_colour_pictures_and_vector_views() -> None:
    found = arrays()
    found["examples/view_0_clean"] = np.zeros((3, 3, 16, 8), dtype=np.float32)
    found["examples/view_0_attacked"] = np.zeros((3, 3, 16, 8), dtype=np.float32)
    found["examples/view_1_clean"] = found["examples/view_1_attacked"] = np.zeros((3, 20), dtype=np.float32)
    figure = example_pictures(found)
    assert figure is not None
    assert len(figure.axes) == 3 * 3
    assert_readable(figure)


def test_nothing_is_drawn_from_nothing() -> None:
    assert front([], ROBUST) is None
    assert history([], ROBUST[0]) is None
    assert slices([], ROBUST[0], SPACE) is None
    assert study_figures([], [], {}) == {}
    assert trial_figures(trials()[0], {}) == {}
    assert study_figures([replace(trials()[0], state="RUNNING", values=())], ROBUST, SPACE) == {}


def test_every_figure_of_a_study_with_two_objectives() -> None:
    both = [Goal("clean/acc", "max"), Goal("robust/acc", "max")]
    records = [
        replace(r, values=(r.metrics["clean/acc"], r.metrics["robust/acc"])) if r.values else r for r in trials()
    ]
    found = study_figures(records, both, SPACE, {"model.train_eps": 1.0})
    assert sorted(found) == [
        "front", "history_clean_acc", "history_robust_acc", "importance", "slices_clean_acc", "slices_robust_acc",
    ]  # fmt: skip


def test_checkpoints_by_path_and_uri(tmp_path: Path) -> None:
    np.savez(tmp_path / "evaluation.npz", allow_pickle=False, **{"clusters/clean": np.array([1, 2])})
    (tmp_path / "config.json").write_text('{"contents": {"train": "abc"}}')
    for place in (str(tmp_path), tmp_path.as_uri()):
        assert load_arrays(place)["clusters/clean"].tolist() == [1, 2]
        assert load_part_digests(place) == {"train": "abc"}
    for place in (None, str(tmp_path / "gone"), (tmp_path / "gone").as_uri()):
        assert load_arrays(place) == {}
        assert load_part_digests(place) == {}


@pytest.mark.parametrize("content", [b"", b"PK", b"[" * 10**5, b"[]", b'{"parts": 3}', b'{"parts": [1]}', b"\xff"])
def test_checkpoints_that_are_damaged(tmp_path: Path, content: bytes) -> None:
    for name in ("evaluation.npz", "config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=f"^{tmp_path}/evaluation.npz: is damaged: it is no .npz file"):
        load_arrays(str(tmp_path))
    assert load_part_digests(str(tmp_path)) == {}


def test_a_report_names_the_arrays_that_nothing_can_be_drawn_from(tmp_path: Path) -> None:
    record = replace(trials()[0], checkpoint=str(tmp_path))
    np.savez(
        tmp_path / "evaluation.npz", allow_pickle=False, **{"clusters/clean": np.array(3), "clusters/pgd": np.ones(4)}
    )
    with pytest.raises(DamagedCheckpoint, match=f"^{tmp_path}/evaluation.npz: is damaged: "):
        report_figures([record], ROBUST, SPACE)
