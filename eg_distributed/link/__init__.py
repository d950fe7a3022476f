"""The way to a host: logging in, bringing its agent up, connections to the agent. The only rooms that know asyncssh and SSH.

connect         decides between SSH and this machine, and brings the agent up
late            the same for the rest of us, for which asyncssh is imported by the first call
way             what the rest of us knows of a link and a login, without asyncssh
answer          what a login says after it was sent the agent
examination     the same way in single steps, for the doctor
agent_archive   the agent's code, as it goes over
links           what `connect` returns: something that opens byte connections to the agent
bridge          many connections through one, where sshd forbids forwarding
login           one login: configuration, proxies, host keys, and what each failure means
configuration/  what ssh_config says of a host, read once
dial, proxies   a TCP connection; ProxyCommand
known_hosts, certificates, revoked          whether the host is who it says
identities, public_keys, host_based         what the login proves itself with
deadlines, groups                           waiting with a deadline; ending a child with all that it started
"""
