"""Random streams: each has a name and a seed of its own, so that a draw added in one place moves no other."""

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Seed of the stream that `names` name, from a master seed.

    Returns: an integer in [0, 2**63), the same on every machine and version.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one named stream."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def seed_everything(seed: int) -> None:
    """Seeds the global streams of Python, NumPy and torch (all devices), for library code that draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global stream is what libraries draw from
    torch.manual_seed(seed)


def global_rng_state() -> dict[str, Any]:
    """State of the global streams, of plain types and tensors only, so that a checkpoint loads without pickle."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_global_rng_state(state: dict[str, Any]) -> None:
    """Puts the global streams back to what `global_rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
