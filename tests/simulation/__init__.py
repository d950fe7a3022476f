"""The gateway's and the agent's real code, over a network, a clock and processes that are only imagined."""
