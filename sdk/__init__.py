"""Python client of the REST service; stands on core alone."""
