"""Multi-view data sets: what there is, how it is loaded in parts, and how it is checked before any work."""

from ardmvc_core.data.config import DatasetConfig, DatasetName
from ardmvc_core.data.dataset import DataError, MultiViewDataset, Part, Protocol, Source
from ardmvc_core.data.sources import DATASETS

__all__ = [
    "DATASETS",
    "DataError",
    "DatasetConfig",
    "DatasetName",
    "MultiViewDataset",
    "Part",
    "Protocol",
    "Source",
    "check_dataset",
    "load_parts",
]


def load_parts(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """Reads a data set and cuts it into the parts of a protocol.

    Args:   protocol: official: train and attack, second views paired over the whole collection before the cut, as
        published; strict: train, tune, attacker and score, paired inside each part, so that no image of one part is
        seen in another.
    Returns: the parts by name, in that order; no row is in two of them.
    Raises: DataError if the data are missing or faulty; ValueError on another protocol.
    """
    return config.source.load(config, protocol)


def check_dataset(config: DatasetConfig) -> list[str]:
    """Looks for everything that would keep the data set from loading.

    Where no folder is given and none is found, this is also when the files are downloaded: once, by whoever checks,
    before workers start.

    Returns: one message per fault, [] if there is none.
    """
    return config.source.check(config)
