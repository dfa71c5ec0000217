"""From a trial's config to a network on a device."""

import logging

import torch
from torch import nn

from ardmvc_core.data import DataError, Protocol
from ardmvc_core.data.reading import shown_path
from ardmvc_core.models import MODELS
from ardmvc_core.seeding import derive_seed
from ardmvc_core.types import ViewShapes
from trainables.config import TrialConfig, protocols_of
from trainables.data_parts import cached_parts, other_parts
from trainables.saved_trial import (
    CONFIG_FILE,
    STATE_FILE,
    SavedFacts,
    check_weights,
    parsing,
    saved_facts,
    saved_state,
)

logger = logging.getLogger(__name__)


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
    checkpoint: str, device: torch.device, repeat: int = 0, facts: SavedFacts | None = None
) -> tuple[nn.Module, TrialConfig]:
    """The trained network of a trial's checkpoint (local path or URI), in inference mode, and the config of its trial.

    Args: facts: of the checkpoint, where they are known already.
    Raises: ValueError, or its child DamagedCheckpoint, if there is no checkpoint of a trial; its child DataError if the
        data are not those that its trial has read; StorageAway if the storage does not answer.
    """
    facts = facts or saved_facts(checkpoint)
    config = facts.config
    protocol = protocols_of(config.protocol)[0]
    parts = cached_parts(config.dataset, protocol)
    prefix = f"{protocol}/" if config.protocol == "both" else ""
    if not facts.contents:
        logger.warning("%s does not say what its data hold: they are not compared", shown_path(checkpoint))
    if changed := other_parts(facts.contents, {f"{prefix}{name}": part.digest for name, part in parts.items()}):
        raise DataError(
            f"{shown_path(checkpoint)}: its data are not those that are found here ({changed}): the file has changed, "
            "or is another one"
        )
    train = parts["train"].data
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
