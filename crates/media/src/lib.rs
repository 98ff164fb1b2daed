//! Media: file and raw device by io_uring or threads, and the filters that stack on them.
