"""HTTP: routes, bodies as they arrive, errors, streams."""
