#!/bin/bash
# The gateway's start: the lease's watch beside it, then Enterprise Gateway itself as init's only child.
# The watch goes to init by an orphaning fork: as the gateway's own child it would be taken for one of its kernels.
(/opt/lab/watch-lease.sh &)
exec "$@"
