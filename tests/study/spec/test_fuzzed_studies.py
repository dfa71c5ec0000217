"""Studies drawn at random around the bundled ones: each gives a plan of what would run, or one short refusal.

The same are drawn in every run; `ARDMVC_FUZZ=2000 pytest --hypothesis-seed=11 …` draws so many others.
"""

import contextlib
import copy
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import LONGEST_MESSAGE, fuzzed
from hypothesis import event, example, given
from hypothesis import strategies as st

from study.planning.dry_run import dry_run
from study.planning.preflight import environment_faults
from study.spec.distributions import KINDS
from study.spec.faults import dotted_keys
from study.spec.study_spec import StudySpec, load_spec
from study.spec.yaml_file import SpecError, split_setting
from trainables.config import AttackTrialConfig, TrialConfig

SECONDS = 20
"""Of one example: a dry run plans a whole study."""

TEXTS = {
    entry.name: entry.read_text()
    for entry in resources.files("search_spaces").iterdir()
    if entry.name.endswith(".yaml")
}
TRIAL_PATHS = sorted({*dotted_keys(TrialConfig, {}), *dotted_keys(AttackTrialConfig, {})})
PATHS = sorted(
    {
        *dotted_keys(StudySpec, {}),
        *(f"trial.{path}" for path in TRIAL_PATHS),
        *(f"space.{path}" for path in TRIAL_PATHS),
        *("trial.model", "trial.dataset", "trial.evaluation", "trial.evaluation.gan", "trial.attack"),
        *("sampler", "pruner", "limits", "resources", "storage"),
    }
)

NUMBERS = st.one_of(
    st.integers(-3, 200),
    st.floats(0, 1),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -1, 1e-300, 1e300, 5e-324, 1e12]),
)
WORDS = st.sampled_from(
    [
        *("", "~", "x", "comvc", "sem", "tpe", "median", "model", "noisy_digits", "npz", "robust/acc", "auto", "both"),
        *(
            "nan",
            "-.inf",
            "1e-4",
            "1e400",
            "1:30",
            "0x10",
            "010",
            "1_000",
            "2026-01-01",
            "yes",
            "=",
            "<<",
            "é",
            "\ud800",
        ),
        *("\0", "\x1b[2J", "a\nb", "s3://me:secret@host", "study:x/1", "x" * 300, "9" * 5000, "../..", "/dev/zero"),
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=5))
DISTRIBUTIONS = st.builds(
    lambda kind, ends: {kind: ends}, st.sampled_from(KINDS), st.lists(SCALARS, min_size=1, max_size=4)
)
VALUES = st.one_of(
    SCALARS,
    st.lists(NUMBERS, max_size=4),
    DISTRIBUTIONS,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TRIAL_PATHS) | WORDS, inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
EDITS = st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=3)

TOKENS = st.sampled_from(
    [
        *(
            "&a ",
            "*a",
            "<<: *a\n",
            "!!binary ",
            "!!python/none ",
            "!x ",
            "? ",
            ": ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            "#",
            "|\n",
            ">-\n",
        ),
        *(
            "%YAML 3.1\n",
            "---\n",
            "...\n",
            "\t",
            "\n",
            "\r",
            "\x85",
            "\ufeff",
            "\0",
            "\x07",
            "'",
            '"',
            '"\\UFFFFFFFF"',
            "@",
            "`",
        ),
        *(
            "9" * 5000,
            "-",
            "1e999",
            ".nan",
            "null",
            "true",
            "0o7",
            "é",
            "\U0001f600",
            "name: x\n",
            "a: &b [*b]\n",
            "  " * 40,
        ),
    ]
)


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working folder without data or databases."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("ARDMVC_DATA", "ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
            patch.delenv(variable, raising=False)
        patch.chdir(tmp_path_factory.mktemp("fuzzed"))
        yield


def answered(content: bytes, *flags: str) -> None:
    """Plans the study as `--dry-run` does. Nothing but a SpecError may come, with a short message."""
    Path("study.yaml").write_bytes(content)
    refusal = None
    try:
        spec = load_spec("study.yaml", flags)
        if faults := environment_faults(spec, cluster=False):
            raise SpecError(faults)
        yaml.safe_load(dry_run(spec, as_json=False, here=False))
        assert StudySpec.model_validate(spec.resolved()).identity() == spec.identity()
    except SpecError as error:
        refusal = str(error)
    event("planned" if refusal is None else "refused")
    if refusal is not None:
        assert refusal.strip()
        assert len(refusal.encode()) <= LONGEST_MESSAGE
        assert "secret" not in refusal
    assert [str(path) for path in Path().iterdir()] == ["study.yaml"]


def edited(study: dict[str, Any], path: str, value: Any) -> None:
    """Puts the value at the path, as far as there is one."""
    head, _, rest = path.partition(".")
    parts = [head, rest] if head == "space" and rest else path.split(".")
    place = study
    for part in parts[:-1]:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[parts[-1]] = value


@fuzzed(40, SECONDS)
@given(name=st.sampled_from(sorted(TEXTS)), edits=EDITS)
def test_real_keys_with_strange_values(name: str, edits: list[tuple[str, Any]]) -> None:
    study = copy.deepcopy(yaml.safe_load(TEXTS[name]))
    for path, value in edits:
        edited(study, path, value)
    answered(yaml.safe_dump(study, allow_unicode=True).encode(errors="surrogatepass"))


@fuzzed(30, SECONDS)
@example(name="smoke.yaml", edits=[("name", "x" * 5000)])
@example(name="smoke.yaml", edits=[("space.model.train_eps", {"quantised": [0, 1, 5e-324]})])
@given(name=st.sampled_from(sorted(TEXTS)), edits=EDITS)
def test_flags_with_strange_values(name: str, edits: list[tuple[str, Any]]) -> None:
    texts = [yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n") for _, value in edits]
    flags = [f"{path}={text.strip()}" for (path, _), text in zip(edits, texts, strict=True)]
    answered(TEXTS[name].encode(), *flags)


@fuzzed(40, SECONDS)
@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_damaged_texts(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = begin + data.draw(st.integers(0, 30))
        way = data.draw(st.sampled_from(["cut", "put", "replace", "double", "move"]))
        if way == "cut":
            text = text[:begin] + text[end:]
        elif way == "double":
            text = text[:end] + text[begin:]
        elif way == "move":
            text = text[:begin] + text[end:] + text[begin:end]
        else:
            text = text[:begin] + data.draw(TOKENS) + text[begin if way == "put" else end :]
    answered(text.encode())


@fuzzed(20, SECONDS)
@example(content=b"a: !!bool maybe")
@example(content=b"a: !!int ''")
@example(content=b'a: "\\UFFFFFFFF"')
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    answered(content)


@fuzzed(20, SECONDS)
@given(setting=st.text(max_size=40))
def test_any_setting(setting: str) -> None:
    with contextlib.suppress(ValueError):
        path, _ = split_setting(setting)
        assert path
        assert path.isprintable()
