"""State of a study that workers share: database, attributes, artifacts, training rounds, quota of trials, retries."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.storage.database import Heartbeat
    from optuna_nas.storage.in_study_fit import InStudyFit
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "database": "Heartbeat",
            "in_study_fit": "InStudyFit",
        },
    )

__all__ = ["Heartbeat", "InStudyFit"]
