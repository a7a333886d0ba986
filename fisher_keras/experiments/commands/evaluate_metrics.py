"""The metrics of local minima of trained networks, side by side (Section 7.1).

For example

  evaluate_metrics --model=runs/plain/last.keras --model=runs/regularized/last.keras \
    --train_size=10000 --data_dir=tfds --output=runs/comparison
"""

from fisher_keras.experiments.evaluate import evaluate
from fisher_keras.experiments.evaluate_flags import GROUPS, define_flags, evaluation_config

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = GROUPS
RESUME_FLAG = None


def run() -> None:
    """Evaluates the models that the flags name."""
    evaluate(evaluation_config())
