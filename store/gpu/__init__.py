"""The GPU tier, and what brings passage KV to a device."""
