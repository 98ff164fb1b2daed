//! NBD codec and negotiation as pure state machines, no I/O.
