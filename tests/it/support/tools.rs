//! Programs that tests need and that are not Rust's.

use std::io::Write;
use std::path::PathBuf;

/// The program: where the variable says, or on the path, or below the cache folder, where `.ci/run` puts what it installs.
pub(crate) fn find(program: &str, variable: &str, in_cache: &str) -> Option<PathBuf> {
    if let Some(program) = std::env::var_os(variable) {
        return Some(PathBuf::from(program)).filter(|program| program.is_file());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .collect();
    places.extend(cache.map(|cache| cache.join(in_cache)));
    places.into_iter().find(|program| program.is_file())
}

/// Says that tests are skipped, and why.
///
/// # Panics
/// Where `CI` is set: a check that cannot be made must not look passed.
pub(crate) fn skip(what: &str, reason: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "what tests {what} need is not here: {reason}"
    );
    // `eprintln!` would be captured by the test harness, and a skipped test must be seen.
    let _ = writeln!(std::io::stderr(), "SKIPPED: tests {what}: {reason}");
}
