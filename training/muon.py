"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): steps along orthogonalized momentum.

So directions that gradients seldom have count as much as those that they always have. PyTorch's own takes no convolutions.
"""

import torch

from training.checkpoint import adamw

# Of the quintic iteration, given there, that moves singular values towards 1.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# The size of an entry's step, as a share of the rate: about AdamW's.
STEP = 0.2


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T of each matrix U S V^T, (n, rows, columns).

    Each iteration multiplies X by a polynomial of X X^T, so that all of them together are one small matrix.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    square, product = x @ x.mT, torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product, square = factor @ product, factor @ factor @ square
    x = product @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions; a convolution's is the matrix of its outputs by all else.

    Matrices of one shape are one batch.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], rate: torch.Tensor | float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            used = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients, means = [parameter.grad for parameter in used], [self._mean(parameter) for parameter in used]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            ahead = [x.flatten(1) for x in torch._foreach_lerp(gradients, means, group["momentum"])]
            for shape in dict.fromkeys(x.shape for x in ahead):
                chosen = [i for i, x in enumerate(ahead) if x.shape == shape]
                change = orthogonalized(torch.stack([ahead[i] for i in chosen]))
                change = change * (-group["lr"] * STEP * max(shape) ** 0.5)
                targets = [used[i] for i in chosen]
                torch._foreach_add_(targets, [x.reshape(target.shape) for x, target in zip(change, targets)])

    def _mean(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        return state["mean"]


def muon(parameters: list[torch.nn.Parameter], rate: torch.Tensor) -> list[torch.optim.Optimizer]:
    """Muon for matrices and convolutions; for vectors, whose orthogonalized steps would all be unit vectors, AdamW."""
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [*adamw(vectors, rate), Muon([parameter for parameter in parameters if parameter.ndim >= 2], rate)]
