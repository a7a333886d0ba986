"""Plain training with its gradient clipped: the baseline of the regularizer."""

import pytest

from fisher_keras.experiments.training.config import resolve
from fisher_keras.experiments.training.train import TrainingConfig, train


def losses(output_dir, **options):
    config = TrainingConfig(
        dataset="digits",
        width=0.05,
        train_size=20,
        epochs=2,
        batch_size=8,
        output_dir=str(output_dir),
        **options,
    )
    return train(config, quiet=True)["history"]["loss"]


def test_clipping_only_clips(tmp_path):
    """With a bound that no gradient reaches it is plain training; with another it is not."""
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "unreached", clip_norm=1e6) == pytest.approx(plain, rel=1e-4)
    assert losses(tmp_path / "reached", clip_norm=1e-6) != pytest.approx(plain, rel=1e-4)


def test_a_clipped_run_has_a_folder_of_its_own():
    def folder(**options):
        return resolve(TrainingConfig(dataset="digits", **options)).output_dir

    assert folder(clip_norm=1.0) == "runs/digits_cnn_clipped_seed0"
    assert folder() == folder(clip_norm=0.0) == "runs/digits_cnn_plain_seed0"
    assert folder(clip_norm=1.0, regularize=True) == "runs/digits_cnn_fisher_seed0"


def test_the_other_options_of_the_regularizer_are_refused_beside_it():
    with pytest.raises(ValueError, match="--beta has no effect without --regularize: add it"):
        TrainingConfig(clip_norm=1.0, beta=1.0)
