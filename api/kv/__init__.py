"""Passage KV as the service keeps it: encoded, completed, limited, controlled, deleted."""
