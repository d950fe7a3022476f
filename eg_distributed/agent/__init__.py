"""What runs on nodes: one process per node and user, standard library only, Python 3.9 or later.

Brought over SSH by `boot`, which is sent as text and starts `server` out of an archive of this package, `protocol.py` and
`streams.py`. `kernels` starts and watches kernel processes, `expansion` expands kernelspec values, `launcher_answer` takes
the answers of Enterprise Gateway's launchers, `processes` tells one process from another, `bridge` stands in where sshd forbids
forwarding.
"""
