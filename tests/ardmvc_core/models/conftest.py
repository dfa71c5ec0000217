"""Networks of the golden data: built by this project's classes, filled with the stored weights."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from ardmvc_core.models.simvc import DDCOutput, FusedClustering
from ardmvc_core.networks.encoders import build_encoder, dense_encoder


class GoldenCase:
    """One variant of a golden file: its network, its views, and the comparisons that its README describes."""

    def __init__(
        self, golden: Callable[[str], Mapping[str, np.ndarray]], file: str, variant: str, dtype: torch.dtype
    ) -> None:
        self.numbers = golden(file)
        self.variant = variant
        stored = self._state(golden("models_comvc")) if variant == "cnn" else {}
        state = {name: torch.from_numpy(value) for name, value in {**stored, **self._state(self.numbers)}.items()}
        n_views = int(self["n_views"])
        self.views = tuple(torch.from_numpy(self[f"view{v}"]).to(dtype) for v in range(n_views))
        self.network = FusedClustering([self._encoder(v, state) for v in range(n_views)], int(self["n_clusters"]))
        self.network.load_state_dict({_our_name(name): value for name, value in state.items()})
        self.network.to(dtype)
        self.parameter_names = [_our_name(name) for name in self["param_names"]]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[f"{self.variant}/{name}"]

    def _state(self, numbers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        prefix = f"{self.variant}/state/"
        return {name.removeprefix(prefix): numbers[name] for name in numbers if name.startswith(prefix)}

    def _encoder(self, view: int, state: Mapping[str, Tensor]):
        shape = tuple(self.views[view].shape[1:])
        if self.variant == "cnn":
            return build_encoder("cnn_small", shape)
        widths = [len(state[f"encoders.{view}.layers.{layer}.bias"]) for layer in (0, 3)]
        return dense_encoder(shape, (widths[0], widths[1]))

    def named(self, prefix: str) -> dict[str, np.ndarray]:
        """Stored arrays below a prefix, under this project's parameter names."""
        start = f"{self.variant}/{prefix}/"
        return {
            _our_name(name.removeprefix(start)): self.numbers[name] for name in self.numbers if name.startswith(start)
        }

    def losses(self, prefix: str) -> dict[str, float]:
        """Stored loss terms, under this project's names."""
        stored = zip(self[f"{prefix}_names"], self[f"{prefix}_values"], strict=True)
        return {_our_term(str(name)): float(value) for name, value in stored}

    def check_gradients(self, prefix: str, tolerance: float) -> None:
        """Summaries and, where stored, whole gradients; a vanishing gradient is only checked to vanish."""
        gradients = {name: parameter.grad for name, parameter in self.network.named_parameters()}
        full = self.named(f"{prefix}/grad")
        vanishing = self["f64/grad_l2" if prefix == "f32" else f"{prefix}/grad_l2"] < 1e-9
        for index, name in enumerate(self.parameter_names):
            gradient = gradients[name]
            length = float(self[f"{prefix}/grad_l2"][index])
            if vanishing[index]:
                # Zero in exact arithmetic (a bias before a normalisation): what is left is rounding.
                assert gradient is None or gradient.norm() < (1e-9 if gradient.dtype == torch.float64 else 1e-2)
                continue
            assert gradient is not None, name
            first = np.zeros(8)
            first[: min(8, gradient.numel())] = gradient.flatten()[:8].double().numpy()
            self._near(gradient.double().norm(), length, tolerance, length, f"{name} norm")
            self._near(first, self[f"{prefix}/grad_first8"][index], tolerance, length, f"{name} first entries")
            # A sum of n entries may be off by √n times what the norm may be off by.
            wanted = self[f"{prefix}/grad_sum"][index]
            self._near(gradient.double().sum(), wanted, tolerance, length * gradient.numel() ** 0.5, f"{name} sum")
            if name in full:
                self._near(gradient.double().numpy(), full[name], tolerance, length, name)

    @staticmethod
    def _near(got: object, want: object, tolerance: float, scale: float, what: str) -> None:
        error = np.linalg.norm(np.asarray(got, float) - np.asarray(want, float))
        assert error <= tolerance * (scale if tolerance > 1e-8 else 1 + scale), f"{what}: off by {error:.3g}"


def _our_name(name: str) -> str:
    return str(name).replace("clustering_module.", "head.")


def _our_term(name: str) -> str:
    head, _, pair = name.partition("/")
    return f"contrast_{pair[0]}_{pair[1]}" if head == "Contrast" else head.lower()


@pytest.fixture
def golden_case(golden) -> Callable[..., GoldenCase]:
    """golden_case(file, variant, dtype) → the network and views of one stored variant."""
    return lambda file, variant, dtype=torch.float64: GoldenCase(golden, file, variant, dtype)


@pytest.fixture
def check_output(assert_close) -> Callable[..., None]:
    """check_output(case, mode, output, tolerance, hidden_tolerance): compares a forward pass with the stored one."""

    def check(case: GoldenCase, mode: str, output: DDCOutput, tolerance: float, hidden_tolerance: float) -> None:
        # Latents and fused vectors of the convolutional networks are stored in single precision.
        stored = max(tolerance, 2e-7) if case.variant == "cnn" else tolerance
        for view, latent in enumerate(output.view_latents):
            assert_close(latent, case[f"{mode}/encoder_output{view}"], stored, f"latent {view}")
        assert_close(output.fused, case[f"{mode}/fused"], stored, "fused")
        assert_close(output.consensus, case[f"{mode}/hidden"], hidden_tolerance, "hidden")
        assert_close(output.assignments, case[f"{mode}/output"], tolerance, "assignments")
        assert_close(output.logits.softmax(dim=1), case[f"{mode}/output"], tolerance, "logits")
        assert output.assignments.argmax(dim=1).tolist() == case[f"{mode}/assignment"].tolist()

    return check
