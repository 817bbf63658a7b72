"""Floating-point work of a traced function: products and convolutions, 2 per multiply-add."""

import math


def count(jaxpr) -> int:
    """FLOPs of a jaxpr's dot_general and conv_general_dilated, inner jaxprs included.

    A loop counts once per iteration where its length is known (scan); the body of a while loop
    counts once.
    """
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * out * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out * math.prod(kernel) // kernel[out_axis]
        else:
            repeats = eqn.params.get("length", 1) if name == "scan" else 1
            total += repeats * sum(count(inner) for inner in _inner(eqn.params))
    return total


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(item, "jaxpr"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item
