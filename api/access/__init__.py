"""Who may do what: keys, roles and tenants, and how much at a time."""
