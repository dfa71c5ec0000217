"""Attacks on finished models. ATTACKS lists all: a config type and a function that makes a Perturb.

Budget and projection: `budget`; the ascent that training shares: `pgd`; what attacks raise: `objective`.
"""

from ardmvc_core.attacks.attack import Attack
from ardmvc_core.attacks.generators.gan import GANConfig, prepare_gan
from ardmvc_core.attacks.noise import NoiseConfig, prepare_noise
from ardmvc_core.attacks.searches.white_box import WhiteBoxConfig, prepare_white_box

ATTACKS: dict[str, Attack] = {
    "noise": Attack(config=NoiseConfig, prepare=prepare_noise),
    "pgd": Attack(config=WhiteBoxConfig, prepare=prepare_white_box),
    "gan": Attack(config=GANConfig, prepare=prepare_gan),
}

__all__ = ["ATTACKS", "Attack", "GANConfig", "NoiseConfig", "WhiteBoxConfig"]
