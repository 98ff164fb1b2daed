//! An NBD client of our own: fixed newstyle, simple replies, as little as a judge needs.
//!
//! It is written apart from `bowline-wire` on purpose: a mistake there must not be made twice.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

/// Requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Bytes from the disk.
    Read,
    /// Bytes to the disk.
    Write,
    /// Everything acknowledged becomes durable.
    Flush,
    /// The bytes are not needed any more.
    Trim,
    /// The bytes become zeros.
    Zeroes,
}

impl Request {
    fn number(self) -> u16 {
        match self {
            Request::Read => 0,
            Request::Write => 1,
            Request::Flush => 3,
            Request::Trim => 4,
            Request::Zeroes => 6,
        }
    }
}

/// The flag of a write that is durable before its reply.
pub const FUA: u16 = 1;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port of this host.
    Tcp(u16),
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection in its transmission phase.
pub struct Client {
    stream: Box<dyn Stream>,
    /// The size of the export.
    pub bytes: u64,
    /// Its transmission flags.
    pub flags: u16,
}

/// A reply to a request that was sent with [`Client::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The request's cookie.
    pub cookie: u64,
    /// 0, or the number of an error.
    pub error: u32,
}

fn strange(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Client {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// If nobody listens, or the server does not keep to the protocol.
    pub fn connect(address: &Address, export: &str) -> io::Result<Client> {
        // A server that hangs must end the test, not hold it.
        let limit = Some(Duration::from_secs(60));
        let stream: Box<dyn Stream> = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(limit)?;
                Box::new(stream)
            }
            Address::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_read_timeout(limit)?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let mut client = Client { stream, bytes: 0, flags: 0 };
        client.negotiate(export)?;
        Ok(client)
    }

    fn negotiate(&mut self, export: &str) -> io::Result<()> {
        if &self.take::<8>()? != b"NBDMAGIC" || self.number()? != OPTION_MAGIC {
            return Err(strange("not an NBD server"));
        }
        let offered = u16::from_be_bytes(self.take()?);
        self.stream.write_all(&u32::from(offered & 3).to_be_bytes())?;
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&[0, 0]);
        let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend_from_slice(&OPTION_GO.to_be_bytes());
        option.extend_from_slice(&(data.len() as u32).to_be_bytes());
        option.extend_from_slice(&data);
        self.stream.write_all(&option)?;
        loop {
            if self.number()? != OPTION_REPLY_MAGIC {
                return Err(strange("an option reply without its magic"));
            }
            let _option: [u8; 4] = self.take()?;
            let kind = u32::from_be_bytes(self.take()?);
            let length = u32::from_be_bytes(self.take()?);
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            match (kind, data.as_slice()) {
                (REPLY_ACK, _) => return Ok(()),
                (REPLY_INFO, [0, 0, size @ .., f0, f1]) if size.len() == 8 => {
                    self.bytes = size.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
                    self.flags = u16::from_be_bytes([*f0, *f1]);
                }
                (REPLY_INFO, _) => {}
                (error, text) => {
                    let text = String::from_utf8_lossy(text);
                    return Err(strange(format!("the export is refused: {error:#x} {text}")));
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// Sends a request without waiting for its reply.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn send(
        &mut self,
        (request, flags): (Request, u16),
        cookie: u64,
        offset: u64,
        bytes: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&flags.to_be_bytes());
        message.extend_from_slice(&request.number().to_be_bytes());
        message.extend_from_slice(&cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&bytes.to_be_bytes());
        message.extend_from_slice(payload);
        self.stream.write_all(&message)
    }

    /// Waits for the next reply, which must not be one with data.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn receive(&mut self) -> io::Result<Reply> {
        if u32::from_be_bytes(self.take()?) != REPLY_MAGIC {
            return Err(strange("a reply without its magic"));
        }
        let error = u32::from_be_bytes(self.take()?);
        Ok(Reply { error, cookie: self.number()? })
    }

    /// Waits for the next reply, which must be one to a read of so many bytes.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn receive_read(&mut self, bytes: u32) -> io::Result<(Reply, Vec<u8>)> {
        let reply = self.receive()?;
        let mut data = vec![0; if reply.error == 0 { bytes as usize } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok((reply, data))
    }

    /// Sends one request and waits for its end.
    ///
    /// # Errors
    /// If the connection is gone, or the server answers with an error.
    pub fn ask(
        &mut self,
        request: (Request, u16),
        offset: u64,
        bytes: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.send(request, 1, offset, bytes, payload)?;
        match self.receive()? {
            Reply { error: 0, .. } => Ok(()),
            Reply { error, .. } => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`ask`](Client::ask).
    pub fn write(&mut self, offset: u64, payload: &[u8]) -> io::Result<()> {
        self.ask((Request::Write, 0), offset, payload.len() as u32, payload)
    }

    /// Reads.
    ///
    /// # Errors
    /// As [`ask`](Client::ask).
    pub fn read(&mut self, offset: u64, bytes: u32) -> io::Result<Vec<u8>> {
        self.ask((Request::Read, 0), offset, bytes, &[])?;
        let mut data = vec![0; bytes as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`ask`](Client::ask).
    pub fn flush(&mut self) -> io::Result<()> {
        self.ask((Request::Flush, 0), 0, 0, &[])
    }

    /// Says goodbye.
    pub fn disconnect(mut self) {
        let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&[0, 0, 0, 2]);
        message.extend_from_slice(&[0; 20]);
        let _ = self.stream.write_all(&message);
    }
}
