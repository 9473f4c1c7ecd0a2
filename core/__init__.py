"""What every part of kvblend shares: errors, settings, identities and the versioned schemas. Imports no torch."""
