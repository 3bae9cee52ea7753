//! Microsoft's Azurite as a child of the test process: started once, stopped with it as the emulator is.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::tools;

/// Where `.ci/run` puts it, below the cache folder.
const INSTALLED: &str = "firebank/azurite-3.35.0/node_modules/.bin/azurite-blob";
const WATCH: &str = r#""$@" </dev/null >/dev/null 2>&1 & pid=$!; cat >/dev/null; kill -9 $pid 2>/dev/null"#;
/// They are the same in every Azurite.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Its address; `None` where it is not installed, which is said on standard error.
///
/// # Panics
/// Where `CI` is set and there is none: a check that cannot be made must not look passed.
pub(super) fn azurite() -> Option<SocketAddr> {
    static AZURITE: OnceLock<Option<(SocketAddr, Child)>> = OnceLock::new();
    let started = AZURITE.get_or_init(|| match start() {
        Ok(started) => Some(started),
        Err(reason) => {
            tools::skip("against Azurite, for Azure Blob Storage", &reason);
            None
        }
    });
    started.as_ref().map(|(address, _)| *address)
}

fn start() -> Result<(SocketAddr, Child), String> {
    let program = tools::find("azurite-blob", "FIREBANK_AZURITE", INSTALLED).ok_or(
        "azurite-blob was not found (npm install -g azurite, or set FIREBANK_AZURITE to the program)",
    )?;
    let mut problem = String::new();
    for _ in 0..3 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        drop(listener);
        let mut child = Command::new("sh")
            .args(["-c", WATCH, "sh"])
            .arg(&program)
            .args([
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
                &address.port().to_string(),
            ])
            .args([
                "--inMemoryPersistence",
                "--disableTelemetry",
                "--skipApiVersionCheck",
                "--silent",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start a shell: {error}"))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() {
                return Ok((address, child));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        problem = "it did not open its port within 60 s".to_owned();
        drop(child.stdin.take());
        let _ = child.wait();
    }
    Err(problem)
}

/// Makes a container that nobody else has; says its name. The object store's client cannot, and needs none to
/// be made.
pub(super) async fn new_container(server: SocketAddr) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let date = firebank::clock::now()
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    // <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>
    let to_sign = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2023-11-03\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    );
    let key = BASE64_STANDARD.decode(KEY).unwrap();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    let signature = BASE64_STANDARD.encode(aws_lc_rs::hmac::sign(&key, to_sign.as_bytes()));
    let request = format!(
        "PUT /{ACCOUNT}/{name}?restype=container HTTP/1.1\r\nhost: {server}\r\nx-ms-date: {date}\r\n\
         x-ms-version: 2023-11-03\r\nauthorization: SharedKey {ACCOUNT}:{signature}\r\ncontent-length: 0\r\n\
         connection: close\r\n\r\n"
    );
    let mut stream = tokio::net::TcpStream::connect(server).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    name
}
