"""CUDA graphs: the device's work alone, without the host's between launches."""

from collections.abc import Callable

import torch

__all__ = ["captured"]


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """`run` as a CUDA graph: what the host does in it is done once, and must copy nothing to the device.

    It is run once before, since kernels cannot be compiled while a graph is captured.
    """
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
