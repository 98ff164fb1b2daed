//! The asking side: one request, one answer, over the control socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{Complaint, Document, Kind, Problem};

/// The way to one server.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// What to do with a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Look.
    Get,
    /// Do.
    Post,
    /// Change.
    Patch,
    /// Destroy.
    Delete,
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

impl Client {
    /// A client of the server behind this socket. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// Where the server is expected.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Looks at something.
    ///
    /// # Errors
    /// The server's [`Problem`], or that there is no server.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.request(Method::Get, path, &serde_json::Map::new())
    }

    /// Sends a body and gets the answer.
    ///
    /// # Errors
    /// The server's [`Problem`], or that there is no server.
    pub fn request<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, Problem> {
        let body = serde_json::to_vec(body).map_err(|error| strange(&error.to_string()))?;
        let (status, answer) = self.exchange(method, path, &body)?;
        if status >= 300 {
            let complaint: Document<Complaint> = serde_json::from_slice(&answer)
                .map_err(|_| strange(&format!("status {status} without a reason")))?;
            return Err(complaint.body.error);
        }
        let document: Document<T> =
            serde_json::from_slice(&answer).map_err(|error| strange(&error.to_string()))?;
        Ok(document.body)
    }

    fn exchange(&self, method: Method, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>), Problem> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| self.unreachable(&e))?;
        let head = format!(
            "{} {path} HTTP/1.1\r\nHost: bowline\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            method.word(),
            body.len()
        );
        let mut answer = Vec::new();
        stream
            .write_all(&[head.as_bytes(), body].concat())
            .and_then(|()| stream.read_to_end(&mut answer))
            .map_err(|error| {
                Problem::new(Kind::Failed, "the server went away while it was asked")
                    .why(error.to_string())
            })?;
        parse(&answer)
    }

    fn unreachable(&self, error: &std::io::Error) -> Problem {
        let socket = self.socket.display();
        let problem = Problem::new(Kind::Failed, format!("no server answers at {socket}"));
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => "ask as the user who runs the server",
            _ => "start one with `bowline serve`, or name its socket with --control",
        };
        problem.why(error.to_string()).next(remedy)
    }
}

fn strange(why: &str) -> Problem {
    Problem::new(Kind::Failed, "the server's answer is not understood")
        .why(why)
        .next("compare `bowline --version` with the version of the running server")
}

fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>), Problem> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(answer).map_err(|error| strange(&error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else {
        return Err(strange("it ends early"));
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let body = answer.get(head..).unwrap_or_default();
    if length != Some(body.len()) {
        return Err(strange("it ends early"));
    }
    Ok((response.code.unwrap_or_default(), body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_cut_anywhere_are_refused() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(whole).unwrap(), (200, b"{}".to_vec()));
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "cut at {end}");
        }
    }
}
