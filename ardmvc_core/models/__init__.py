"""The models: one entry per row of the paper's table."""

from ardmvc_core.models.aecoddc import AECODDC
from ardmvc_core.models.ar_dmvc import AR_DMVC, AR_DMVC_AM
from ardmvc_core.models.comvc import COMVC
from ardmvc_core.models.eamc import EAMC
from ardmvc_core.models.infoddc import INFODDC
from ardmvc_core.models.multi_vae import MULTI_VAE
from ardmvc_core.models.sem import SEM
from ardmvc_core.models.simvc import SIMVC
from ardmvc_core.types import Method

MODELS: dict[str, Method] = {
    "eamc": EAMC,
    "simvc": SIMVC,
    "comvc": COMVC,
    "multi_vae": MULTI_VAE,
    "aecoddc": AECODDC,
    "infoddc": INFODDC,
    "sem": SEM,
    "ar_dmvc": AR_DMVC,
    "ar_dmvc_am": AR_DMVC_AM,
}
