//! The server's open connections, so that a test can break them.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::Connected;

/// Handles on every open connection. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections {
    open: Arc<Mutex<HashMap<u64, std::net::TcpStream>>>,
    next: Arc<AtomicU64>,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, std::net::TcpStream>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a connection in.
    pub(crate) fn accept(&self, stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open().insert(id, stream.try_clone()?);
        let guard = Guard {
            id,
            connections: self.clone(),
        };
        Ok(Connection {
            stream: TcpStream::from_std(stream)?,
            guard,
        })
    }

    /// Closes one connection, both ways.
    pub(crate) fn close(&self, id: ConnectionId) {
        if let Some(stream) = self.open().get(&id.0) {
            // An error means that the other side was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Closes every connection, both ways.
    pub(crate) fn close_all(&self) {
        for stream in self.open().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Which connection a request came over; the default is none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectionId(u64);

#[derive(Debug)]
struct Guard {
    id: u64,
    connections: Connections,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}

/// A connection that can be closed from outside.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    guard: Guard,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionId;

    fn connect_info(&self) -> ConnectionId {
        ConnectionId(self.guard.id)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
