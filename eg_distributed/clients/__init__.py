"""What a client's websocket gets, whichever jupyter_server it belongs to: nothing is lost, no cell waits for ever.

    connection       a websocket: what we note of it, and what its server has to do for us; each adapter has a subclass
    sessions         which connection each session has, and what waits for those that have none just now
    opening          a client that connects to its kernel again finds what it left
    channels         a connection's channels to its kernel, and how it is seen that they bring what that says
    service          a connection that serves: each message is kept until its client has confirmed it
    ending           what a connection leaves for the next one of its session
    giving           what the agent kept while the server was away, given to a client that comes back
    kept_output      the kernels that were found again, and which sessions are waited for
    delivered        what each client's session has got, on disk
    kept_messages    what clients have not confirmed yet, each up to a limit, and all together
    slow_clients     those that take less than comes: output waits on its way
    notebooks        what the server itself says in notebooks
    out_of_reach     what people are told of a kernel whose host does not answer
    limits           how large a websocket's messages may be
    frames           what the server itself reads of a kernel's messages

No module here imports a jupyter_server or tornado, so all can be used, and tested, where none is installed; two need ZMQ.
"""
