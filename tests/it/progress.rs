//! What a person at a terminal sees: the moving line while it runs, and nothing of it afterwards.
//!
//! The binary runs on a pseudo-terminal of 80 columns, and an emulated screen takes what it writes.

#![cfg(unix)]

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use firebank::document::{DocumentPath, canonical};
use firebank::sandbox::{Effect, Fault, Rpc, When};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};

use crate::cli_support::*;

const COLUMNS: u16 = 80;
const ROWS: u16 = 50;

/// What was to be seen.
struct Seen {
    code: Option<i32>,
    /// Every screen that differs from the one before.
    screens: Vec<Vec<String>>,
    raw: String,
}

impl Seen {
    fn last(&self) -> &[String] {
        self.screens.last().unwrap()
    }

    /// The moving lines, without their spinners.
    fn moving(&self, what: &str) -> Vec<&str> {
        let rows = self.screens.iter().flatten();
        rows.filter_map(|row| row.split_once(' ').map(|(_, line)| line))
            .filter(|line| line.starts_with(what))
            .collect()
    }
}

fn rows(screen: &vt100::Screen) -> Vec<String> {
    let mut rows: Vec<String> = screen
        .rows(0, COLUMNS)
        .map(|row| row.trim_end().to_owned())
        .collect();
    while rows.last().is_some_and(String::is_empty) {
        rows.pop();
    }
    rows
}

fn watch(shop: &Shop, columns: u16, arguments: &[&str]) -> Seen {
    let size = Winsize {
        ws_row: ROWS,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).unwrap();
    // Other tests start processes meanwhile: one of them that held an end would keep the reading below from ending.
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    }
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = shop.std_command();
    command
        .env("TERM", "xterm-256color")
        .args(["--emulator", &shop.address(), "--project", SHOP])
        .args(arguments)
        .stdin(end())
        .stdout(end())
        .stderr(end());
    let mut child = command.spawn().unwrap();
    // The child's are the last ends of it: when they are closed, reading ends.
    drop(command);
    drop(pty.slave);
    let mut terminal = File::from(pty.master);
    let mut screen = vt100::Parser::new(ROWS, COLUMNS, 0);
    let (mut screens, mut raw) = (Vec::<Vec<String>>::new(), Vec::new());
    let mut buffer = [0; 4096];
    // Linux says EIO where others say that the end is reached.
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        raw.extend_from_slice(&buffer[..length]);
        screen.process(&buffer[..length]);
        let rows = rows(screen.screen());
        if screens.last() != Some(&rows) {
            screens.push(rows);
        }
    }
    Seen {
        code: child.wait().unwrap().code(),
        screens,
        raw: String::from_utf8_lossy(&raw).into_owned(),
    }
}

/// Makes requests of this sort slow enough to watch.
fn slow(shop: &Shop, method: Rpc) {
    shop.add_fault(Fault::new(
        method,
        When::Always,
        Effect::Delay(Duration::from_millis(400)),
    ));
}

#[test]
fn a_restore_shows_how_far_it_is_and_leaves_its_result() {
    let (shop, _) = Shop::backed_up();
    let body = canonical::encode(&Default::default());
    let more = (0..2_500).map(|number| {
        (
            DocumentPath::parse(format!("more/{number}")).unwrap(),
            body.clone(),
        )
    });
    shop.put(SHOP, more.collect());
    let id = shop.back_up();
    slow(&shop, Rpc::BatchWrite);
    shop.add_fault(Fault::write(tonic::Code::Unavailable, "", When::EveryNth(10)));
    let seen = watch(
        &shop,
        COLUMNS,
        &["restore", &id, "--to-project", "demo-copy", "--rate", "900"],
    );
    assert_eq!(seen.code, Some(0), "{}", seen.raw);
    let moving = seen.moving("restoring ");
    assert!(moving.len() > 3, "{moving:#?}");
    let some = |says: &str| moving.iter().any(|line| line.contains(says));
    assert!(
        some("/s (of 900)") && some(" retries") && some(" left") && some("/"),
        "{moving:#?}"
    );
    // One line at a time, and nothing else.
    for screen in &seen.screens {
        let lines = screen.iter().filter(|row| row.contains("restoring ")).count();
        assert!(lines <= 1, "{screen:#?}");
    }
    assert!(seen.last()[0].starts_with("Restored "), "{:#?}", seen.last());
    assert!(
        !seen.last().iter().any(|row| row.contains("restoring")),
        "{:#?}",
        seen.last()
    );
}

#[test]
fn what_is_logged_meanwhile_has_lines_of_its_own() {
    let (shop, _) = Shop::backed_up();
    slow(&shop, Rpc::RunQuery);
    let seen = watch(&shop, COLUMNS, &["-vv", "backup", "--full"]);
    assert_eq!(seen.code, Some(0), "{}", seen.raw);
    assert!(!seen.moving("backing up ").is_empty(), "{}", seen.raw);
    let logged = [" INFO ", "DEBUG ", " WARN "];
    let mut lines = 0;
    for screen in &seen.screens {
        for row in screen {
            assert!(
                !row.trim_start_matches(' ').contains("backing up ")
                    || !logged.iter().any(|level| row.contains(level)),
                "{row:?}"
            );
        }
    }
    for row in seen.last() {
        lines += usize::from(logged.iter().any(|level| row.starts_with(level)));
        assert!(!row.contains("backing up"), "{:#?}", seen.last());
    }
    assert!(lines > 0, "{:#?}", seen.last());
}

#[test]
fn an_error_stands_alone() {
    let (shop, id) = Shop::backed_up();
    slow(&shop, Rpc::RunQuery);
    shop.add_fault(Fault::new(
        Rpc::RunQuery,
        When::After(1),
        Effect::Status(tonic::Code::PermissionDenied, "no".to_owned()),
    ));
    let seen = watch(&shop, COLUMNS, &["verify", &id, "--live", "--parallel", "1"]);
    assert_eq!(seen.code, Some(1), "{}", seen.raw);
    assert!(
        seen.last()[0].starts_with("error: permission denied"),
        "{:#?}",
        seen.last()
    );
    assert!(!seen.moving("comparing ").is_empty(), "{}", seen.raw);
}

#[test]
fn a_narrow_terminal_is_not_overrun_and_quiet_is_quiet() {
    let (shop, id) = Shop::backed_up();
    slow(&shop, Rpc::BatchWrite);
    let to_copy = ["restore", &id, "--to-project", "demo-copy", "--rate", "900"];
    // The emulated screen is wider: an overlong line would show.
    let seen = watch(&shop, 30, &to_copy);
    assert_eq!(seen.code, Some(0));
    let moving = seen.moving("restoring ");
    assert!(!moving.is_empty());
    assert!(moving.iter().all(|line| line.len() <= 28), "{moving:#?}");
    let seen = watch(&shop, COLUMNS, &[&["-q"][..], &to_copy[..]].concat());
    assert_eq!((seen.code, seen.raw.as_str()), (Some(0), ""));
}
