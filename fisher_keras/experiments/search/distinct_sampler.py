"""Optuna's TPE where the parameters have few values."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

_ATTEMPTS = 20


class DistinctTPESampler(optuna.samplers.TPESampler):
    """A TPE that tries no combination twice as long as there are others.

    The usual one soon returns to the best combination that it knows. Where trainings are
    deterministic, that teaches nothing.
    """

    def __init__(self, candidates: Mapping[str, Sequence[Any]]) -> None:
        """Makes the sampler, without a seed: processes that share a study must not choose alike.

        Args:
            candidates: the values of each parameter.
        """
        super().__init__(multivariate=True, constant_liar=True)
        self._space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(candidates[name]) for name in candidates
        }
        values = itertools.product(*candidates.values())
        self._combinations = [dict(zip(candidates, chosen, strict=True)) for chosen in values]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns all parameters: they are chosen together."""
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns a new combination: the TPE's, or a random one if it gives none."""
        tried = [other.params for other in study.get_trials(deepcopy=False)]
        new = [params for params in self._combinations if params not in tried]
        for _ in range(_ATTEMPTS):
            params = super().sample_relative(study, trial, search_space)
            if params in new:
                return params
        return random.choice(new or self._combinations)
