"""The way to a host: logging in, bringing its agent up, connections to the agent. The only rooms that know asyncssh and SSH.

connect         decides between SSH and this machine, and brings the agent up
login           one login: configuration, proxies, host keys
agent_archive   the agent's code, as it goes over
links           what `connect` returns: something that opens byte connections to the agent
bridge          many connections through one, where sshd forbids forwarding
"""
