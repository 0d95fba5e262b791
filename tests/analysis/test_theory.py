"""Section 2.3 of the paper: Eq. 8 to 19, each against autograd or a full Hessian in float64."""

import pytest
import torch
from torch import Tensor

FAN_IN = 9


def center(w: Tensor) -> Tensor:
    """Eq. 5."""
    return w - w.mean()


def divide(w: Tensor) -> Tensor:
    """Eq. 6, of a vector whose mean is taken for zero."""
    return w / w.square().mean().sqrt()


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    """A filter and a gradient on its standardized form."""
    torch.manual_seed(0)
    return torch.randn(FAN_IN, dtype=torch.double) + 0.3, torch.randn(FAN_IN, dtype=torch.double)


def backward(function: object, at: Tensor, g: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(at), at, g)  # type: ignore[operator]
    return grad


def test_equation_8_gradient_through_the_division(vectors: tuple[Tensor, Tensor]) -> None:
    w, g = vectors
    centred = center(w)
    what, sigma = divide(centred), centred.square().mean().sqrt()
    expected = (g - (what @ g) * what / FAN_IN) / sigma
    torch.testing.assert_close(backward(divide, centred, g), expected, rtol=1e-12, atol=1e-14)


def test_equation_9_gradient_through_the_subtraction(vectors: tuple[Tensor, Tensor]) -> None:
    w, g = vectors
    torch.testing.assert_close(backward(center, w, g), g - g.sum() / FAN_IN, rtol=1e-12, atol=1e-14)


def test_equations_10_to_12_length_after_the_division(vectors: tuple[Tensor, Tensor]) -> None:
    """||dL/dW.||^2 = (||g||^2 + <Ŵ, g>^2 (<Ŵ, Ŵ> - 2 I) / I^2) / sigma^2 = (||g||^2 - <Ŵ, g>^2 / I) / sigma^2."""
    w, g = vectors
    centred = center(w)
    what, sigma = divide(centred), centred.square().mean().sqrt()
    length = backward(divide, centred, g).square().sum()
    general = (g @ g + (what @ g) ** 2 * (what @ what - 2 * FAN_IN) / FAN_IN**2) / sigma**2
    torch.testing.assert_close(length, general, rtol=1e-12, atol=0)
    torch.testing.assert_close(what @ what, torch.tensor(float(FAN_IN), dtype=torch.double), rtol=1e-12, atol=0)
    torch.testing.assert_close(length, (g @ g - (what @ g) ** 2 / FAN_IN) / sigma**2, rtol=1e-12, atol=0)


def test_equations_13_to_15_length_after_the_subtraction(vectors: tuple[Tensor, Tensor]) -> None:
    """||dL/dW||^2 = ||dL/dW.||^2 - <1, dL/dW.>^2 / I, and <1, dL/dW.> = <1, g> / sigma because <1, Ŵ> = 0."""
    w, g = vectors
    centred = center(w)
    what, sigma = divide(centred), centred.square().mean().sqrt()
    inner = backward(divide, centred, g)
    whole = backward(lambda v: divide(center(v)), w, g)
    torch.testing.assert_close(whole @ whole, inner @ inner - inner.sum() ** 2 / FAN_IN, rtol=1e-12, atol=0)
    torch.testing.assert_close(inner.sum(), g.sum() / sigma, rtol=1e-11, atol=1e-13)
    expected = (g @ g - (what @ g) ** 2 / FAN_IN - g.sum() ** 2 / FAN_IN) / sigma**2
    torch.testing.assert_close(whole @ whole, expected, rtol=1e-12, atol=0)


def test_equation_16_gradients_get_no_longer(vectors: tuple[Tensor, Tensor]) -> None:
    """The Lipschitz constant does not grow: sigma ||dL/dW|| <= ||g||, with equality for no g but those orthogonal."""
    w, _ = vectors
    sigma = w.std(correction=0)
    for seed in range(50):
        torch.manual_seed(seed)
        g = torch.randn(FAN_IN, dtype=torch.double)
        assert sigma * backward(lambda v: divide(center(v)), w, g).norm() < g.norm()


class TestHessian:
    """Eq. 17 to 19 on a loss whose Hessian is neither diagonal nor constant."""

    @staticmethod
    def loss(w: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        mix = torch.randn(6, FAN_IN, generator=generator, dtype=torch.double)
        return (mix @ divide(w)).tanh().pow(3).sum() + (mix[0] @ w) ** 3

    @pytest.fixture
    def hessians(self, vectors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """With respect to the weight, and to the centred weight as a free variable."""
        w = vectors[0]
        hessian = torch.autograd.functional.hessian
        return hessian(lambda v: self.loss(center(v)), w), hessian(self.loss, center(w))

    def test_equation_17(self, hessians: tuple[Tensor, Tensor]) -> None:
        h, free = hessians
        rows, columns = free.mean(1, keepdim=True), free.mean(0, keepdim=True)
        torch.testing.assert_close(h, free - rows - columns + free.mean(), rtol=1e-10, atol=1e-12)
        p = torch.eye(FAN_IN, dtype=torch.double) - 1 / FAN_IN
        torch.testing.assert_close(h, p @ free @ p, rtol=1e-10, atol=1e-12)

    def test_equation_18(self, hessians: tuple[Tensor, Tensor]) -> None:
        h, free = hessians
        assert abs(float(h.sum())) < 1e-11 < abs(float(free.sum()))
        assert float(h.sum(0).abs().max()) < 1e-11, "in every row and column, too"

    def test_equation_19_holds_for_squares(self, hessians: tuple[Tensor, Tensor]) -> None:
        h, free = hessians
        bound = free.square().sum() - free.sum() ** 2 / FAN_IN**2
        assert h.square().sum() <= bound < free.square().sum()

    def test_equation_19_as_printed_is_false(self) -> None:
        """With norms instead of squares it would bound a norm from above by a negative number."""
        free = torch.full((FAN_IN, FAN_IN), 5.0, dtype=torch.double)
        p = torch.eye(FAN_IN, dtype=torch.double) - 1 / FAN_IN
        h = p @ free @ p
        assert h.norm() > free.norm() - free.sum() ** 2 / FAN_IN**2
        assert h.square().sum() <= free.square().sum() - free.sum() ** 2 / FAN_IN**2 + 1e-12
