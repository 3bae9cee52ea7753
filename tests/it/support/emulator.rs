//! Google's Firestore emulator as a child of the test process.
//!
//! It is started once a process, on a free port. Rust runs no destructors of statics, so what stops it is a
//! pipe: a shell waits for the end of its input, which comes when the test process ends however it ends, and
//! kills the emulator.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where the jar lies below the SDK's root.
const JAR: &str = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar";
const MAIN: &str = "com.google.cloud.datastore.emulator.firestore.CloudFirestore";
/// The child first, the watcher in the foreground: `cat` ends when the test process is gone.
const WATCH: &str =
    r#"java "$@" </dev/null >/dev/null 2>&1 & pid=$!; cat >/dev/null; kill -9 $pid 2>/dev/null"#;

/// The emulator's address, `host:port`; `None` where it is not installed, which is said on standard error.
///
/// `FIREBANK_EMULATOR` names one that runs already, for runners that start a process for each test.
///
/// # Panics
/// Where `CI` is set and there is no emulator: a check that cannot be made must not look passed.
pub(crate) fn emulator() -> Option<&'static str> {
    static EMULATOR: OnceLock<Option<(String, Option<Child>)>> = OnceLock::new();
    EMULATOR
        .get_or_init(start)
        .as_ref()
        .map(|(address, _)| address.as_str())
}

fn start() -> Option<(String, Option<Child>)> {
    if let Ok(address) = std::env::var("FIREBANK_EMULATOR") {
        return Some((address, None));
    }
    match try_start() {
        Ok((address, child)) => Some((address, Some(child))),
        Err(reason) => {
            super::tools::skip("against Google's Firestore emulator", &reason);
            None
        }
    }
}

fn try_start() -> Result<(String, Child), String> {
    let jar = find_jar().ok_or("cloud-firestore-emulator.jar was not found (set FIREBANK_EMULATOR_JAR)")?;
    let java = Command::new("java")
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !java.is_ok_and(|status| status.success()) {
        return Err("java does not run".to_owned());
    }
    // Between letting the port go and its use by the emulator another process may take it: then try another.
    let mut problem = String::new();
    for _ in 0..3 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        drop(listener);
        let mut child = Command::new("sh")
            .args(["-c", WATCH, "sh", "-cp"])
            .arg(&jar)
            .args([MAIN, "--host", "127.0.0.1", "--port", &address.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start a shell: {error}"))?;
        match wait_until_ready(address) {
            Ok(()) => return Ok((address.to_string(), child)),
            Err(error) => problem = error,
        }
        drop(child.stdin.take());
        let _ = child.wait();
    }
    Err(problem)
}

fn find_jar() -> Option<PathBuf> {
    if let Some(jar) = std::env::var_os("FIREBANK_EMULATOR_JAR") {
        return Some(PathBuf::from(jar)).filter(|jar| jar.is_file());
    }
    let usual = [
        "/usr/lib/google-cloud-sdk",
        "/usr/share/google-cloud-sdk",
        "/opt/google-cloud-sdk",
    ];
    let usual = usual
        .into_iter()
        .map(PathBuf::from)
        .map(|root| root.join(JAR))
        .find(|jar| jar.is_file());
    usual.or_else(|| {
        let output = Command::new("gcloud")
            .args(["info", "--format=value(installation.sdk_root)"])
            .output()
            .ok()?;
        let root = String::from_utf8(output.stdout).ok()?;
        Some(PathBuf::from(root.trim()).join(JAR)).filter(|jar| jar.is_file())
    })
}

fn wait_until_ready(address: SocketAddr) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if is_ready(address).unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the emulator did not answer within 60 s".to_owned())
}

fn is_ready(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    // It keeps the connection open, whatever it is asked.
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.ends_with(b"\r\n\r\nOk\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(false),
            length => answer.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(true)
}
