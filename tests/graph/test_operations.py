"""Operations told from each other by what TensorFlow's protocol buffers say of them."""

import pytest
import tensorflow as tf

from fisher_keras.graph.operations import downstream, is_random, nodes


@pytest.mark.parametrize(("op", "rate"), [("CudnnRNN", 0.3), ("CudnnRNNV3", 1e-3)])
def test_recurrent_layers_of_cudnn_are_random_with_dropout_alone(op, rate):
    """Only a GPU has them. Their graphs have seeds, with or without dropout."""
    node = tf.compat.v1.NodeDef(op=op)
    node.attr["seed"].i = 1
    node.attr["dropout"].f = rate
    assert is_random(node)
    node.attr["dropout"].f = 0.0
    assert not is_random(node)


@pytest.mark.parametrize(
    "function",
    [tf.shape, tf.size, tf.rank, lambda x: tf.raw_ops.ShapeN(input=[x, x])[1]],
    ids=["shape", "size", "rank", "several shapes"],
)
def test_what_depends_on_a_shape_alone_is_not_downstream(function):
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 3])
        of_shape, of_values = tf.cast(function(x), tf.float32) + 1, x + 1
        found = downstream([x])
    assert of_values.ref() in found
    assert of_shape.ref() not in found


def test_operations_inside_of_functions_that_functions_call():
    inner = tf.function(lambda x: x + tf.cast(tf.timestamp(), x.dtype), autograph=False)
    with tf.Graph().as_default() as graph:
        tf.while_loop(lambda x: x < 1, lambda x: [inner(x)], [tf.constant(0.0)])
        found = [(outer.type, node.op) for outer, node in nodes(graph.get_operations())]
    assert ("While", "While") in found
    assert ("While", "Timestamp") in found
