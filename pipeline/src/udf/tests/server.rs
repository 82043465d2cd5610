//! An HTTP server for tests, which can also do what no server should.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request: its head, and its body if it has one.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) head: String,
    pub(super) body: String,
}

/// What the server does with a request.
pub(super) enum Act {
    /// These bytes; then the connection stays open.
    Answer(String),
    /// These bytes; then the connection is closed.
    Cut(String),
    /// Nothing.
    Hang,
}

/// A response with a body.
pub(super) fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<Mutex<usize>>,
}

impl Server {
    /// Serves on a port of its own. `act` is given the request and how many came before it with the same first line.
    pub(super) async fn start(act: impl Fn(&Request, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (shared, act) = (server.clone(), Arc::new(act));
        tokio::spawn(async move {
            let seen = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
            while let Ok((stream, _)) = listener.accept().await {
                *shared.connections.lock().unwrap() += 1;
                let (server, act, seen) = (shared.clone(), Arc::clone(&act), Arc::clone(&seen));
                tokio::spawn(async move { server.serve(stream, &*act, &seen).await });
            }
        });
        server
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    async fn serve(
        &self,
        mut stream: TcpStream,
        act: &(dyn Fn(&Request, usize) -> Act + Send + Sync),
        seen: &Mutex<HashMap<String, usize>>,
    ) {
        while let Some(request) = read(&mut stream).await {
            let line = request.head.lines().next().unwrap_or_default().to_owned();
            let before = {
                let mut seen = seen.lock().unwrap();
                let count = seen.entry(line).or_default();
                *count += 1;
                *count - 1
            };
            self.requests.lock().unwrap().push(request.clone());
            match act(&request, before) {
                Act::Answer(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                Act::Cut(bytes) => return stream.write_all(bytes.as_bytes()).await.unwrap(),
                Act::Hang => tokio::time::sleep(Duration::from_secs(3600)).await,
            }
        }
    }
}

/// The next request, None at the end of the connection.
async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    while bytes.len() < end + length.unwrap_or(0) {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { head, body: String::from_utf8(bytes[end..].to_vec()).unwrap() })
}
