"""Login by login, beside OpenSSH: the cases, and what runs them in a gateway's container."""
