//! NBD sessions over disks.
