"""What a line of the log says beside its text, of the request that it is about."""

__all__ = ["log_ids"]


def log_ids(request_id: str, trace_id: str | None = None) -> dict[str, str]:
    """Fields of a JSON line: vLLM's id of a request, and that of its trace where it has one."""
    return {"request_id": request_id, **({} if trace_id is None else {"trace_id": trace_id})}
