"""The data sets that there are. A new one is a file with its reader and its facts, and one line here."""

from ardmvc_core.data.dataset import Source
from ardmvc_core.data.noisy import NOISY_DIGITS, NOISY_FASHION, NOISY_MNIST
from ardmvc_core.data.patched import PATCHED_MNIST
from ardmvc_core.data.regdb import REGDB
from ardmvc_core.data.user_file import FILE, NPZ

DATASETS: dict[str, Source] = {
    "noisy_digits": NOISY_DIGITS,
    "noisy_mnist": NOISY_MNIST,
    "noisy_fashion": NOISY_FASHION,
    "patched_mnist": PATCHED_MNIST,
    "regdb": REGDB,
    "file": FILE,
    "npz": NPZ,
}
