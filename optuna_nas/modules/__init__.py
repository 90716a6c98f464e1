"""Choices inside a user's own module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_nas.lazy import lazy_names

if TYPE_CHECKING:
    from optuna_nas.modules.choosing import choose, choose_depth, choose_inputs, choose_op, choose_ops, choose_optional
    from optuna_nas.modules.module_space import ModuleSpace
    from optuna_nas.modules.supernet import ModuleSupernet

__all__ = [
    "ModuleSpace",
    "ModuleSupernet",
    "choose",
    "choose_depth",
    "choose_inputs",
    "choose_op",
    "choose_ops",
    "choose_optional",
]

__getattr__ = lazy_names(
    __name__,
    {
        "choosing": "choose choose_depth choose_inputs choose_op choose_ops choose_optional",
        "module_space": "ModuleSpace",
        "supernet": "ModuleSupernet",
    },
)
