"""The metrics of local minima of trained networks, side by side (Section 7.1).

For example

  evaluate_metrics --model=runs/plain/last.keras --model=runs/regularized/last.keras \
    --train_size=10000 --output=runs/comparison
"""

from fisher_keras.experiments import flags
from fisher_keras.experiments.evaluate import EvaluationConfig, evaluate

FLAG_GROUPS = flags.flag_groups(EvaluationConfig)
RESUME_FLAG = None


def define_flags() -> None:
    """Defines the flags of a `EvaluationConfig`."""
    flags.define_flags(EvaluationConfig)


def run() -> None:
    """Evaluates the models that the flags name."""
    evaluate(flags.from_flags(EvaluationConfig))
