//! The server's side of the control plane, on a thread of its own.
//!
//! It holds no state: every answer comes from the data thread by a [`Command`]. It also turns
//! SIGTERM and SIGINT into [`Command::Stop`], so that the data thread knows one way to end.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::api::{Complaint, DiskCreate, DiskList, Document, Kind, Problem, ServerStatus, Stopped};
use crate::metrics;
use crate::server::command::{Asker, Command};

/// A running control plane. Dropping it ends it, after the answers that are under way.
pub struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Listens at a path, for its owner only.
///
/// # Errors
/// If the socket is another server's, or cannot be made.
pub fn listen(socket: &Path) -> Result<UnixListener, Problem> {
    let place = socket.display().to_string();
    let failed = |error: std::io::Error| {
        Problem::new(Kind::Failed, format!("cannot listen on {place}")).why(error.to_string())
    };
    if UnixStream::connect(socket).is_ok() {
        let problem = Problem::new(Kind::Busy, format!("a server answers on {place} already"));
        return Err(problem.next(format!("bowline status --control {place}")));
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(socket, owner_only).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Answers from `asker`. `ready` is called once, with the first status.
///
/// # Errors
/// If no thread can be had.
pub fn start(
    listener: UnixListener,
    asker: Asker,
    ready: impl FnOnce(&ServerStatus) + Send + 'static,
) -> Result<Service, Problem> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, asker, ready, stopped)) {
                tracing::error!(%error, "the control plane has ended");
            }
        })
        .map_err(failed)?;
    Ok(Service { stop: Some(stop), thread: Some(thread) })
}

fn failed(error: std::io::Error) -> Problem {
    Problem::new(Kind::Failed, "no control plane").why(error.to_string())
}

/// A descriptor that is readable, 8 bytes at a time, when SIGTERM or SIGINT has come.
///
/// # Errors
/// If the system has no descriptor or no thread left.
pub fn signals() -> Result<OwnedFd, Problem> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = eventfd(0, flags).map_err(|error| failed(error.into()))?;
    let ring = bell.try_clone().map_err(failed)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let wait = async move {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping");
            rustix::io::write(&ring, &1u64.to_ne_bytes())?;
        }
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread
        .spawn(move || {
            let ended: std::io::Result<()> = runtime.block_on(wait);
            if let Err(error) = ended {
                tracing::error!(%error, "signals are not heard");
            }
        })
        .map_err(failed)?;
    Ok(bell)
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: UnixListener,
    asker: Asker,
    ready: impl FnOnce(&ServerStatus) + Send + 'static,
    stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let signalled = asker.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        let _ = signalled.ask(Command::Stop).await;
    });
    let first = asker.clone();
    tokio::spawn(async move {
        if let Ok(status) = first.ask(Command::Status).await {
            ready(&status);
        }
    });
    let (grace, graceful) = oneshot::channel::<()>();
    let serving = axum::serve(listener, router(asker)).with_graceful_shutdown(async {
        let _ = graceful.await;
    });
    let serving = tokio::spawn(serving.into_future());
    let _ = stopped.await;
    drop(grace);
    // An idle connection must not hold the server up.
    let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
    Ok(())
}

fn router(asker: Asker) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/pool", get(pool))
        .route("/v1/pool/scrub", post(scrub))
        .route("/v1/pool/grow", post(grow))
        .route("/v1/pool/resume", post(resume))
        .route("/v1/pool/repair", post(repair))
        .route("/v1/disks", get(disks).post(create))
        .route("/v1/disks/{name}", get(disk).patch(change).delete(destroy))
        .route("/v1/stop", post(stop))
        .route("/metrics", get(scrape))
        .fallback(nowhere)
        .with_state(asker)
}

/// An answer, or a complaint; both become documents.
struct Answer<T>(Result<T, Problem>);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match self.0 {
            Ok(body) => Json(Document::new(body)).into_response(),
            Err(error) => {
                let status = StatusCode::from_u16(error.kind.http_status())
                    .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, Json(Document::new(Complaint { error }))).into_response()
            }
        }
    }
}

/// Reads a body whatever its content type; says what is wrong with it in our own words.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(Kind::Usage, "the request's body is not understood").why(error.to_string())
    })
}

async fn status(State(asker): State<Asker>) -> impl IntoResponse {
    Answer(asker.ask(Command::Status).await)
}

async fn pool(State(asker): State<Asker>) -> impl IntoResponse {
    Answer(asker.ask(Command::Status).await.map(|status| status.pool))
}

async fn scrub(State(asker): State<Asker>, body: axum::body::Bytes) -> impl IntoResponse {
    Answer(match read(&body) {
        Ok(order) => asker.ask(|reply| Command::Scrub(order, reply)).await,
        Err(problem) => Err(problem),
    })
}

async fn grow(State(asker): State<Asker>, body: axum::body::Bytes) -> impl IntoResponse {
    Answer(match read(&body) {
        Ok(order) => asker.ask(|reply| Command::Grow(order, reply)).await,
        Err(problem) => Err(problem),
    })
}

async fn resume(State(asker): State<Asker>, body: axum::body::Bytes) -> impl IntoResponse {
    Answer(match read(&body) {
        Ok(order) => asker.ask(|reply| Command::Resume(order, reply)).await,
        Err(problem) => Err(problem),
    })
}

async fn repair(State(asker): State<Asker>, body: axum::body::Bytes) -> impl IntoResponse {
    Answer(match read(&body) {
        Ok(order) => asker.ask(|reply| Command::Repair(order, reply)).await,
        Err(problem) => Err(problem),
    })
}

async fn disks(State(asker): State<Asker>) -> impl IntoResponse {
    let status = asker.ask(Command::Status).await;
    Answer(status.map(|status| DiskList { disks: status.disks }))
}

async fn disk(State(asker): State<Asker>, UrlPath(name): UrlPath<String>) -> impl IntoResponse {
    let status = asker.ask(Command::Status).await;
    Answer(status.and_then(|status| {
        let found = status.disks.into_iter().find(|disk| disk.name == name);
        found.ok_or_else(|| no_disk(&name))
    }))
}

/// The complaint about a name that no disk has.
#[must_use]
pub fn no_disk(name: &str) -> Problem {
    Problem::new(Kind::NotFound, format!("there is no disk {name:?}"))
        .next("`bowline disk list` shows the disks there are")
}

/// Whether a disk may have this name: it is part of URIs, paths and command lines.
///
/// # Errors
/// What is wrong with it.
pub fn disk_name(name: &str) -> Result<(), Problem> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= 64 && name.chars().all(fits) {
        return Ok(());
    }
    Err(Problem::new(Kind::Usage, format!("{name:?} cannot be the name of a disk"))
        .next("use at most 64 letters, digits, `.`, `_` and `-`, a letter or digit first"))
}

async fn create(State(asker): State<Asker>, body: axum::body::Bytes) -> impl IntoResponse {
    let order = read::<DiskCreate>(&body).and_then(|order| {
        disk_name(&order.name)?;
        Ok(order)
    });
    Answer(match order {
        Ok(order) => asker.ask(|reply| Command::CreateDisk(order, reply)).await,
        Err(problem) => Err(problem),
    })
}

async fn change(
    State(asker): State<Asker>,
    UrlPath(name): UrlPath<String>,
    body: axum::body::Bytes,
) -> impl IntoResponse {
    Answer(match read(&body) {
        Ok(order) => asker.ask(|reply| Command::ChangeDisk(name, order, reply)).await,
        Err(problem) => Err(problem),
    })
}

async fn destroy(State(asker): State<Asker>, UrlPath(name): UrlPath<String>) -> impl IntoResponse {
    Answer(asker.ask(|reply| Command::DestroyDisk(name, reply)).await)
}

async fn stop(State(asker): State<Asker>) -> impl IntoResponse {
    Answer(asker.ask(Command::Stop).await.map(|()| Stopped { stopped: true }))
}

async fn scrape(State(asker): State<Asker>) -> Response {
    match asker.ask(Command::Status).await {
        Ok(status) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&status))
            .into_response(),
        Err(problem) => Answer::<()>(Err(problem)).into_response(),
    }
}

async fn nowhere(uri: axum::http::Uri) -> impl IntoResponse {
    let problem = Problem::new(Kind::NotFound, format!("there is nothing at {}", uri.path()));
    Answer::<()>(Err(problem.next("see `man bowline`, section HTTP")))
}
