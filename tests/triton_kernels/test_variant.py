"""What a launch is compiled as, and into how many parts keys are split."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvblend.triton_kernels.launch import Launch
from kvblend.triton_kernels.parts import Parts
from kvblend.triton_kernels.representative import representative_launches
from kvblend.triton_kernels.tiles import NUMBERS_OF_PARTS, num_splits
from kvblend.triton_kernels.variant import Variant, variant_of

LAUNCHES = {f"{launch.kernel.__name__}, {name}": launch for name, launch in representative_launches(90)}
VARYING = {"num_queries", "num_tiles", "num_context_tokens", "table_stride", "num_rows", "num_tokens", "num_positions"}
"""What differs from request to request."""


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
@pytest.mark.parametrize("number", [None, 1, 7, 48])
def test_it_is_what_triton_tells_variants_by(launch: Launch, number: int | None) -> None:
    """Reference: the binder of Triton's own launches, which on a GPU says what is looked for in its cache."""
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import create_function_from_signature

    if number is not None:
        varied = {name: number if name in VARYING else value for name, value in launch.arguments.items()}
        launch = replace(launch, arguments=varied)
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, BaseBackend)
    _, expected, options = bind(**launch.arguments, **launch.constants, **launch.options())
    ours = variant_of(launch)
    assert [(parameter.type, parameter.known) for parameter in ours.parameters] == expected
    assert [parameter.name for parameter in ours.parameters] == launch.kernel.arg_names
    assert dict(ours.options) == options


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_what_differs_from_request_to_request_makes_no_variant(launch: Launch) -> None:
    """The negative controls: strides, constants and options do."""
    for number in (1, 2, 16, 4711):
        varied = {name: number if name in VARYING else value for name, value in launch.arguments.items()}
        assert variant_of(replace(launch, arguments=varied)) == variant_of(launch)
    for name in launch.arguments:
        if name.endswith("_stride") and name not in VARYING:
            assert variant_of(replace(launch, arguments={**launch.arguments, name: 7})) != variant_of(launch)
    assert variant_of(replace(launch, constants={**launch.constants, "HEAD_DIM": 1})) != variant_of(launch)
    assert variant_of(replace(launch, num_warps=16)) != variant_of(launch)


def test_tensors_make_variants_by_dtype_and_alignment() -> None:
    (launch,) = Parts.of(torch.zeros(3, 2, 16), 2).merge()

    def variant_with(out: torch.Tensor | None) -> Variant:
        return variant_of(replace(launch, arguments={**launch.arguments, "out": out}))

    numbers = torch.zeros(100)
    variants = [variant_with(out) for out in (numbers, numbers[1:], numbers.bfloat16(), None)]
    assert len(set(variants)) == 4
    assert variant_with(numbers[4:]) == variants[0]


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 40))
def test_parts(programs: int, num_keys: int) -> None:
    """Few numbers of them, and never more than there were without that bound; more programs do not mean more."""
    here = torch.empty(0)
    parts = num_splits(programs, num_keys, here)
    assert parts in NUMBERS_OF_PARTS
    most = max(1, min(264 // max(programs, 1), -(-num_keys // 256), 32))
    assert parts <= most < 2 * parts or parts == most == 32
    assert num_splits(programs + 1, num_keys, here) <= parts <= num_splits(programs, num_keys + 1, here)
