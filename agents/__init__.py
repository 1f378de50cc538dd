"""The agents: learning, baselines, evaluation, export of policies, the demo, the command line.

The names below are the public ones. Importing the package is light: a name's own module, and torch
or pandas with it, is imported when the name is first asked for (PEP 562), so that the device and
``sliproad --help`` need none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agents.baselines.tuning import best_static, tuned_baselines
    from agents.contenders import shipped_agents, shipped_path, shipped_policy
    from agents.evaluation import Evaluation, evaluate
    from agents.export_policy import bundle_of, task_of, with_task
    from agents.from_records import log_of, world_from_records
    from agents.off_policy import Estimate, estimate
    from agents.report import write_report
    from agents.rollout import Rollout, simulate, summary
    from agents.train_config import TrainConfig
    from agents.training import TrainResult, exported, train

__all__ = [
    "Estimate",
    "Evaluation",
    "Rollout",
    "TrainConfig",
    "TrainResult",
    "best_static",
    "bundle_of",
    "estimate",
    "evaluate",
    "exported",
    "log_of",
    "shipped_agents",
    "shipped_path",
    "shipped_policy",
    "simulate",
    "summary",
    "task_of",
    "train",
    "tuned_baselines",
    "with_task",
    "world_from_records",
    "write_report",
]

_NAMES_OF: Final = {
    "baselines.tuning": ("best_static", "tuned_baselines"),
    "contenders": ("shipped_agents", "shipped_path", "shipped_policy"),
    "evaluation": ("Evaluation", "evaluate"),
    "export_policy": ("bundle_of", "task_of", "with_task"),
    "from_records": ("log_of", "world_from_records"),
    "off_policy": ("Estimate", "estimate"),
    "report": ("write_report",),
    "rollout": ("Rollout", "simulate", "summary"),
    "train_config": ("TrainConfig",),
    "training": ("TrainResult", "exported", "train"),
}
_MODULE_OF: Final = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
