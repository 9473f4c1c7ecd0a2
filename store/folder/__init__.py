"""Tiers that are folders of passage KV files: on tmpfs and on disk."""
