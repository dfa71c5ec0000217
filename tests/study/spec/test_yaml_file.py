"""What a study's YAML may hold beyond plain keys and values, and where in it a fault is said to be."""

from pathlib import Path

import pytest

from study.cli import exit_code_of
from study.spec.study_spec import StudySpec, load_spec
from study.spec.yaml_file import SpecError, read_mapping
from study.sweep import _run, parser

STUDY = """\
x-common: &common {epochs: 4, batch_size: 25}
x-base: &base
  <<: *common
  batch_size: 50
name: merged
trial:
  <<: *base
  epochs: 6
  model: {name: ar_dmvc_am}
  dataset: {name: noisy_digits}
space:
  model.adversarial_weight: {log_uniform: [0.01, 10]}
baselines:
  - &paper {model.adversarial_weight: 1, model.train_eps: 0.2}
  - {<<: *paper, model.train_eps: 0.1}
  - <<: [*paper, {model.mitigator_weight: 2}]
objective: {metric: robust/acc, mode: max}
"""


def load(folder: Path, text: str) -> StudySpec:
    file = folder / "study.yaml"
    file.write_text(text)
    return load_spec(str(file))


def faults(folder: Path, text: str) -> str:
    with pytest.raises(SpecError) as refused:
        load(folder, text)
    return str(refused.value).replace(f"{folder}/", "")


def test_merged_keys_may_be_overridden_and_helper_blocks_are_ignored(tmp_path: Path) -> None:
    spec = load(tmp_path, STUDY)
    config = spec.trial_config({})
    assert (config.epochs, config.batch_size) == (6, 50)
    assert spec.baselines == (
        {"model.adversarial_weight": 1, "model.train_eps": 0.2},
        {"model.adversarial_weight": 1, "model.train_eps": 0.1},
        {"model.adversarial_weight": 1, "model.train_eps": 0.2, "model.mitigator_weight": 2},
    )


def test_an_override_in_a_deeper_block_that_is_merged_elsewhere(tmp_path: Path) -> None:
    """YAML's parser makes the outer mapping first, and merges into the inner one on its way."""
    file = tmp_path / "study.yaml"
    file.write_text("x-a: &a {k: 1, l: 1}\ndeep: {deeper: &b {<<: *a, k: 2}}\nouter: {<<: *b, l: 3}\n")
    assert read_mapping(str(file))[1] == {"deep": {"deeper": {"k": 2, "l": 1}}, "outer": {"k": 2, "l": 3}}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("  epochs: 6\n", "  epochs: 6\n  epochs: 7\n", "line 9, column 3: the key 'epochs' stands twice"),
        ("  <<: *base\n", "  <<: *base\n  <<: *common\n", "line 8, column 3: the key '<<' stands twice"),
        ("{<<: *paper, model", "{<<: *paper, model.train_eps: 1, model", "column 38: the key 'model.train_eps' stands"),
        ("  <<: *base\n", "  <<: 3\n", "line 7, column 7: expected a mapping or list of mappings for merging"),
        ("  <<: *base\n", "  <<: *nobody\n", "line 7, column 7: found undefined alias"),
    ],
)
def test_what_is_no_merge_stays_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert fault in faults(tmp_path, STUDY.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("epochs: 6", "epochs: 0", "study.yaml: trial.epochs: must be ≥ 1, got 0 (line 8, column 3)"),
        ("{epochs: 4, batch_size: 25}", "{epoch: 4}", "key; nearest: 'trial.epochs' (line 1, column 20)"),
        ("  model.adversarial_weight: {", "  model.adversarial_wait: {", "adversarial_weight' (line 12, column 3)"),
        ("[*paper, {model.mitigator_weight: 2}]", "{epochs: 0}", "[2].epochs: must be ≥ 1, got 0 (line 16, column 10)"),
        ("metric: robust/acc, mode: max", "metric: robust/acc", "objective.mode: must be given (line 17, column 1)"),
        ("name: merged\n", "", "study.yaml: name: must be given"),
    ],
)
def test_a_fault_says_where_its_value_stands(tmp_path: Path, old: str, new: str, fault: str) -> None:
    message = faults(tmp_path, STUDY.replace(old, new))
    assert fault in message, message


def test_a_fault_of_this_machine_says_where_its_value_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("epochs: 6", "batch_size: 5000") + "resources: {gpu: 64}\n")
    assert exit_code_of(_run, parser().parse_args([str(file), "--dry-run"])) == 2
    message = capsys.readouterr().err
    assert "or --address of a cluster that has more (line 18, column 13)" in message
    assert "study.yaml: trial.batch_size: must be ≤ 450" in message
    assert "got 5000 (line 8, column 3)" in message
    assert exit_code_of(_run, parser().parse_args([str(file), "--dry-run", "--set", "resources.gpu=65"])) == 2
    assert "asks for 65" in (other := capsys.readouterr().err)
    assert "(line" not in other
