"""Attention computed in parts of the keys: where the parts go, and their merge."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.launch import Launch

__all__ = ["Parts"]

ROWS_PER_PROGRAM = 8


@dataclass(frozen=True)
class Parts:
    """Attention `out` of `[num_queries, num_heads, head_dim]` and its log-sum-exp, by way of `num_parts` parts."""

    out: Tensor
    lse: Tensor  # fp32 [num_queries, num_heads]
    part_out: Tensor  # fp32 [num_parts, num_queries, num_heads, head_dim]; out itself where there is one part
    part_lse: Tensor
    num_parts: int

    @classmethod
    def of(cls, q: Tensor, num_parts: int) -> "Parts":
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if num_parts == 1:
            return cls(out, lse, out, lse, 1)
        part_out = torch.empty((num_parts, *q.shape), dtype=torch.float32, device=q.device)
        part_lse = torch.empty((num_parts, *q.shape[:2]), dtype=torch.float32, device=q.device)
        return cls(out, lse, part_out, part_lse, num_parts)

    def merge(self) -> list[Launch]:
        """The launch that joins the parts; none where there is one."""
        import triton

        from kvblend.triton_kernels.row_kernels import merge_parts_kernel

        if self.num_parts == 1:
            return []
        num_rows, head_dim = self.lse.numel(), self.out.shape[2]
        arguments = {
            "part_out": self.part_out,
            "part_lse": self.part_lse,
            "out": self.out,
            "lse": self.lse,
            "num_rows": num_rows,
        }
        constants = {
            "PARTS": self.num_parts,
            "HEAD_DIM": head_dim,
            "DIMS": triton.next_power_of_2(head_dim),
            "ROWS": ROWS_PER_PROGRAM,
        }
        return [Launch(merge_parts_kernel, (triton.cdiv(num_rows, ROWS_PER_PROGRAM),), arguments, constants)]
