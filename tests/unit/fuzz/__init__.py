"""Every parser that a client, a node or another process can reach, fed with what none of them should send."""
