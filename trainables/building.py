"""From a trial's config to a network on a device."""

import torch
from torch import nn

from ardmvc_core.models import MODELS
from ardmvc_core.seeding import derive_seed
from trainables.config import TrialConfig


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device that the worker sees, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def build_model(config: TrialConfig, view_shapes: tuple[tuple[int, ...], ...], n_clusters: int, seed: int) -> nn.Module:
    """The network that `config.model` names, its weights drawn from the seed's own stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        network: nn.Module = MODELS[config.model.name].build(config.model, view_shapes, n_clusters)
    return network
