"""The passage KV file format and the tiers that hold such files."""
