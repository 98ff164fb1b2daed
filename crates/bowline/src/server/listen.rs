//! Where clients connect: sockets that listen, and what is set on every connection.

use std::io::{self, ErrorKind};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::config::Listen;
use crate::control::api::{Kind, Problem};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// What the kernel may hold of a stream on a Unix socket; it takes less where it must.
const UNIX_BUFFER_BYTES: usize = 4 << 20;
/// How long a port may be in use by a server that has just died: its ring lets go of it a little
/// later, and until then connections are taken that nobody will ever serve.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a Unix socket, which tells who listens.
const PATIENCE_UNIX: Duration = Duration::from_secs(1);

enum Socket {
    Tcp(TcpListener),
    /// The file goes with the listener that made it.
    Unix(UnixListener, Option<PathBuf>),
}

/// A socket that listens. Dropping the one that was bound takes a Unix socket's file away.
pub struct Listener {
    /// Where it is, as clients would name it.
    pub address: Listen,
    socket: Socket,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket, _) => socket.as_fd(),
        }
    }
}

impl Listener {
    /// Listens at an address. The file of a Unix socket that nobody listens at is replaced.
    ///
    /// # Errors
    /// If the address is in use, is no place for a socket, or the system refuses.
    pub fn bind(address: &Listen) -> Result<Listener, Problem> {
        let failed = |error: io::Error| {
            let problem = Problem::new(Kind::Failed, format!("cannot listen on {address}"));
            let in_use = error.kind() == ErrorKind::AddrInUse;
            let problem = problem.why(error.to_string());
            if in_use { problem.next("choose another address with --nbd") } else { problem }
        };
        let started = Instant::now();
        let patience = if let Listen::Unix(_) = address { PATIENCE_UNIX } else { PATIENCE };
        loop {
            match attempt(address) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    if started.elapsed() >= patience {
                        return Err(failed(error));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result.map_err(failed),
            }
        }
    }

    /// A socket whose keeper has died: the file of a Unix socket goes with this listener.
    #[must_use]
    pub fn inherited(address: Listen, socket: OwnedFd) -> Listener {
        let mut listener = Listener::handed(address, socket);
        if let (Listen::Unix(path), Socket::Unix(_, file)) =
            (&listener.address, &mut listener.socket)
        {
            *file = Some(path.clone());
        }
        listener
    }

    /// A socket that another process has bound.
    #[must_use]
    pub fn handed(address: Listen, socket: OwnedFd) -> Listener {
        let socket = match address {
            Listen::Tcp(..) => Socket::Tcp(socket.into()),
            Listen::Unix(_) => Socket::Unix(socket.into(), None),
        };
        Listener { address, socket }
    }

    /// Takes a connection that waits, set up for NBD; `None` if none waits.
    ///
    /// # Errors
    /// Those of `accept`; that a client has gone away again is none.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let accepted = match &self.socket {
            Socket::Tcp(socket) => socket.accept().map(|(stream, _)| {
                // Refused options only make it slower.
                let _ = stream.set_nodelay(true);
                let stream = OwnedFd::from(stream);
                let _ = sockopt::set_socket_oobinline(&stream, true);
                let _ = sockopt::set_socket_keepalive(&stream, true);
                stream
            }),
            Socket::Unix(socket, _) => socket.accept().map(|(stream, _)| {
                let stream = OwnedFd::from(stream);
                let _ = sockopt::set_socket_send_buffer_size(&stream, UNIX_BUFFER_BYTES);
                let _ = sockopt::set_socket_recv_buffer_size(&stream, UNIX_BUFFER_BYTES);
                stream
            }),
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, Some(path)) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn attempt(address: &Listen) -> io::Result<Listener> {
    match address {
        Listen::Tcp(host, port) => {
            let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
            let socket = TcpListener::bind(&addresses[..])?;
            socket.set_nonblocking(true)?;
            rustix::net::listen(&socket, BACKLOG)?;
            let port = socket.local_addr()?.port();
            let address = Listen::Tcp(host.clone(), port);
            Ok(Listener { address, socket: Socket::Tcp(socket) })
        }
        Listen::Unix(path) => {
            let path = std::path::absolute(path)?;
            let socket = bind_unix(&path)?;
            socket.set_nonblocking(true)?;
            rustix::net::listen(&socket, BACKLOG)?;
            let address = Listen::Unix(path.clone());
            Ok(Listener { address, socket: Socket::Unix(socket, Some(path)) })
        }
    }
}

/// Whether somebody listens at a Unix socket and is alive. A dead server's ring may hold its socket
/// open for a while.
fn is_served(path: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(path) else { return false };
    let Ok(listener) = sockopt::socket_peercred(&stream) else { return true };
    let process = listener.pid.as_raw_nonzero();
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        // The state follows the name, which stands in brackets and may hold anything.
        Ok(stat) => !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Binds beside the path and moves the socket there: clients that come back find the old one or
/// the new one, never none.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        Ok(_) if is_served(path) => return Err(ErrorKind::AddrInUse.into()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push("~");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = Listen::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead server's socket is left");
        let first = Listener::bind(&address).unwrap();
        let error = Listener::bind(&address).err().unwrap();
        assert!(error.next.is_some(), "{error:?}");
        // Those that only asked whether anybody answers.
        while first.accept().unwrap().is_some() {}
        let _client = UnixStream::connect(&path).unwrap();
        assert!(first.accept().unwrap().is_some());
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "mine").unwrap();
        assert!(Listener::bind(&Listen::Unix(path.clone())).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn the_port_that_was_drawn_is_named() {
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1".into(), 0)).unwrap();
        let Listen::Tcp(_, port) = listener.address else { panic!("not TCP") };
        assert_ne!(port, 0);
    }
}
