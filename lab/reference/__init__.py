"""Pages that are made from the code: verbs, lab.toml, faults, errors."""
