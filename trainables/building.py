"""From a trial's config to a network on a device."""

import torch
from torch import nn

from ardmvc_core.data import Protocol
from ardmvc_core.models import MODELS
from ardmvc_core.seeding import derive_seed
from ardmvc_core.types import ViewShapes
from trainables.config import TrialConfig, protocols_of
from trainables.data_parts import cached_parts
from trainables.saved_trial import CONFIG_FILE, STATE_FILE, check_weights, parsing, saved_facts, saved_state


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device that the worker sees, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def build_model(
    config: TrialConfig, protocol: Protocol, view_shapes: ViewShapes, n_clusters: int, seed: int
) -> nn.Module:
    """The network that `config.model` names, as the protocol has it, its weights drawn from the seed's own stream."""
    model = config.model_under(protocol)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        network: nn.Module = MODELS[model.name].build(model, view_shapes, n_clusters)
    return network


def load_model(
    checkpoint: str, device: torch.device, repeat: int = 0, config: TrialConfig | None = None
) -> tuple[nn.Module, TrialConfig]:
    """The trained network of a trial's checkpoint (local path or URI), in inference mode, and the config of its trial.

    Args: config: of the trial, where it is known already.
    Raises: ValueError, or its child DamagedCheckpoint, if there is no checkpoint of a trial; StorageAway if the storage
        does not answer.
    """
    config = config or saved_config(checkpoint)
    protocol = protocols_of(config.protocol)[0]
    train = cached_parts(config.dataset, protocol)["train"].data
    state = saved_state(checkpoint)
    with parsing(checkpoint, CONFIG_FILE, "makes no network"), torch.device("meta"):
        outline = build_model(config, protocol, train.view_shapes, train.n_clusters, config.seed)
    with parsing(checkpoint, STATE_FILE):
        weights = state["trainers"][repeat]["model"]
        # Before memory is taken for a network of the size that the config says.
        check_weights(weights, outline.state_dict())
    model = build_model(config, protocol, train.view_shapes, train.n_clusters, config.seed)
    model.load_state_dict(weights)
    return model.to(device).eval(), config


def saved_config(checkpoint: str) -> TrialConfig:
    """The config of the model trial whose checkpoint (local path or URI) this is. Raises: as `saved_facts`."""
    return saved_facts(checkpoint).config
