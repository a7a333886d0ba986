"""Measures the per-example gradients of a ResNet-20 by `torch.func` and BackPACK, for gram.py.

Prints JSON: the figures of `measuring.compared_with`. Arguments: N' and the number of rounds.
"""

import json
import sys
from collections.abc import Callable, Iterable

import measuring
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

try:
    import backpack
    from backpack.extensions import BatchGrad
except ImportError:
    backpack = None

_VERSION = torch.__version__.partition("+")[0]
_GRADIENT = f"PyTorch {_VERSION}: batch gradient"
_FUNC = f"PyTorch {_VERSION}: vmap(grad)"
_BACKPACK = f"PyTorch {_VERSION}: BackPACK"


class ResNet20(nn.Module):
    """The network of `fisher_keras.models`' "resnet", with channels first.

    Its modules come in the order in which they are called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = _convolution(3, 16)
        units, channels = [], 16
        for filters in (16, 32, 64):
            for _ in range(3):
                units.append(_Unit(channels, filters))
                channels = filters
        # The first unit's activation comes before the two paths split.
        units[0].activated_shortcut = True
        self.units = nn.Sequential(*units)
        self.last_norm = _normalization(64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Takes images of shape (N, 3, H, W) to logits of shape (N, 10)."""
        x = functional.relu(self.last_norm(self.units(self.first(images))))
        return self.classifier(x.mean(dim=(2, 3)))


class _Unit(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.stride = filters // channels
        self.activated_shortcut = False
        self.norm1 = _normalization(channels)
        self.convolution1 = _convolution(channels, filters, self.stride)
        self.norm2 = _normalization(filters)
        self.convolution2 = _convolution(filters, filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = functional.relu(self.norm1(x))
        residual = self.convolution2(functional.relu(self.norm2(self.convolution1(activated))))
        x = activated if self.activated_shortcut else x
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, 0, residual.shape[1] - x.shape[1]))
        return x + residual


def _convolution(channels: int, filters: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)


def _normalization(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-5)


def batch_gradient(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    """Makes the action that takes the gradient of the mean loss."""
    parameters = list(network.parameters())

    def action() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(functional.cross_entropy(network(images), labels), parameters)

    return action


def log_determinant(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    """Makes the action that takes ln det J J^T, with `vmap(grad)` and one float64 product."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: dict, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = functional_call(network, parameters, (image[None],))
        return functional.cross_entropy(logits, label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def action() -> float:
        return _log_determinant(gradients(parameters, images, labels).values())

    return action


def log_determinant_by_backpack(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> Callable:
    """Makes the action that takes ln det J J^T, with BackPACK's `BatchGrad` instead."""
    network = backpack.extend(network)
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))

    def action() -> float:
        network.zero_grad()
        with backpack.backpack(BatchGrad()):
            loss(network(images), labels).backward()
        return _log_determinant(p.grad_batch for p in network.parameters())

    return action


def _log_determinant(gradients: Iterable[torch.Tensor]) -> float:
    """Takes the gradients of each parameter, one of them a row, to ln det J J^T."""
    jacobian = torch.cat([g.flatten(1) for g in gradients], dim=1).double()
    return float(torch.linalg.slogdet(jacobian @ jacobian.T)[1])


_VARIANTS = {_GRADIENT: batch_gradient, _FUNC: log_determinant}
if backpack is not None:
    _VARIANTS[_BACKPACK] = log_determinant_by_backpack


def measure(num_samples: int, rounds: int) -> dict[str, dict]:
    """Measures all variants."""
    actions = {variant: _start(variant, num_samples) for variant in _VARIANTS}
    for variant, action in actions.items():
        measuring.progress(f"first calls, {variant}")
        action()
        action()
    times = measuring.interleaved(actions, rounds, "PyTorch")
    memory = {
        variant: measuring.in_fresh_process(_peak_memory, variant, num_samples)
        for variant in _VARIANTS
    }
    return measuring.compared_with(_GRADIENT, times, memory)


def _start(variant: str, num_samples: int) -> Callable:
    torch.manual_seed(0)
    images = torch.randn(num_samples, 3, 32, 32)
    labels = torch.arange(num_samples) % 10
    return _VARIANTS[variant](ResNet20().eval(), images, labels)


def _peak_memory(variant: str, num_samples: int) -> float:
    return measuring.peak_memory(lambda: _start(variant, num_samples), warm_calls=1)[0]


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
