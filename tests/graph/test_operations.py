"""Operations told from each other by what TensorFlow's protocol buffers say of them."""

import pytest
import tensorflow as tf

from fisher_keras.graph.operations import is_random


@pytest.mark.parametrize(("op", "rate"), [("CudnnRNN", 0.3), ("CudnnRNNV3", 1e-3)])
def test_recurrent_layers_of_cudnn_are_random_with_dropout_alone(op, rate):
    """Only a GPU has them. Their graphs have seeds, with or without dropout."""
    node = tf.compat.v1.NodeDef(op=op)
    node.attr["seed"].i = 1
    node.attr["dropout"].f = rate
    assert is_random(node)
    node.attr["dropout"].f = 0.0
    assert not is_random(node)
