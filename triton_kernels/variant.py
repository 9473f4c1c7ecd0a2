"""What Triton compiles a launch as. Launches of one variant share a compiled kernel: only the first waits for it."""

from dataclasses import dataclass
from typing import Any

from kvblend.triton_kernels.launch import Launch

__all__ = ["Parameter", "Variant", "variant_of"]


@dataclass(frozen=True)
class Parameter:
    """One of a kernel's parameters as the compiler knows it."""

    name: str
    type: str
    """Triton's name of it, such as i32 or *bf16; constexpr for a constant, an integer of 1, or None."""
    known: Any
    """A constant's value; else "D" of what 16 divides (of a tensor, its address), or nothing."""


@dataclass(frozen=True)
class Variant:
    """A kernel, all of its parameters in order, and what the compiler is told beside them."""

    kernel: str
    parameters: tuple[Parameter, ...]
    options: tuple[tuple[str, Any], ...]


def variant_of(launch: Launch) -> Variant:
    """What the just-in-time compiler would look for, and compile where it is not there."""
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import native_specialize_impl

    unspecialised, parameters = _unspecialised(launch.kernel), []
    for name in launch.kernel.arg_names:
        if name in launch.constants:
            parameters.append(Parameter(name, "constexpr", launch.constants[name]))
            continue
        is_const, by_alignment = False, True
        found = native_specialize_impl(
            BaseBackend, launch.arguments[name], is_const, name not in unspecialised, by_alignment
        )
        parameters.append(Parameter(name, *found))
    return Variant(launch.kernel.__name__, tuple(parameters), tuple(launch.options().items()))


def _unspecialised(kernel: Any) -> set[str]:
    """Parameters that differ from launch to launch, of whose values a variant says nothing."""
    if hasattr(kernel, "params"):
        return {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    return set(kernel.kwargs["do_not_specialize"] or ())  # in Triton's interpreter
