"""How transmissions live with their process: exit, fork, threads, and hosts such as uWSGI.

`registration.register` flushes a transmission at exit and resets it in forked children. Importing
these modules registers nothing: the first transmission does, and the first tracer.
"""
