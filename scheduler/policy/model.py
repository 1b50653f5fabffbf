"""Keep pods on GPUs of the models that they name.

Reads: models, model_sets.
Unknown: a node of which neither an agent nor a label tells the model may have any: it is none that was asked for.
A node with several models fits only if each of them is asked for, since the device plugin chooses the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
from scheduler.policy import base

NAME = "model"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: what is asked for stands on the pod."""


@dataclass(frozen=True, slots=True)
class Model:
    """See the module."""

    args: Args

    def filter(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """Compare models, of which there are a handful, and give each node the answer of its own."""
        if not request.gpu_models:
            return np.zeros(snapshot.rows, np.uint8)
        codes = np.array([_code(models, request.gpu_models) for models in snapshot.model_sets], np.uint8)
        answer: base.CodeArray = codes[snapshot.models]
        return answer

    def could(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.bool_]:
        """False where the models are known, and others."""
        could: NDArray[np.bool_] = self.filter(request, snapshot) != Reason.OTHER_MODEL
        return could


def _code(models: frozenset[str], globs: tuple[str, ...]) -> Reason:
    if not models:
        return Reason.UNKNOWN_MODEL
    fits = all(any(fnmatchcase(model, glob) for glob in globs) for model in models)
    return Reason.FITS if fits else Reason.OTHER_MODEL


def build(args: Args) -> Model:
    """Make the policy."""
    return Model(args)
