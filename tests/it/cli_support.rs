//! The binary as a user runs it: in an empty working folder, with an empty environment, against a sandbox of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use firebank::document::{DatabaseName, DocumentPath, KeyRange, canonical};
use firebank::firestore::{ConnectOptions, Firestore, ScanOptions, Target};
use firebank::sandbox::retail::{self, RetailSize};
use firebank::sandbox::{Fault, Sandbox};
use futures::TryStreamExt;
use serde_json::Value as Json;

use crate::support;
use crate::support::operations::put_all;

/// The project that tests back up from.
pub(crate) const SHOP: &str = "demo-shop";

/// Longer than anything here takes on a slow machine: what hangs shall fail, and say so.
const PATIENCE: Duration = Duration::from_secs(90);

/// Documents as a database has them: canonical bodies by path.
pub(crate) type Contents = BTreeMap<String, Vec<u8>>;

/// A working folder and a home of its own, without a server.
pub(crate) struct Desk {
    folder: tempfile::TempDir,
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["work", "home", "tmp"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    /// The working folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let file = self.file(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    pub(crate) fn std_command(&self) -> std::process::Command {
        self.std_command_of(Path::new(env!("CARGO_BIN_EXE_firebank")))
    }

    /// The same by another binary.
    pub(crate) fn std_command_of(&self, binary: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(binary);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path().join("home"))
            .env("TMPDIR", self.folder.path().join("tmp"))
            .current_dir(self.path());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        self.run_with(&[], arguments)
    }

    pub(crate) fn run_with<S: AsRef<OsStr>>(
        &self,
        environment: &[(&str, &str)],
        arguments: impl IntoIterator<Item = S>,
    ) -> Ended {
        let mut command = self.std_command();
        command.args(arguments).envs(environment.iter().copied());
        finish(command)
    }

    /// Everything below the working folder, as names relative to it.
    pub(crate) fn files(&self) -> Vec<String> {
        files_below(&self.path())
    }
}

pub(crate) fn finish(command: std::process::Command) -> Ended {
    let shown = format!("{command:?}");
    let output: Output = assert_cmd::Command::from_std(command)
        .timeout(PATIENCE)
        .output()
        .unwrap();
    let ended = Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ended.stderr.contains("panicked"), "{shown}: {}", ended.stderr);
    assert!(
        !ended.stdout.contains('\u{1b}') && !ended.stderr.contains('\u{1b}'),
        "{shown}: escape codes in a pipe: {:?} {:?}",
        ended.stdout,
        ended.stderr
    );
    // 101 is a panic's, and -1 stands for a signal.
    assert!([0, 1, 2, 3].contains(&ended.code), "{shown}: {ended}");
    ended
}

pub(crate) fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                names.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n{}\n--\n{}", self.code, self.stdout, self.stderr)
    }
}

impl Ended {
    /// It must have ended well; says what it printed.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.stdout
    }

    /// It must have ended well, or with something to look at, and have printed one JSON object and nothing else.
    #[track_caller]
    pub(crate) fn json(&self) -> Json {
        assert!([0, 3].contains(&self.code), "{self}");
        let value: Json =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"));
        assert!(value.is_object(), "{self}");
        value
    }

    /// It must have ended with this code, without a result, and its message must say all of this.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        assert!(self.stderr.contains("error: "), "{self}");
        assert_eq!(self.stdout, "", "{self}");
        for part in says {
            assert!(self.stderr.contains(part), "{part:?} is missing: {self}");
        }
    }
}

/// The members of an object, sorted.
#[track_caller]
pub(crate) fn keys(value: &Json) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// A desk with a sandbox that holds a small retail shop in the project [`SHOP`].
pub(crate) struct Shop {
    pub(crate) desk: Desk,
    pub(crate) sandbox: Sandbox,
    /// Last: the sandbox's tasks run on it.
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl std::ops::Deref for Shop {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl Shop {
    /// With the small retail data set.
    pub(crate) fn open() -> Self {
        let shop = Self::empty();
        let documents = retail::documents(RetailSize::SMALL, 7)
            .map(|(path, fields)| (path, canonical::encode(&fields)))
            .collect();
        shop.put(SHOP, documents);
        shop
    }

    /// Without a document.
    pub(crate) fn empty() -> Self {
        Self::of(support::sandbox())
    }

    /// On a sandbox of the test's own making.
    pub(crate) fn of(sandbox: impl Future<Output = Sandbox>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let sandbox = runtime.block_on(sandbox);
        Self {
            desk: Desk::new(),
            sandbox,
            runtime,
        }
    }

    /// With the retail data, a repository `backups`, and one snapshot in it, whose id comes along.
    pub(crate) fn backed_up() -> (Self, String) {
        let shop = Self::open();
        shop.run(["init"]).done();
        let id = shop.back_up();
        (shop, id)
    }

    /// Takes a snapshot of the shop.
    #[track_caller]
    pub(crate) fn back_up(&self) -> String {
        let snapshot = self.firebank(["backup", "--json"]).json();
        snapshot["snapshot"].as_str().unwrap().to_owned()
    }

    pub(crate) fn address(&self) -> String {
        self.sandbox.address().to_string()
    }

    /// Runs a command on the shop's database.
    pub(crate) fn firebank<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        self.firebank_on(SHOP, arguments)
    }

    /// Runs a command on another project of the sandbox.
    pub(crate) fn firebank_on<S: AsRef<str>>(
        &self,
        project: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Ended {
        let mut all = vec!["--emulator".to_owned(), self.address()];
        all.extend(["--project".to_owned(), project.to_owned()]);
        all.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self.run(all)
    }

    /// Runs a command on the shop's database to its good end, and says how much memory it had at most, in MiB.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_mib(&self, arguments: &[&str]) -> u64 {
        let mut command = self.std_command();
        command
            .args(["--emulator", &self.address(), "--project", SHOP])
            .args(arguments)
            .stdout(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        // Not what `wait4` tells: that counts this process too, as it was when the child split off.
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        let ended = loop {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or(0) >> 10);
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert!(ended.success(), "{arguments:?}");
        peak
    }

    pub(crate) fn connect(&self, project: &str, database: &str) -> Firestore {
        let target = Target::Emulator {
            host_port: self.address(),
        };
        let database = DatabaseName::new(project, database);
        self.runtime
            .block_on(Firestore::connect(ConnectOptions::new(database, target)))
            .unwrap()
    }

    pub(crate) fn put(&self, project: &str, documents: Vec<(DocumentPath, Vec<u8>)>) {
        let connection = self.connect(project, "(default)");
        self.runtime.block_on(put_all(&connection, documents));
    }

    /// What a database holds.
    pub(crate) fn contents(&self, project: &str) -> Contents {
        self.contents_of(project, "(default)")
    }

    pub(crate) fn contents_of(&self, project: &str, database: &str) -> Contents {
        self.sandbox.faults().clear();
        let connection = self.connect(project, database);
        self.runtime.block_on(async {
            let read_time = connection.current_read_time().await.unwrap();
            let mut batches = Box::pin(connection.scan(ScanOptions::new(KeyRange::all(), read_time)));
            let mut contents = Contents::new();
            while let Some(batch) = batches.try_next().await.unwrap() {
                for document in batch.iter() {
                    contents.insert(document.path().unwrap().to_string(), document.body.to_vec());
                }
            }
            contents
        })
    }

    pub(crate) fn add_fault(&self, fault: Fault) {
        self.sandbox.faults().add(fault);
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.file("backups")
    }

    /// The names of the repository's snapshots.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let listing = self.run(["list-backups", "--json"]).json();
        let snapshots = listing["snapshots"].as_array().unwrap();
        snapshots
            .iter()
            .map(|snapshot| snapshot["id"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// What a plan says, beside what it is a plan of.
pub(crate) const PLAN_KEYS: [&str; 26] = [
    "billed_deletes",
    "billed_reads",
    "billed_writes",
    "bytes",
    "changed",
    "collections",
    "conflicting",
    "conflicts",
    "cost",
    "created",
    "deleted",
    "documents",
    "dry_run",
    "existing",
    "fetched_bytes",
    "gaps",
    "left_out",
    "read_bytes",
    "references",
    "seconds",
    "some_differences",
    "target",
    "transferred_bytes",
    "unchanged",
    "warnings",
    "written_bytes",
];

/// The keys of a plan's JSON, of a `snapshot` or of `files`.
pub(crate) fn plan_keys(source: &'static str) -> Vec<&'static str> {
    let mut keys = [&PLAN_KEYS[..], &[source]].concat();
    keys.sort_unstable();
    keys
}
