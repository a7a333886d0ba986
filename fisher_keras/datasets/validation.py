"""Checks of images and labels, before anything is trained on them."""

import numpy as np

from fisher_keras.datasets.stored_images import StoredImages


def check_images_and_labels(
    images: np.ndarray | StoredImages,
    labels: np.ndarray,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> None:
    """Raises one clear error unless the arrays can be trained on.

    Args:
        images: Expected `(N, H, W, C)`, integers or finite floats; of images that are not in
            memory, only their number and shape are looked at.
        labels: Expected `(N,)`, integers in `0..num_classes - 1`.
        num_classes: K; None leaves the labels without an upper bound.
        image_shape: Expected `(H, W, C)`; None allows any.

    Raises:
        ValueError: At the first thing that is wrong: what was given, and what was expected.
    """
    problem = _image_problem(images, image_shape) or _label_problem(labels, num_classes)
    if not problem and len(images) != len(labels):
        problem = (
            f"there are {len(images)} images but {len(labels)} labels; expected one label an image"
        )
    if problem:
        raise ValueError(problem)


def _image_problem(
    images: np.ndarray | StoredImages, image_shape: tuple[int, int, int] | None
) -> str | None:
    stored = isinstance(images, StoredImages)
    if not stored and (not isinstance(images, np.ndarray) or images.ndim != 4):
        return f"images must be a NumPy array of shape (N, H, W, C), got {_describe(images)}"
    if not stored and images.dtype.kind not in "uif":
        return f"images must be integers or floats, got dtype {images.dtype}"
    if 0 in images.shape:
        return f"expected at least one image and pixel, got images of {images.shape}"
    if image_shape is not None and images.shape[1:] != tuple(image_shape):
        return f"images are of shape {images.shape[1:]}, expected {tuple(image_shape)} (H, W, C)"
    if not stored and images.dtype.kind == "f":
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        if not finite.all():
            return (
                f"{np.sum(~finite)} of {len(images)} images hold NaN or infinite pixels, "
                f"the first is image {np.argmin(finite)}; remove or repair them"
            )
    return None


def _label_problem(labels: np.ndarray, num_classes: int | None) -> str | None:
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "ui":
        return f"labels must be a NumPy array of integers of shape (N,), got {_describe(labels)}"
    outside = (labels < 0) | (labels >= (np.inf if num_classes is None else num_classes))
    if not outside.any():
        return None
    first = np.argmax(outside)
    expected = "0 or larger" if num_classes is None else f"in 0..{num_classes - 1}"
    return f"labels must be {expected}, got {labels[first]} for image {first}"


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
