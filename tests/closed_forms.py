"""Softmax regression and Algorithm 1 from the textbook, in NumPy."""

import numpy as np

NUM_FEATURES, NUM_CLASSES = 5, 3


def examples(count, seed=3):
    random = np.random.RandomState(seed)
    return random.randn(count, NUM_FEATURES), random.randint(0, NUM_CLASSES, count)


def softmax_regression(x, labels, weights, sample_weight=None):
    """Mean loss of softmax(x W + b) and its gradient."""
    kernel, bias = weights
    sample_weight = np.ones(len(x)) if sample_weight is None else sample_weight
    probabilities = _softmax(x @ kernel + bias)
    losses = -np.log(probabilities[np.arange(len(x)), labels])
    delta = (probabilities - np.eye(len(bias))[labels]) * sample_weight[:, None] / len(x)
    return np.mean(losses * sample_weight), [x.T @ delta, delta.sum(axis=0)]


def softmax_regression_hessian_product(x, weights, direction):
    """The Hessian of `softmax_regression` times a direction."""
    kernel, bias = weights
    probabilities = _softmax(x @ kernel + bias)
    along = x @ direction[0] + direction[1]
    mean = np.sum(probabilities * along, axis=1, keepdims=True)
    delta = probabilities * (along - mean) / len(x)
    return [x.T @ delta, delta.sum(axis=0)]


def algorithm_1(
    x, labels, weights, parts, alpha, beta, sample_weight=None, shared=False, hessian=False
):
    """Lines 2 to 8 of Algorithm 1 for softmax regression."""
    sample_weight = np.ones(len(x)) if sample_weight is None else sample_weight
    loss, gradient = softmax_regression(x, labels, weights, sample_weight)
    regularizer, total, loss_sum = 0.0, [np.zeros_like(w) for w in weights], 0.0
    shared_gradient = [np.zeros_like(w) for w in weights]
    for part in parts:
        batch = (x[part], labels[part])
        here, g = softmax_regression(*batch, weights, sample_weight[part])
        if hessian:
            there = here - alpha * sum(np.sum(d**2) for d in g)
            product = softmax_regression_hessian_product(x[part], weights, g)
            g_there = [d - alpha * p for d, p in zip(g, product, strict=True)]
        else:
            moved = [w - alpha * d for w, d in zip(weights, g, strict=True)]
            there, g_there = softmax_regression(*batch, moved, sample_weight[part])
        regularizer += (here - there) / len(parts)
        total = [t + (a - b) / len(parts) for t, a, b in zip(total, g, g_there, strict=True)]
        loss_sum += here / len(parts)
        shared_gradient = [s + a / len(parts) for s, a in zip(shared_gradient, g, strict=True)]
    if shared:
        loss, gradient = loss_sum, shared_gradient
    return loss, regularizer, [g + beta * t for g, t in zip(gradient, total, strict=True)]


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
