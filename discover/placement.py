"""How many workers of each kind a cluster has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from discover.workers import Request

_COMMON = ("CPU", "memory")


def fit(nodes: Sequence[Mapping[str, float]], requests: Sequence[Request]) -> list[int]:
    """Fills node after node; where several kinds fit, the one of which there are fewest is next, and of equals the one
    that asks for something rare (not CPU or memory), so that no kind goes without where it could have been placed.

    Args:
        nodes: what each node has, name -> quantity.
        requests: the kinds. One that asks for nothing takes no room, and gets one worker a node.

    Returns:
        How many of each kind, in the order of `requests`.
    """
    counts = [0] * len(requests)
    rare = [sum(quantity > 0 and name not in _COMMON for name, quantity in request) for request in requests]
    for node in nodes:
        free = dict(node)
        open_kinds = set(range(len(requests)))
        while open_kinds := {kind for kind in open_kinds if _fits(free, requests[kind])}:
            kind = min(open_kinds, key=lambda each: (counts[each], -rare[each], each))
            counts[kind] += 1
            for name, quantity in requests[kind]:
                free[name] = free.get(name, 0.0) - quantity
            if not any(quantity for _, quantity in requests[kind]):
                open_kinds.remove(kind)
    return counts


def _fits(free: Mapping[str, float], request: Request) -> bool:
    return all(free.get(name, 0.0) >= quantity - 1e-9 for name, quantity in request)
