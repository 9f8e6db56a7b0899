"""Muon: momentum whose update of a matrix is made orthogonal, with AdamW for everything else, as one
optimiser.

In: the matrices inside the layers, all other parameters. Out: a torch optimiser with one learning rate. The
update of a matrix has the size that AdamW's would have, so that one rate serves both (Liu et al. 2025, "Muon
is scalable for LLM training", section 2.2). Unlike torch.optim.Muon it works in float32 where a CPU has no
bfloat16, and on all matrices of one shape at once, which a CPU needs. It knows no model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MUON, ADAM = "muon", "adam"


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Group 0 holds the matrices, group 1 the rest. `products`: the precision of the iteration that makes an
    update orthogonal; weights and momentum keep their own."""

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: Sequence[Tensor],
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        products: torch.dtype = torch.float32,
    ) -> None:
        self.products = products
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": decay, "betas": betas, "eps": eps}
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "kind": MUON},
            {"params": list(others), "kind": ADAM, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["kind"] == MUON:
                self._muon(group)
            else:
                self._adam(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                by_shape.setdefault(matrix.shape, []).append(matrix)
        for (rows, columns), matrices in by_shape.items():
            updates = torch.stack([self._momentum(matrix, group["momentum"]) for matrix in matrices])
            scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
            updates = orthogonal(updates.to(self.products)).to(updates.dtype)
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return torch.lerp(matrix.grad, state["momentum"], momentum)  # Nesterov

    def _adam(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "mean" not in state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["step"] += 1
            state["mean"].lerp_(weight.grad, 1 - first)
            state["square"].lerp_(weight.grad.square(), 1 - second)
            count = int(state["step"])
            size = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
            weight.addcdiv_(state["mean"], size, value=-group["lr"] / (1 - first**count))


def orthogonal(updates: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices: singular values end up around 1. [N, R, C] -> same

    Newton-Schulz with the coefficients of Jordan et al. 2024 ("Muon").
    """
    wide = updates.shape[1] <= updates.shape[2]
    x = updates if wide else updates.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)
