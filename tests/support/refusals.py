"""What data are refused with."""

import warnings

import pytest

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts


def refusal(config: DatasetConfig) -> str:
    """What the file is refused with, which is all that is said: no warning, at most 2 KB."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faults = "; ".join(check_dataset(config))
        with pytest.raises(DataError) as error:
            load_parts(config, "strict")
    assert str(error.value) == faults
    assert len(faults.encode()) <= 2048
    return faults
