"""Objectives that a batch has as a whole: the losses that clustering models train on, raised instead of lowered.

One scalar per batch; samples are each other's context, so the result depends on who is attacked together.
"""

from torch import Tensor

from ardmvc_core.attacks.objectives.clean_reference import CleanReference
from ardmvc_core.losses.contrastive import mean_contrast
from ardmvc_core.losses.ddc import ddc_terms
from ardmvc_core.types import ModelOutput

TEMPERATURE = 0.1
"""Of the contrastive loss, as published."""


def contrast(output: ModelOutput, clean: CleanReference) -> Tensor:
    """Contrastive loss between the view latents, mean over all view pairs; what adversarial training raises.

    Raises: ValueError if there are fewer than two views or samples, or the latents differ in width.
    """
    return mean_contrast(tuple(latent.flatten(1) for latent in output.view_latents), TEMPERATURE)


def ddc(output: ModelOutput, clean: CleanReference) -> Tensor:
    """Sum of the three clustering terms; the kernel width is that of the attacked batch and counts as constant."""
    terms = ddc_terms(output.consensus.flatten(1), output.logits.softmax(1))
    return sum(terms.values(), output.logits.new_zeros(()))


def mix(output: ModelOutput, clean: CleanReference) -> Tensor:
    """`contrast` + `ddc`."""
    return contrast(output, clean) + ddc(output, clean)


LATENT_PAIRS = (contrast, mix)
"""Objectives that need at least two view latents of one width."""
