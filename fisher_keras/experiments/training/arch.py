"""Networks of trainings: the package's own, Keras' applications, and a user's."""

import hashlib
import types

import keras

from fisher_keras.classifier.logits import gives_probabilities
from fisher_keras.experiments.code_names import imported_modules, is_users
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.option_checks import NETWORK_OPTIONS
from fisher_keras.experiments.user_code import import_module, load_function
from fisher_keras.models import RECIPES, Recipe, build_model

_KERAS = "keras.applications"


def recipe_of(arch: str) -> Recipe:
    """Returns the recipe of a network; that of the ResNet for networks that have none."""
    return RECIPES.get(arch, RECIPES["resnet"])


def build_network(
    config: TrainingConfig, num_classes: int, image_shape: tuple[int, int, int]
) -> keras.Model:
    """Builds the plain classifier of a training.

    Args:
        config: The configuration.
        num_classes: K.
        image_shape: (H, W, channels).

    Returns:
        A model from images, normalized by channel, to logits of shape (N, K).

    Raises:
        ValueError: If there is no such network, or it cannot be built for the images, or it gives
            something else.
    """
    arch = config.arch
    if ":" not in arch:
        options = {name: getattr(config, name) for name in NETWORK_OPTIONS}
        return build_model(arch, num_classes, image_shape, **options)
    function = load_function(arch, "--arch")
    if arch.startswith(f"{_KERAS}:"):
        model = function(
            weights=None, input_shape=image_shape, classes=num_classes, classifier_activation=None
        )
    else:
        model = function(num_classes, image_shape)
    shape = getattr(model, "output_shape", None)
    if shape != (None, num_classes) or gives_probabilities(model):
        raise ValueError(
            f"--arch={arch} must return a built keras.Model that gives {num_classes} logits for "
            f"images of shape {image_shape}, without a softmax at its end. Given: {model!r} with "
            f"outputs of shape {shape}"
        )
    return model


def network_settings(arch: str) -> dict[str, dict[str, str]]:
    """Returns the part of a run's settings that tells the code of a user's network.

    It is that of the function's module, and of the user's modules that are imported there.
    """
    module = arch.partition(":")[0]
    if module in (arch, _KERAS):
        return {}
    modules = [import_module(module, "--arch")]
    for one in modules:  # It grows.
        modules += [found for found in _imports(one) if found not in modules]
    source = "".join(map(_source, modules))
    return {"network": {"source": hashlib.sha256(source.encode()).hexdigest()[:16]}}


def _imports(module: types.ModuleType) -> list[types.ModuleType]:
    """Returns the user's modules that a module imports, each once."""
    code = compile(_source(module), module.__name__, "exec")
    found = imported_modules(types.FunctionType(code, vars(module)))
    return [one for one in dict.fromkeys(found) if is_users(one.__name__)]


def _source(module: types.ModuleType) -> str:
    loader = module.__spec__.loader
    return (getattr(loader, "get_source", lambda name: None)(module.__name__)) or ""
