"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): steps along orthogonalized momentum.

So directions that gradients seldom have count as much as those that they always have. PyTorch's own takes no convolutions.
"""

import torch

from training.checkpoint import adamw

# Of the quintic iteration, given there, that moves singular values towards 1.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# The size of an entry's step, as a share of the rate: about AdamW's.
STEP = 0.2


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """About U V^T of a matrix U S V^T.

    Each iteration multiplies X by a polynomial of X X^T, so that all of them together are one small matrix.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    square, product = x @ x.T, torch.eye(x.shape[0], device=x.device)
    for _ in range(ITERATIONS):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product, square = factor @ product, factor @ factor @ square
    x = product @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions; a convolution's is the matrix of its outputs by all else."""

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"]).flatten(1)
                change = orthogonalized(ahead).to(parameter.dtype).view_as(parameter)
                parameter.add_(change, alpha=-group["lr"] * STEP * max(ahead.shape) ** 0.5)


def muon(parameters: list[torch.nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices and convolutions; for vectors, whose orthogonalized steps would all be unit vectors, AdamW."""
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [*adamw(vectors, rate), Muon([parameter for parameter in parameters if parameter.ndim >= 2], rate)]
