"""Where a sweep keeps its trials: an Optuna study in a journal file, shared by all processes of the sweep.

storage = open_storage(folder)
study = make_study(storage, Settings("top1", "maximize", "median"))    # in `convoy sweep`
study, settings = load_study(storage)                                  # in the process of a trial
trial = trial_in(study, storage, 3)
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection

from convoy.core.errors import UsageError

PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "none": optuna.pruners.NopPruner,
}
_STUDY = "sweep"
_SETTINGS = "settings"


@dataclass(frozen=True)
class Settings:
    """What a sweep optimizes, and how.

    Attributes:
      metric: name of a metric of evaluations on the validation split.
      direction: `maximize` or `minimize`.
      pruner: one of `PRUNERS`.
    """

    metric: str
    direction: str
    pruner: str


def open_storage(folder: Path) -> JournalStorage:
    """Opens the journal in a folder, which exists; other processes may use it at the same time, also over NFS.

    Raises:
      OSError: it cannot be read or written.
      ValueError: it is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = str(folder / "journal.log")
    lock = JournalFileOpenLock(journal)  # Optuna's default needs a file system with links
    backend = JournalFileBackend(journal, lock)
    lock.acquire()
    try:
        _drop_torn_line(journal)
    finally:
        lock.release()
    return JournalStorage(backend)


def _drop_torn_line(journal: str) -> None:
    """Removes an incomplete last line, which a crash or a full disk left: Optuna would append to it."""
    with open(journal, "rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())


def make_study(storage: JournalStorage, settings: Settings) -> optuna.Study:
    """Returns the study in a storage, new or as it stands.

    Raises:
      UsageError: its trials were compared by another metric.
    """
    study = optuna.create_study(
        storage=storage,
        pruner=PRUNERS[settings.pruner](),
        study_name=_STUDY,
        direction=StudyDirection[settings.direction.upper()],
        load_if_exists=True,
    )
    before = study.user_attrs.get(_SETTINGS)
    if before and (before["metric"], before["direction"]) != (settings.metric, settings.direction):
        raise UsageError(
            f"--metric={settings.metric} ({settings.direction}): the sweep in --workdir compares its trials by "
            f"{before['metric']} ({before['direction']}). Pass that, or another --workdir."
        )
    if before != asdict(settings):
        study.set_user_attr(_SETTINGS, asdict(settings))
    return study


def trial_in(study: optuna.Study, storage: JournalStorage, number: int) -> optuna.Trial:
    """Returns a trial that has not ended, to suggest, report and decide about it."""
    return optuna.Trial(study, trial_id(storage, number))


def trial_id(storage: JournalStorage, number: int) -> int:
    """Returns the storage's identifier of a trial."""
    study = storage.get_study_id_from_name(_STUDY)
    return storage.get_trial_id_from_study_id_trial_number(study, number)


def load_study(storage: JournalStorage) -> tuple[optuna.Study, Settings]:
    """Returns the study in a storage and its settings."""
    study = optuna.load_study(study_name=_STUDY, storage=storage)
    settings = Settings(**study.user_attrs[_SETTINGS])
    study.pruner = PRUNERS[settings.pruner]()
    return study, settings
