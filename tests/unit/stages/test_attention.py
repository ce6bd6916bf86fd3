"""Relevance of grid cells against what is known by hand, and the pointing games on maps whose answer is plain."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.attention.pointing import Pointing, pointing, relative, upsample
from stages.attention.relevance import grad_cam, signed_relevance
from stages.images import Placement, content

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.normal(size=(9, 6)) + 0.5
WEIGHTS = RANDOM.random(9)
COEF, INTERCEPT = RANDOM.normal(size=(4, 6)), np.array([0.3, -0.2, -np.inf, 0.1])


def linear(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """A head that reads unit vectors and never says its third class."""
    return vectors @ COEF.T + INTERCEPT


def bent(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """A head that is far from linear."""
    return np.tanh(2 * vectors @ COEF.T) @ COEF[:, :4] + np.array([0.0, 1.0, 0.0, 0.0])


def analytic(tokens: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """w_j g . t_j with g the gradient of the predicted logit minus the mean of the finite ones, by hand."""
    v = weights @ tokens
    length = np.linalg.norm(v)
    said = [0, 1, 3]
    row = COEF[linear(v[None] / length)[0].argmax()] - COEF[said].mean(axis=0)
    gradient = (row - v * (v @ row) / length**2) / length
    return weights * (tokens @ gradient)


def test_relevance_of_a_linear_head_is_the_gradient() -> None:
    signed = signed_relevance(TOKENS, WEIGHTS, linear)
    np.testing.assert_allclose(signed, analytic(TOKENS, WEIGHTS), atol=1e-7)
    np.testing.assert_array_equal(grad_cam(TOKENS, WEIGHTS, linear), np.maximum(signed, 0))


def test_relevance_of_a_bent_head_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    tokens = torch.tensor(TOKENS, requires_grad=True)
    v = torch.tensor(WEIGHTS) @ tokens
    coef = torch.tensor(COEF)
    y = torch.tanh(2 * torch.nn.functional.normalize(v, dim=0) @ coef.T) @ coef[:, :4]
    y = y + torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    (y.max() - y.mean()).backward()
    expected = (tokens.grad * tokens).sum(dim=1).detach().numpy()
    np.testing.assert_allclose(signed_relevance(TOKENS, WEIGHTS, bent), expected, atol=1e-5)


@pytest.mark.parametrize("head", [linear, bent])
def test_what_speaks_for_the_class_and_against_it_balances(head) -> None:
    signed = signed_relevance(TOKENS, WEIGHTS, head)
    assert np.abs(signed).max() > 0.01
    assert abs(signed.sum()) < 1e-6


def test_order_of_the_cells_does_not_matter() -> None:
    order = np.random.default_rng(1).permutation(len(TOKENS))
    mixed = grad_cam(TOKENS[order], WEIGHTS[order], bent)
    np.testing.assert_allclose(mixed, grad_cam(TOKENS, WEIGHTS, bent)[order], atol=1e-8)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_length_of_the_tokens_does_not_matter(scale: float) -> None:
    expected = grad_cam(TOKENS, WEIGHTS, bent)
    np.testing.assert_allclose(grad_cam(scale * TOKENS, WEIGHTS, bent), expected, atol=1e-6)
    np.testing.assert_allclose(grad_cam(TOKENS, WEIGHTS / scale, bent), expected, atol=1e-6)


def test_cell_that_alone_carries_the_class_is_the_maximum() -> None:
    tokens = np.tile([1.0, 0.0, 0.0], (9, 1))
    tokens[5] = [1.0, 2.0, 0.0]
    relevance = grad_cam(tokens, np.ones(9), lambda v: np.stack([5 * v[:, 1], v[:, 2]], axis=1))
    assert relevance.argmax() == 5
    assert not relevance[np.arange(9) != 5].any()


def test_cell_without_weight_has_no_relevance() -> None:
    weights = np.where(np.arange(9) < 4, WEIGHTS, 0.0)
    signed = signed_relevance(TOKENS, weights, linear)
    assert not signed[4:].any()
    np.testing.assert_allclose(signed[:4], signed_relevance(TOKENS[:4], weights[:4], linear), atol=1e-8)


def test_nothing_to_go_by_gives_a_blank_map() -> None:
    assert not grad_cam(np.zeros((9, 6)), WEIGHTS, linear).any()
    assert not grad_cam(TOKENS, WEIGHTS, lambda v: np.zeros((len(v), 3))).any()


def test_weights_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(3,\) for \(9, 6\)"):
        grad_cam(TOKENS, np.ones(3), linear)


def test_upsampled_map_has_its_cells_at_their_centres() -> None:
    heat = np.array([[0.0, 1.0], [2.0, 4.0]])
    spread = upsample(heat, Placement(8, 0, 8, 16), 16)
    assert spread.shape == (16, 16)
    assert not spread[:8].any()
    np.testing.assert_allclose(spread[[8, 8, 15, 15], [0, 15, 0, 15]], [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(spread[8:].mean(), relative(heat).mean(), atol=1e-6)
    assert (spread.min(), spread.max()) == (0, 1)


def test_box_over_the_edge_shows_the_part_that_is_on_the_canvas() -> None:
    heat = np.random.default_rng(0).random((3, 3))
    large = upsample(heat, Placement(8, 8, 32, 32), 64)
    np.testing.assert_allclose(upsample(heat, Placement(-8, -8, 32, 32), 64)[:24, :24], large[16:40, 16:40], atol=1e-6)


def corner(cell: tuple[int, int]) -> NDArray[np.float64]:
    heat = np.zeros((4, 4))
    heat[cell] = 3.0
    return heat


MASK = content(Placement(0, 0, 16, 16), 64)
WHOLE = Placement(0, 0, 64, 64)


def test_map_that_points_into_the_mask_hits() -> None:
    found = pointing(corner((0, 0)), WHOLE, MASK, WHOLE)
    assert found.hit
    assert found.energy > 0.7
    assert found.area == 1 / 16


def test_map_that_points_elsewhere_misses() -> None:
    found = pointing(corner((3, 3)), WHOLE, MASK, WHOLE)
    assert found == Pointing(hit=False, energy=0.0, area=1 / 16)


def test_even_map_gets_what_chance_gives() -> None:
    found = pointing(np.ones((4, 4)), WHOLE, MASK, WHOLE)
    assert found.energy == pytest.approx(found.area)


IMAGE = Placement(16, 0, 32, 64)
LESION = content(Placement(16, 16, 16, 16), 64)


def test_maximum_in_the_padding_misses_though_the_highest_point_of_the_image_is_in_the_mask() -> None:
    heat = 2 * corner((0, 1)) + corner((1, 1))
    assert not pointing(heat, WHOLE, LESION, IMAGE).hit
    assert pointing(corner((0, 1)) + 2 * corner((1, 1)), WHOLE, LESION, IMAGE).hit


def test_what_lies_in_the_padding_is_outside() -> None:
    alone, beside = (pointing(heat, WHOLE, LESION, IMAGE) for heat in (corner((1, 1)), corner((1, 1)) + corner((3, 3))))
    assert beside.energy == pytest.approx(alone.energy / 2, rel=0.2)
    assert pointing(np.ones((4, 4)), WHOLE, LESION, IMAGE).energy == pytest.approx(LESION.mean())
    assert alone.area == 16 * 16 / (32 * 64)


def test_mask_in_the_padding_does_not_count() -> None:
    heat, padding = corner((0, 0)) + corner((1, 1)), content(Placement(0, 0, 16, 64), 64)
    assert pointing(heat, WHOLE, LESION | padding, IMAGE) == pointing(heat, WHOLE, LESION, IMAGE)


def test_blank_map_is_a_miss_without_energy() -> None:
    found = pointing(np.zeros((4, 4)), WHOLE, MASK, WHOLE)
    assert not found.hit
    assert np.isnan(found.energy)


def test_mask_outside_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        pointing(np.ones((4, 4)), WHOLE, MASK, Placement(16, 0, 32, 64))
