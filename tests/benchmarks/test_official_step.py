"""The recipe beside the authors' code: what it refuses, and that it calls what a copy of their repository has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "official_step.py"
SMALL = ("--samples", "4", "--repeats", "1", "--precisions", "fp32")
STAND_IN = {  # functions and classes with the names and arguments of the authors', and a note of each call
    "calls.py": "def note(line):\n    with open(__file__ + '.log', 'a') as log:\n        log.write(line + '\\n')\n",
    "config/__init__.py": """
from types import SimpleNamespace
def get_experiment_config(data_name, model_name):
    return f"{data_name}_{model_name}", SimpleNamespace(model_config=(2, 784, 10))
""",
    "models/__init__.py": "",
    "models/build_model.py": """
import torch
from calls import note
class Net(torch.nn.Module):
    def __init__(self, views, pixels, clusters):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(pixels, clusters) for _ in range(views))
    def forward(self, views):
        self.output = sum(layer(view.flatten(1)) for layer, view in zip(self.layers, views)).softmax(1)
    def training_step(self, batch, idx):
        assert self.training and batch[-1].dtype == torch.long
        self(batch[:-1])
        note("training_step")
        return self.output.square().sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)
def build_model(config):
    return Net(*config)
""",
    "run.py": """
from calls import note
def PGD_contrastive(net, views, eps, alpha, iters):
    note(f"PGD_contrastive {eps} {alpha:.2f} {iters}")
    return [(view + eps).clamp(0, 1) for view in views]
""",
    "trainer.py": """
from calls import note
class GAN_Attack:
    def __init__(self, args, tar_model, perb_eps):
        assert args.data_name == "noisymnist" and args.atk_mode == 1
        self.model, self.eps = tar_model, perb_eps
    def train_batch(self, views):
        asks = any(parameter.requires_grad for parameter in self.model.parameters())
        note(f"train_batch {self.eps} {len(views)} {asks}")
""",
}


def _run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "ARDMVC_AUTHORS"}
    environment = kept if folder is None else {**kept, "ARDMVC_AUTHORS": str(folder)}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_the_authors_code_it_says_what_to_set():
    done = _run(*SMALL)
    assert done.returncode == 2
    assert "set ARDMVC_AUTHORS to a copy of the authors' repository" in done.stderr
    assert done.stdout == ""


def test_another_folder_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "run.py").touch()
    done = _run(*SMALL, folder=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} has no trainer.py, config, models" in done.stderr


def test_ours_alone_says_so():
    done = _run("--alone", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "ours alone" in done.stdout
    assert "| ours, fp32 |" in done.stdout


@pytest.mark.parametrize("bad", [("--samples", "1"), ("--repeats", "0"), ("--threads", "0")])
def test_impossible_numbers_are_refused(bad):
    assert _run("--alone", *bad).returncode == 2


def test_it_runs_a_training_step_and_an_attack_batch_of_a_copy(tmp_path):
    for name, text in STAND_IN.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    done = _run(*SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| the authors', fp32 |" in done.stdout
    # One warm-up and one repeat of: the published attack, a clean and an attacked pass, and a batch of the GAN.
    calls = (tmp_path / "calls.py.log").read_text().splitlines()
    assert calls == ["PGD_contrastive 0.2 0.02 10", "training_step", "training_step", "train_batch 0.3 2 False"] * 2
