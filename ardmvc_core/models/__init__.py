"""The models: one entry per row of the paper's table."""

from ardmvc_core.models.ar_dmvc import AR_DMVC, AR_DMVC_AM
from ardmvc_core.models.comvc import COMVC
from ardmvc_core.models.simvc import SIMVC
from ardmvc_core.types import Method

MODELS: dict[str, Method] = {
    "simvc": SIMVC,
    "comvc": COMVC,
    "ar_dmvc": AR_DMVC,
    "ar_dmvc_am": AR_DMVC_AM,
}
