"""Multi-view data sets: what there is, how it is loaded in parts, and how it is checked before any work."""

from ardmvc_core.data import noisy, npz, patched, regdb
from ardmvc_core.data.dataset import (
    DataError,
    DatasetConfig,
    DatasetName,
    MultiViewDataset,
    Part,
    Protocol,
    Source,
)

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

DATASETS: dict[str, Source] = {
    "noisy_digits": Source(noisy.load_noisy_digits, noisy.check_noisy_digits),
    "noisy_mnist": Source(noisy.load_noisy_idx, noisy.check_noisy_idx),
    "noisy_fashion": Source(noisy.load_noisy_idx, noisy.check_noisy_idx),
    "patched_mnist": Source(patched.load_patched, patched.check_patched),
    "regdb": Source(regdb.load_regdb, regdb.check_regdb),
    "npz": Source(npz.load_npz, npz.check_npz),
}


def load_parts(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """Reads a data set and cuts it into the parts of a protocol.

    Args:   protocol: official: train and attack, second views paired over the whole collection before the cut, as
        published; strict: train, tune, attacker and score, paired inside each part, so that no image of one part is
        seen in another.
    Returns: the parts by name, in that order; no row is in two of them.
    Raises: DataError if the data are missing or faulty; ValueError on another protocol.
    """
    return DATASETS[config.name].load(config, protocol)


def check_dataset(config: DatasetConfig) -> list[str]:
    """Looks for everything that would keep the data set from loading.

    Where no folder is given and none is found, this is also when the files are downloaded: once, by whoever checks,
    before workers start.

    Returns: one message per fault, [] if there is none.
    """
    return DATASETS[config.name].check(config)
