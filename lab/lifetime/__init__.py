"""How long a lab lives: held and granted leases, the keeper, removal, labs that are found, and garbage."""
