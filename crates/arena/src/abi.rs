//! The kernel's io_uring structures and numbers, as far as [`Ring`](crate::Ring) uses them.
//!
//! Names follow `linux/io_uring.h`; sizes are asserted, because the kernel reads these bytes.

/// One entry of the submission queue.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SubmissionEntry {
    pub opcode: u8,
    pub flags: u8,
    pub io_priority: u16,
    pub descriptor: i32,
    pub offset: u64,
    pub address: u64,
    pub length: u32,
    pub operation_flags: u32,
    pub user_data: u64,
    pub unused: [u64; 3],
}

/// One entry of the completion queue.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CompletionEntry {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}

/// Where the fields of the submission queue lie in the ring memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SubmissionOffsets {
    pub head: u32,
    pub tail: u32,
    pub ring_mask: u32,
    pub ring_entries: u32,
    pub flags: u32,
    pub dropped: u32,
    pub array: u32,
    pub reserved: u32,
    pub user_address: u64,
}

/// Where the fields of the completion queue lie in the ring memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CompletionOffsets {
    pub head: u32,
    pub tail: u32,
    pub ring_mask: u32,
    pub ring_entries: u32,
    pub overflow: u32,
    pub entries: u32,
    pub flags: u32,
    pub reserved: u32,
    pub user_address: u64,
}

/// What `io_uring_setup` is told and tells.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parameters {
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub flags: u32,
    pub sq_thread_cpu: u32,
    pub sq_thread_idle: u32,
    pub features: u32,
    pub wq_descriptor: u32,
    pub reserved: [u32; 3],
    pub sq_offsets: SubmissionOffsets,
    pub cq_offsets: CompletionOffsets,
}

/// The extended argument of `io_uring_enter`: here only for its timeout.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EventsArgument {
    pub signal_mask: u64,
    pub signal_mask_bytes: u32,
    pub min_wait_us: u32,
    pub timespec_address: u64,
}

/// A kernel timespec.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timespec {
    pub seconds: i64,
    pub nanoseconds: i64,
}

/// The argument of a synchronous cancellation.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SyncCancel {
    pub address: u64,
    pub descriptor: i32,
    pub flags: u32,
    pub timeout: Timespec,
    pub opcode: u8,
    pub padding: [u8; 7],
    pub unused: [u64; 3],
}

const _: () = {
    assert!(size_of::<SubmissionEntry>() == 64);
    assert!(size_of::<CompletionEntry>() == 16);
    assert!(size_of::<SubmissionOffsets>() == 40);
    assert!(size_of::<CompletionOffsets>() == 40);
    assert!(size_of::<Parameters>() == 120);
    assert!(size_of::<EventsArgument>() == 24);
    assert!(size_of::<Timespec>() == 16);
    assert!(size_of::<SyncCancel>() == 64);
    assert!(size_of::<Timespec>() == size_of::<libc::timespec>());
};

pub(crate) const SETUP_CQSIZE: u32 = 1 << 3;
pub(crate) const SETUP_SUBMIT_ALL: u32 = 1 << 7;
pub(crate) const SETUP_TASKRUN_FLAG: u32 = 1 << 9;
pub(crate) const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
pub(crate) const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
pub(crate) const SETUP_NO_MMAP: u32 = 1 << 14;

pub(crate) const FEATURE_SUBMIT_STABLE: u32 = 1 << 2;
pub(crate) const FEATURE_EXTENDED_ARGUMENT: u32 = 1 << 8;

pub(crate) const SQ_CQ_OVERFLOW: u32 = 1 << 1;
pub(crate) const SQ_TASKRUN: u32 = 1 << 2;

pub(crate) const ENTER_GETEVENTS: u32 = 1 << 0;
pub(crate) const ENTER_EXTENDED_ARGUMENT: u32 = 1 << 3;

pub(crate) const REGISTER_SYNC_CANCEL: u32 = 24;
pub(crate) const CANCEL_ALL: u32 = 1 << 0;
pub(crate) const CANCEL_ANY: u32 = 1 << 2;

pub(crate) const FSYNC_DATASYNC: u32 = 1;

pub(crate) const OP_NOP: u8 = 0;
pub(crate) const OP_READV: u8 = 1;
pub(crate) const OP_WRITEV: u8 = 2;
pub(crate) const OP_FSYNC: u8 = 3;
pub(crate) const OP_POLL_ADD: u8 = 6;
pub(crate) const OP_SENDMSG: u8 = 9;
pub(crate) const OP_RECVMSG: u8 = 10;
pub(crate) const OP_TIMEOUT: u8 = 11;
pub(crate) const OP_ACCEPT: u8 = 13;
pub(crate) const OP_ASYNC_CANCEL: u8 = 14;
pub(crate) const OP_FALLOCATE: u8 = 17;
pub(crate) const OP_READ: u8 = 22;
pub(crate) const OP_WRITE: u8 = 23;
pub(crate) const OP_SEND: u8 = 26;
pub(crate) const OP_RECV: u8 = 27;

/// `io_uring_setup`: a descriptor, or an error number.
///
/// # Safety
/// With `SETUP_NO_MMAP` the two user addresses in `parameters` must name writable shared memory,
/// large enough for the queues, that stays mapped for as long as the ring is used.
pub(crate) unsafe fn setup(
    entries: u32,
    parameters: &mut Parameters,
) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller vouches for the addresses; `parameters` is a valid, writable structure.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, std::ptr::from_mut(parameters)) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(result as i32) })
}

/// `io_uring_enter` with a timeout: the number of submissions consumed.
///
/// # Safety
/// Every submission entry published to the kernel must name memory and structures that stay valid
/// until the operation has completed.
pub(crate) unsafe fn enter(
    ring: std::os::fd::BorrowedFd<'_>,
    submit: u32,
    complete_min: u32,
    flags: u32,
    timeout: Option<std::time::Duration>,
) -> std::io::Result<u32> {
    use std::os::fd::AsRawFd;
    let time = timeout.map(timespec);
    let argument = EventsArgument {
        timespec_address: time.as_ref().map_or(0, |time| std::ptr::from_ref(time) as u64),
        ..EventsArgument::default()
    };
    // SAFETY: the argument and the time it points to live until the call returns; the caller
    // vouches for what the submission entries name.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            submit,
            complete_min,
            flags | ENTER_EXTENDED_ARGUMENT,
            std::ptr::from_ref(&argument),
            size_of::<EventsArgument>(),
        )
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as u32) }
}

/// Asks the kernel to cancel everything on a ring; does not wait.
pub(crate) fn cancel_all(ring: std::os::fd::BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    let argument =
        SyncCancel { descriptor: -1, flags: CANCEL_ALL | CANCEL_ANY, ..SyncCancel::default() };
    // SAFETY: the argument lives until the call returns. A failure changes nothing: what was not
    // cancelled completes by itself, and the caller waits for it.
    unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_SYNC_CANCEL,
            std::ptr::from_ref(&argument),
            1,
        );
    }
}

/// A duration as the kernel wants it.
pub(crate) fn timespec(duration: std::time::Duration) -> Timespec {
    Timespec {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: i64::from(duration.subsec_nanos()),
    }
}
