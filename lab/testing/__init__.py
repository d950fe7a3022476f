"""What the pytest plugin stands on: a session's lab, its pool of nodes, what tests leave behind, and their reports."""
