"""Names of methods."""

from __future__ import annotations

import pytest

from stages.methods import check_method, sees_masks, variant_of, views_of


@pytest.mark.parametrize(
    ("method", "variant", "views", "masked"),
    [
        ("medfocus", "text-attn", (), True),
        ("medfocus-text-attn", "text-attn", (), True),
        ("medfocus-concat-mlp@original+roi", "concat-mlp", ("original", "roi"), True),
        ("medfocus@original", "text-attn", ("original",), False),
        ("medfocus-logits@tokens", "logits", ("tokens",), False),
        ("constant", None, (), False),
        ("shape", None, (), True),
        ("original", None, ("original",), False),
        ("original+roi", None, ("original", "roi"), True),
        ("roi-random-box", None, ("roi-random-box",), True),
    ],
)
def test_name_of_a_method_says_what_it_reads(method, variant, views, masked):
    assert check_method(method) == method
    assert variant_of(method) == variant
    assert views_of(method) == views
    assert sees_masks(method) == masked


def test_view_that_no_name_gives_is_the_default():
    assert views_of("medfocus-hadamard", "crop") == ("crop",)
    assert views_of("medfocus@roi", "crop") == ("roi",)
    assert views_of("roi", "crop") == ("roi",)


@pytest.mark.parametrize("method", ["medfocus-mlp", "medfocus@", "medfocus+roi", "roi@original", "medfocusing"])
def test_name_that_is_nearly_one_is_refused_with_the_forms(method):
    with pytest.raises(
        ValueError, match=r"no method; one is shape, constant, VIEWS, or medfocus\[-VARIANT\]\[@VIEWS\]"
    ):
        check_method(method)
