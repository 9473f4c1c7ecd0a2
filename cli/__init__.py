"""The kvblend command."""
