"""Modules with given state dicts, to be written as TorchScript."""

import torch


class Node(torch.nn.Module):
    """A module that has only parameters, buffers and other such modules."""

    def forward(self, x):
        return x


def module_of(state) -> Node:
    """A module whose state dict is ``state``."""
    root = Node()
    for key, value in state.items():
        *path, leaf = key.split(".")
        node = root
        for name in path:
            if name not in node._modules:
                node.add_module(name, Node())
            node = node._modules[name]
        node.register_buffer(leaf, value)
    return root
