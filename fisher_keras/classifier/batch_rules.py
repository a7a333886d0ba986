"""Rules of the operations that keep the examples of a batch apart, and in their order.

Each rule looks at one operation: at its attributes, ranks and axes, for its type alone does not
tell. A tensor keeps examples apart if its leading axis is theirs, in the order of the inputs, each
with the same number of rows one after another, and each row is computed of its own example alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Set

import numpy as np
import tensorflow as tf

from fisher_keras.graph.operations import upstream

_static = tf.get_static_value
# Sizes come as single numbers, or in shapes.
_FEW = 16


@dataclasses.dataclass(frozen=True)
class BatchAxis:
    """Tensors of a traced call that are known to keep examples apart, so far.

    Attributes:
        count: The number of examples, a prime that divides nothing but what stems from it.
        varying: References to all that depends on the examples.
        apart: References to those that keep examples apart, each with whether that is established
            by rules alone.
    """

    count: int
    varying: Set
    apart: Mapping

    def varies(self, tensor: tf.Tensor) -> bool:
        """Returns whether a tensor depends on the examples."""
        return tensor.ref() in self.varying

    def is_apart(self, tensor: tf.Tensor) -> bool:
        """Returns whether a tensor keeps examples apart."""
        return tensor.ref() in self.apart

    def broadcasts(self, tensor: tf.Tensor, output: tf.Tensor) -> bool:
        """Returns whether a factor or term leaves the rows of an output to their examples."""
        rank, full = tensor.shape.rank, output.shape.rank
        if None in (rank, full):
            return False
        if self.varies(tensor):
            return rank == full and self.is_apart(tensor) and _same_rows(tensor, output)
        # What does not depend on the examples must not have a different row for each of them.
        aligned = rank < full or tensor.shape[0] == 1 or _rows_are_equal(tensor)
        # What fills a tensor counts, and not how often.
        filled = {"Fill": 1, "Tile": 0, "BroadcastTo": 0, "ZerosLike": 0, "OnesLike": 0}
        index = filled.get(tensor.op.type)
        source = tensor if index is None else tensor.op.inputs[index]
        return aligned and not self._depends_on_count(source)

    def _depends_on_count(self, tensor: tf.Tensor) -> bool:
        """Returns whether numbers that a tensor is computed of tell the size of the batch."""
        constants = [r.deref() for r in upstream([tensor]) if r.deref().op.type == "Const"]
        values = [
            np.abs(np.ravel(_static(constant)).astype(np.float64))
            for constant in constants
            if constant.shape.num_elements() <= _FEW
            and (constant.dtype.is_floating or constant.dtype.is_integer)
        ]
        numbers = np.concatenate([*values, np.zeros(0)])
        numbers = numbers[numbers > 0]
        # As a factor, or as a share of one in the batch.
        multiples = np.concatenate([numbers, 1 / numbers]) / self.count
        off = np.abs(multiples - np.round(multiples))
        return bool(np.any((off < 1e-6 * multiples) & (multiples > 0.5) & (multiples < 1e5)))

    def same_rows_in_all(self, tensors: Iterable[tf.Tensor]) -> bool:
        """Returns whether tensors with a row for each example have that of their example."""
        return all(
            self.is_apart(tensor) if self.varies(tensor) else _rows_are_equal(tensor)
            for tensor in tensors
        )


Rule = Callable[[tf.Operation, BatchAxis], bool]


def _elementwise(op: tf.Operation, batch: BatchAxis) -> bool:
    return all(batch.broadcasts(tensor, op.outputs[0]) for tensor in op.inputs)


def _of_input(index: int, condition: Callable[[tf.Operation], bool] = lambda op: True) -> Rule:
    """Makes a rule: one input has the examples, the others are the same for all, and a condition.

    Args:
        index: Of the input.
        condition: Returns whether each row of the output is then of one example.
    """

    def rule(op: tf.Operation, batch: BatchAxis) -> bool:
        others = [tensor for i, tensor in enumerate(op.inputs) if i != index]
        alone = batch.is_apart(op.inputs[index]) and not any(map(batch.varies, others))
        return alone and condition(op)

    return rule


# The rule without a condition, of operations that take one array.
_first_input = _of_input(0)


def _takes_one_example(op: tf.Operation) -> bool:
    # Along the axis of the examples, a window may only take one, and must not skip any.
    return [op.get_attr(name)[0] for name in ("ksize", "strides")] == [1, 1]


def _begins_with_examples(op: tf.Operation) -> bool:
    permutation = _static(op.inputs[1])
    return permutation is not None and permutation[0] == 0


def _product(op: tf.Operation, batch: BatchAxis) -> bool:
    a, b = op.inputs
    transposes = "transpose_a" if op.type == "MatMul" else "adj_x"
    # The examples are rows of the first matrix; the second is the same for all.
    if op.outputs[0].shape.rank == 2:
        return _first_input(op, batch) and not op.get_attr(transposes)
    # The leading axis of either is a batch axis of products.
    return batch.broadcasts(a, op.outputs[0]) and batch.broadcasts(b, op.outputs[0])


def _einsum(op: tf.Operation, batch: BatchAxis) -> bool:
    operands, output = op.get_attr("equation").decode().split("->")
    operands = operands.split(",")
    # The label of the examples is the output's first, and must be in front of all that vary.
    label = output[:1]
    if "." in "".join([*operands, output]) or not label:
        return False
    for labels, tensor in zip(operands, op.inputs, strict=True):
        if batch.varies(tensor):
            if not batch.is_apart(tensor) or labels[:1] != label or labels.count(label) > 1:
                return False
        elif label in labels:
            return False
    return True


def _gather(op: tf.Operation, batch: BatchAxis) -> bool:
    params, indices, axis = op.inputs
    axis, batch_dims = _static(axis), op.get_attr("batch_dims")
    if axis is None:
        return False
    if not batch.varies(params):  # A table of which each example takes rows.
        return batch.is_apart(indices) and axis == 0 and batch_dims == 0
    if not batch.varies(indices):  # The same entries of each example.
        return batch.is_apart(params) and axis % params.shape.rank > 0 and batch_dims == 0
    # With batch axes, each example takes its own entries.
    return batch.is_apart(params) and batch.is_apart(indices) and batch_dims > 0


def _concatenation(op: tf.Operation, batch: BatchAxis) -> bool:
    *parts, axis = op.inputs
    return _avoid_leading(axis, op.outputs[0].shape.rank) and batch.same_rows_in_all(parts)


def _stack(op: tf.Operation, batch: BatchAxis) -> bool:
    return op.get_attr("axis") % op.outputs[0].shape.rank > 0 and batch.same_rows_in_all(op.inputs)


def _pads_no_example(op: tf.Operation) -> bool:
    paddings = _static(op.inputs[1])
    return paddings is not None and not paddings[0].any()


def _takes_all_examples(op: tf.Operation) -> bool:
    return _same_rows(op.inputs[0], op.outputs[0])


def _slices_other_axes(op: tf.Operation) -> bool:
    """Returns whether a `StridedSlice` leaves the leading axis as it is."""
    new, shrunk, ellipsis = (
        op.get_attr(f"{name}_mask") for name in ("new_axis", "shrink_axis", "ellipsis")
    )
    # Bit 0 is about the leading axis: it must neither be dropped nor come behind a new one.
    if (new | shrunk) & 1 and not ellipsis & 1:
        return False
    strides = _static(op.inputs[3])
    if strides is None or not _takes_all_examples(op):
        return False
    if ellipsis & 1:  # It stands for the leading axis unless the others take all.
        taken = sum(not (new | ellipsis) >> i & 1 for i in range(len(strides)))
        return taken < op.inputs[0].shape.rank
    # Backwards, it would turn the order of the examples.
    return strides[0] > 0


def _repeats_other_axes(op: tf.Operation) -> bool:
    return op.inputs[0].shape.rank == op.outputs[0].shape.rank and _takes_all_examples(op)


def _select(op: tf.Operation, batch: BatchAxis) -> bool:
    if op.inputs[0].shape.rank == 1 < op.outputs[0].shape.rank:  # The condition selects rows.
        return batch.same_rows_in_all(op.inputs)
    return _elementwise(op, batch)


def _same_rows(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Returns whether two tensors have leading axes of one size, and of the same meaning."""
    have_axes = bool(a.shape.rank and b.shape.rank)
    return have_axes and a.shape[0] is not None and a.shape[0] == b.shape[0]


def _rows_are_equal(tensor: tf.Tensor) -> bool:
    """Returns whether it is known that all rows of a tensor are the same."""
    if tensor.op.type in ("Fill", "ZerosLike", "OnesLike"):
        return True
    if tensor.op.type in ("Tile", "BroadcastTo"):
        source = tensor.op.inputs[0]
        return source.shape.rank == 0 or (
            source.shape.rank == tensor.shape.rank and source.shape[0] == 1
        )
    value = _static(tensor)
    return value is not None and value.ndim > 0 and bool(np.all(value == value[:1]))


def _avoids_examples(axes: int, array: int) -> Callable[[tf.Operation], bool]:
    """Makes the condition that none of some axes, an input, is the leading one of another input.

    Args:
        axes: Index of the input that holds the axes.
        array: Index of the other one.
    """
    return lambda op: _avoid_leading(op.inputs[axes], op.inputs[array].shape.rank)


def _avoid_leading(axes: tf.Tensor, rank: int | None) -> bool:
    """Returns whether none of some axes is the leading one."""
    value = _static(axes)
    # Modulo the rank, for axes may be counted from the end.
    return value is not None and bool(rank) and not np.any(np.asarray(value) % rank == 0)


_ELEMENTWISE = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Cos", "Cosh"),
    *("Digamma", "Elu", "Erf", "Erfc", "Erfinv", "Exp", "Expm1", "Floor", "Inv", "IsFinite"),
    *("IsInf", "IsNan", "LeakyRelu", "Lgamma", "Log", "Log1p", "LogicalNot", "Ndtri", "Neg"),
    *("OnesLike", "Reciprocal", "Relu", "Relu6", "Rint", "Round", "Rsqrt", "Selu", "Sigmoid"),
    *("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Square", "Tan", "Tanh"),
    *("ZerosLike", "Bucketize", "FakeQuantWithMinMaxArgs", "ClipByValue"),
    *("Add", "AddN", "AddV2", "Atan2", "Div", "DivNoNan", "Equal", "FloorDiv", "FloorMod"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr", "Maximum"),
    *("Minimum", "Mod", "Mul", "MulNoNan", "NotEqual", "Pow", "RealDiv", "SelectV2"),
    *("SquaredDifference", "Sub", "TruncateDiv", "TruncateMod", "Xdivy", "Xlog1py", "Xlogy"),
    *("CheckNumerics", "EnsureShape", "Identity", "PreventGradient", "Snapshot"),
    *("StopGradient",),
)
_REDUCTIONS = ("All", "Any", "ArgMax", "ArgMin", "EuclideanNorm", "Max", "Mean", "Min", "Prod")
_SCANS = ("Cumprod", "Cumsum", "CumulativeLogsumexp", "ReverseV2", "Sum")
_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "Dilation2D")
_TRANSPOSED = ("Conv2DBackpropInput", "Conv3DBackpropInputV2")
_LAST_AXIS = ("BiasAdd", "LogSoftmax", "Softmax", "TopKV2")
_NORMALIZATIONS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_POOLS = ("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D")
_RESIZING = ("ResizeArea", "ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor")
# Where an operation has no rule here, nothing is known of what it does to the examples.
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    # An input has the axes along which entries are reduced, added up, reversed or rolled.
    **dict.fromkeys((*_REDUCTIONS, *_SCANS), _of_input(0, _avoids_examples(axes=1, array=0))),
    **dict.fromkeys((*_CONVOLUTIONS, *_RESIZING, "ScaleAndTranslate"), _first_input),
    **dict.fromkeys(_POOLS, _of_input(0, _takes_one_example)),
    **dict.fromkeys(_TRANSPOSED, _of_input(2)),
    **dict.fromkeys(_NORMALIZATIONS, _of_input(0, lambda op: not op.get_attr("is_training"))),
    # Entries along the last axis, which is not the examples', are taken together.
    **dict.fromkeys(_LAST_AXIS, _of_input(0, lambda op: op.inputs[0].shape.rank >= 2)),
    **dict.fromkeys(("BatchMatMulV2", "BatchMatMulV3", "MatMul"), _product),
    **dict.fromkeys(("MirrorPad", "Pad", "PadV2"), _of_input(0, _pads_no_example)),
    **dict.fromkeys(("BroadcastTo", "Tile"), _of_input(0, _repeats_other_axes)),
    "ConcatV2": _concatenation,
    "DepthToSpace": _first_input,
    "Einsum": _einsum,
    "ExpandDims": _of_input(0, lambda op: _avoid_leading(op.inputs[1], op.outputs[0].shape.rank)),
    # Of rank 1 the indices would be a single place, and not one for each example.
    "GatherNd": _of_input(1, lambda op: op.inputs[1].shape.rank >= 2),
    "GatherV2": _gather,
    # Each output is an input, and all that vary keep examples apart where a rule is asked.
    "IdentityN": lambda op, batch: True,
    "LRN": _first_input,
    "OneHot": _of_input(0, lambda op: op.get_attr("axis") != 0),
    "Pack": _stack,
    "Reshape": _first_input,  # It keeps the order of all entries, whatever it is.
    "ResourceGather": _of_input(1, lambda op: op.get_attr("batch_dims") == 0),
    "Roll": _of_input(0, _avoids_examples(axes=2, array=0)),
    "Select": _select,
    "Slice": _of_input(0, _takes_all_examples),
    "SpaceToDepth": _first_input,
    "Split": _of_input(1, _avoids_examples(axes=0, array=1)),
    "SplitV": _of_input(0, _avoids_examples(axes=2, array=0)),
    "Squeeze": _first_input,  # The examples are more than one.
    "StridedSlice": _of_input(0, _slices_other_axes),
    "Transpose": _of_input(0, _begins_with_examples),
    "Unpack": _of_input(0, lambda op: op.get_attr("axis") % op.inputs[0].shape.rank > 0),
}
