"""The plateau schedule, against the rule worked out by hand."""

import keras
import numpy as np
import pytest

from fisher_keras.experiments.plateau import PlateauSchedule


def learning_rates(losses, epochs, past_losses=()):
    """The rate after each epoch, of a model whose losses are given."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    schedule = PlateauSchedule(0.1, epochs, past_losses)
    schedule.set_model(model)
    schedule.on_train_begin()
    rates = []
    for epoch, loss in enumerate(losses, start=len(past_losses)):
        schedule.on_epoch_end(epoch, {"loss": loss})
        rates.append(float(model.optimizer.learning_rate))
    return rates


def test_divides_by_10_after_a_twentieth_of_the_epochs_without_progress():
    # Patience 2: progress at epochs 0 and 1; 0.89995 is too little of it.
    rates = learning_rates([1.0, 0.9, 0.9, 0.89995, 0.8, 0.9, 0.85, 0.81, 0.82], epochs=40)
    np.testing.assert_allclose(
        rates, [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 1e-3, 1e-3, 1e-4], rtol=1e-5
    )


@pytest.mark.parametrize("done", [1, 3, 6, 8])
def test_goes_on_where_it_was(done):
    losses = [1.0, 0.9, 0.9, 0.9, 0.8, 0.9, 0.85, 0.81, 0.82]
    whole = learning_rates(losses, epochs=40)
    rest = learning_rates(losses[done:], epochs=40, past_losses=losses[:done])
    assert rest == whole[done:]
