//! Disk semantics over the store.
