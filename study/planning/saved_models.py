"""Where a study's trained models lie: `study:NAME` is its best trial, `study:NAME/7` its trial 7."""

from pathlib import Path

from ardmvc_core.places import expanded
from study.database.engine import LedgerError
from study.database.ledger import Ledger
from study.ranking.objectives import goals
from study.ranking.ranking import best
from study.secrets import has_login
from study.spec.study_spec import StudySpec
from trainables.config import AttackTrialConfig
from trainables.saved_trial import CONFIG_FILE, LARGEST, saved_facts
from trainables.storage import read_file

PREFIX = "study:"


def find_checkpoint(reference: str, storage: str) -> str:
    """Folder of the saved model that `reference` names.

    Args: reference: a folder or URI, `study:NAME` or `study:NAME/NUMBER`. storage: of the studies.
    Raises: LedgerError naming what is missing and what there is.
    """
    if reference.startswith(PREFIX):
        name, _, number = reference.removeprefix(PREFIX).partition("/")
        ledger = Ledger.open_existing(name, storage_path=storage)
        records = {str(record.number): record for record in ledger.records()}
        if number and number not in records:
            raise LedgerError(f"study {name!r} has no trial {number!r}; it has {', '.join(records) or 'none yet'}")
        record = records[number] if number else best(records.values(), goals(ledger.spec))
        if record is None or not record.checkpoint:
            raise LedgerError(f"{reference}: no complete trial with a saved model yet")
        folder = record.checkpoint
    else:
        try:
            folder = expanded(reference)
        except ValueError as error:
            raise LedgerError(f"trial.checkpoint: {error}") from None
    if has_login(folder):
        raise LedgerError("trial.checkpoint: keys and options of a storage come from the environment")
    try:
        found = read_file(folder, CONFIG_FILE, LARGEST[CONFIG_FILE])
    except (OSError, ValueError) as error:
        raise LedgerError(f"trial.checkpoint: {folder} cannot be read: {' '.join(str(error).split())}") from error
    if found is None:
        raise LedgerError(
            f"trial.checkpoint: {folder} holds no saved model (no config.json); give a trial's checkpoint"
        )
    return folder if "://" in folder else str(Path(folder).resolve())


def with_target(spec: StudySpec) -> StudySpec:
    """An attacker study with `trial.checkpoint` as a folder and ε as a number; any other as it is.

    Raises: LedgerError naming what is missing, what there is, or what is wrong with the saved model.
    """
    if spec.trainable != "attacker":
        return spec
    trial = {**spec.trial, "checkpoint": find_checkpoint(spec.trial["checkpoint"], spec.storage.path)}
    try:
        config = AttackTrialConfig.model_validate(trial)
        target = saved_facts(config.checkpoint, config.data).config
        trial["evaluation"] = config.against(target).model_dump(mode="json")["evaluation"]
    except (OSError, ValueError) as error:
        raise LedgerError(f"trial.checkpoint: {' '.join(str(error).split())}") from error
    return spec.model_copy(update={"trial": trial})
