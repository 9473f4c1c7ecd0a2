"""The service's routes, one file for each kind of thing."""
