r"""The metrics of local minima of trained networks, side by side (Section 7.1).

For example

  evaluate_metrics --model=runs/plain/last.keras --model=runs/regularized/last.keras \
    --train_size=10000 --output=runs/comparison
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.evaluate import EvaluationConfig, evaluate

COMMAND = Command.of(EvaluationConfig, evaluate)
