//! Scripts that fail: a clear error with file, line and stack, and nothing left behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firebank::firestore::Firestore;
use firebank::migration::{
    BeforeImage, Function, Journal, JournalError, Limits, RunMode, RunOptions, Script, ScriptErrorKind,
};
use firebank::progress::Progress;

use crate::migration_support::{get, load, load_with, migrate, run, run_err, run_function};
use crate::support::operations::client;
use crate::support::sandbox;

#[test]
fn syntax_errors_say_where() {
    let error = load("export function migrate(db) {\n  const x = ;\n}\n").unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::Syntax), "{error:?}");
    assert_eq!(error.line, Some(2), "{error}");
    assert!(error.to_string().starts_with("v1_test.js:2:"), "{error}");
}

#[test]
fn exports_are_checked() {
    for (source, expected) in [
        ("", "does not export a function `migrate`"),
        ("export const migrate = 5;", "`migrate` is not a function"),
        (
            "export function migrate() {} export const rollback = {};",
            "`rollback` is not a function",
        ),
        (
            "export function migrate() {} export const description = 5;",
            "`description` is not a text",
        ),
    ] {
        let error = load(source).unwrap_err();
        assert!(
            matches!(error.kind, ScriptErrorKind::Exports),
            "{source}: {error:?}"
        );
        assert!(error.message.contains(expected), "{source}: {error}");
    }
    let script = load(
        "export const description = 'Adds x';\nexport function migrate(db) {}\nexport function validate(db) {}\n",
    )
    .unwrap();
    assert_eq!(script.description(), Some("Adds x"));
    assert_eq!((script.has_rollback(), script.has_validate()), (false, true));
}

#[test]
fn nothing_can_be_reached_from_a_script() {
    let error = load("import { x } from './other.js';\nexport function migrate() {}").unwrap_err();
    assert!(error.message.contains("cannot import others"), "{error}");
    // No files, no network, no environment, no process.
    for name in [
        "require",
        "process",
        "std",
        "os",
        "fetch",
        "Deno",
        "setTimeout",
        "XMLHttpRequest",
        "WebSocket",
    ] {
        let source = format!(
            "if (typeof {name} !== 'undefined') throw new Error('it is there');\n{}",
            migrate("")
        );
        if let Err(error) = load(source) {
            panic!("{name}: {error}");
        }
    }
    let error = load("import('std').then((std) => std.exit(1));\nexport function migrate() {}").unwrap_err();
    assert!(error.message.contains("could not load module"), "{error}");
}

#[test]
fn loading_has_no_database_and_ends() {
    let error = load(
        "const x = FieldValue.increment(1); throw new TypeError('at the top');\nexport function migrate() {}",
    );
    let error = error.unwrap_err();
    assert_eq!(
        (error.message.as_str(), error.line),
        ("TypeError: at the top", Some(1))
    );
    let limits = Limits {
        busy: Duration::from_millis(200),
        ..Limits::default()
    };
    let began = Instant::now();
    let error = load_with("for (;;) {}\nexport function migrate() {}", limits).unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::TimeLimit), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let error = load("await new Promise(() => {});\nexport function migrate() {}").unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::Promise), "{error:?}");
}

async fn database(name: &str) -> (firebank::sandbox::Sandbox, Firestore) {
    let sandbox = sandbox().await;
    let database = client(&sandbox, name).await;
    (sandbox, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throw_deep_in_a_callback_has_its_stack() {
    let (_sandbox, database) = database("demo-throw").await;
    let error = run_err(
        &database,
        "db.create('a/b', { n: 1 });\n\
         const deep = (data) => { throw new RangeError(`bad ${data.n}`); };\n\
         function middle(data) { return deep(data); }\n\
         db.transform('a', (data) => middle(data));",
    )
    .await;
    assert!(matches!(error.kind, ScriptErrorKind::Thrown), "{error:?}");
    assert_eq!(
        (error.message.as_str(), error.line),
        ("RangeError: bad 1", Some(3))
    );
    let calls: Vec<&str> = error.stack.lines().collect();
    assert!(
        calls[0].contains("deep") && calls[0].contains("v1_test.js:3:"),
        "{error}"
    );
    assert!(
        calls[1].contains("middle") && calls[1].contains("v1_test.js:4:"),
        "{error}"
    );
    assert!(calls.iter().any(|call| call.contains("migrate")), "{error}");
    assert!(!error.stack.contains("prelude"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_thrown_need_not_be_an_error() {
    let (_sandbox, database) = database("demo-thrown").await;
    let error = run_err(&database, "throw 'just a text';").await;
    assert!(error.message.contains("just a text"), "{error}");
    let error = run_err(&database, "throw undefined;").await;
    assert!(error.message.contains("undefined"), "{error}");
    let error = run_err(&database, "throw Object.create(null);").await;
    assert!(matches!(error.kind, ScriptErrorKind::Thrown), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_loops_end() {
    let (_sandbox, database) = database("demo-loop").await;
    let limits = Limits {
        busy: Duration::from_millis(300),
        ..Limits::default()
    };
    let script = load_with(
        migrate("let n = 0;\nfor (;;) { try { n += 1; } catch {} }"),
        limits,
    )
    .unwrap();
    let began = Instant::now();
    let error = run_function(&database, &script, Function::Migrate)
        .await
        .result
        .unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::TimeLimit), "{error:?}");
    // The engine knows the function, and not always how far it was.
    assert!(error.stack.contains("migrate") && error.line.is_some(), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    // One that keeps the database busy is ended by the time that it has altogether.
    let limits = Limits {
        total: Some(Duration::from_millis(700)),
        ..Limits::default()
    };
    let script = load_with(migrate("for (;;) db.get('a/b');"), limits).unwrap();
    let error = run_function(&database, &script, Function::Migrate)
        .await
        .result
        .unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::TimeLimit), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded() {
    let (_sandbox, database) = database("demo-memory").await;
    let limits = Limits {
        memory_bytes: 16 << 20,
        ..Limits::default()
    };
    for bomb in [
        "const all = [];\nfor (;;) all.push(new Array(1000).fill('x'));",
        "let text = 'x';\nfor (;;) text += text;",
        "new Uint8Array(1e9);",
        "const all = [];\nfor (let n = 0; ; n += 1) { db.set('a/b', { text: 'x'.repeat(900000) }); all.push(db.get('a/b')); }",
    ] {
        let script = load_with(migrate(bomb), limits.clone()).unwrap();
        let error = run_function(&database, &script, Function::Migrate)
            .await
            .result
            .unwrap_err();
        assert!(
            matches!(error.kind, ScriptErrorKind::MemoryLimit)
                || error.message.contains("memory")
                || error.message.contains("string too long"),
            "{bomb}: {error}"
        );
    }
    // Endless recursion is an error of the script's own.
    let error = run_err(&database, "const again = () => again() + 1;\nagain();").await;
    assert!(error.message.contains("stack"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_must_come() {
    let (_sandbox, database) = database("demo-promises").await;
    for body in [
        "return new Promise(() => {});",
        "return (async () => { await new Promise(() => {}); db.create('a/b', {}); })();",
        "(async () => { await new Promise(() => {}); db.create('a/b', {}); })();",
        "(async () => { throw new Error('nobody looks'); })();",
    ] {
        let error = run_err(&database, body).await;
        assert!(
            matches!(error.kind, ScriptErrorKind::Promise),
            "{body}: {error:?}"
        );
    }
    assert_eq!(get(&database, "a/b").await, None);
    // Those that come are fine.
    let script = load(
        "export async function migrate(db) { await null; db.create('a/b', { n: await Promise.resolve(1) }); }",
    )
    .unwrap();
    run_function(&database, &script, Function::Migrate)
        .await
        .result
        .unwrap();
    assert!(get(&database, "a/b").await.is_some());
    let script =
        load("export async function migrate(db) { await null;\nthrow new Error('later'); }").unwrap();
    let error = run_function(&database, &script, Function::Migrate)
        .await
        .result
        .unwrap_err();
    assert_eq!((error.message.as_str(), error.line), ("later", Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_writes_say_which_call_asked() {
    let (_sandbox, database) = database("demo-writes").await;
    let error = run_err(
        &database,
        "db.create('a/b', {});\n\ndb.update('missing/x', { n: 1 });",
    )
    .await;
    assert!(
        error.message.contains("`missing/x`: there is no such document"),
        "{error}"
    );
    assert_eq!(error.line, Some(4), "{error}");
    let error = run_err(
        &database,
        "db.create('c/d', {});\ndb.get('c/d');\ndb.create('c/d', {});",
    )
    .await;
    assert!(
        error.message.contains("`c/d`: the document exists already"),
        "{error}"
    );
    assert_eq!(error.line, Some(4), "{error}");
    // Too large for the server.
    let error = run_err(&database, "db.create('a/large', { text: 'x'.repeat(2000000) });").await;
    assert!(matches!(error.kind, ScriptErrorKind::Refused), "{error:?}");
    assert!(
        error.message.contains("`a/large`") && error.line == Some(2),
        "{error}"
    );
    // A failure cannot be caught away.
    let error = run_err(
        &database,
        "try { db.update('missing/x', { n: 1 }); db.get('missing/x'); } catch {}\ntry { db.get('c/d'); } catch {}\n",
    )
    .await;
    assert!(error.message.contains("there is no such document"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_calls_are_thrown_where_they_are() {
    let (_sandbox, database) = database("demo-calls").await;
    for (call, expected) in [
        ("db.get(5)", "db.get: the path must be a text, not 5"),
        ("db.get('a')", "does not name a document"),
        ("db.get('a//b')", "empty segment"),
        (
            "db.create('a/b', [1])",
            "db.create: the data must be an object, not an array",
        ),
        (
            "db.update('a/b')",
            "db.update: the changes must be an object, not undefined",
        ),
        ("db.update('a/b', { 'x..y': 1 })", "empty key"),
        (
            "db.update('a/b', { 'x': 1, 'x.y': 1 })",
            "one is within the other",
        ),
        ("db.set('a/b', {}, { merged: true })", "`merge` only"),
        ("[...db.documents('a/b')]", "does not name a collection"),
        ("[...db.collectionGroup('a/b/c')]", "no collection group"),
        (
            "[...db.documents('a', { where: [['n', '=', 1]] })]",
            "`=` is no operator",
        ),
        ("[...db.documents('a', { were: [] })]", "knows the options"),
        ("db.transform('a')", "must be a function"),
        ("db.renameField('a', 'x', 'x.y')", "cannot take its own place"),
        ("db.copyCollection('a', 'a/b/c')", "into itself"),
        (
            "db.set('a/b', { x: [FieldValue.delete()] })",
            "cannot stand in an array",
        ),
        ("db.nothing()", "not a function"),
        ("db.assert(false, 'as it should be')", "as it should be"),
        ("db.dryRun = true", "setter"),
    ] {
        let error = run_err(&database, &format!("\n{call};")).await;
        assert!(error.message.contains(expected), "{call}: {error}");
        assert_eq!(error.line, Some(3), "{call}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_cannot_write_and_fails_by_false() {
    let (sandbox, database) = database("demo-validate").await;
    let validate = |body: &str| {
        load(format!(
            "export function migrate() {{}}\nexport function validate(db) {{ {body} }}"
        ))
    };
    let script = validate("return db.count('a') > 0;").unwrap();
    let error = run_function(&database, &script, Function::Validate)
        .await
        .result
        .unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::Invalid), "{error:?}");
    let script = validate("db.assert(db.count('a') > 0, 'no a');").unwrap();
    let error = run_function(&database, &script, Function::Validate)
        .await
        .result
        .unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::Invalid), "{error:?}");
    assert_eq!((error.message.as_str(), error.line), ("no a", Some(2)));
    for write in [
        "db.create('a', {})",
        "db.addField('a', 'b', 1)",
        "db.delete('a/b')",
        "db.transform('a', () => ({}))",
    ] {
        let script = validate(&format!("db.get('x/y'); {write};")).unwrap();
        let ran = run_function(&database, &script, Function::Validate).await;
        if let Err(error) = ran.result {
            assert!(
                error.message.contains("validate must not write"),
                "{write}: {error}"
            );
        } else {
            // There was nothing to transform.
            assert!(write.starts_with("db.transform"), "{write}");
        }
    }
    assert_eq!(sandbox.usage().writes, 0);
}

/// Fails from the second call on.
struct Failing;

#[async_trait::async_trait]
impl Journal for Failing {
    async fn record(&self, images: Vec<BeforeImage>) -> Result<(), JournalError> {
        match images.iter().any(|image| image.path.collection_group() == "bad") {
            true => Err(JournalError::new("the disk is full")),
            false => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_that_the_journal_does_not_have() {
    let (_sandbox, database) = database("demo-journal").await;
    let script = load(migrate(
        "db.set('good/x', { n: 1 });\ndb.get('good/x');\ndb.set('bad/x', { n: 1 });",
    ))
    .unwrap();
    let options = RunOptions::new(RunMode::write(&database, Arc::new(Failing)));
    let error = script
        .run(Function::Migrate, &database, options, &Progress::new())
        .await
        .unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::Journal(_)), "{error:?}");
    assert!(error.message.contains("the disk is full"), "{error}");
    assert!(get(&database, "good/x").await.is_some());
    assert_eq!(get(&database, "bad/x").await, None);
}

/// Threads of scripts in this process.
fn script_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.ok()?.path().join("comm")).ok()
    };
    tasks
        .filter_map(name)
        .filter(|name| name.trim() == "script-gone")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_dropped_ends() {
    let (sandbox, database) = database("demo-dropped").await;
    for body in [
        "for (;;) {}",
        "for (let n = 0; ; n += 1) db.set(`a/${n}`, { n });",
        "for (;;) { try { db.get('a/b'); } catch {} }",
    ] {
        let file = Path::new("script-gone.js");
        let script = Script::load(file, migrate(body), BTreeMap::new(), Limits::default()).unwrap();
        let ran = tokio::time::timeout(
            Duration::from_millis(300),
            run_function(&database, &script, Function::Migrate),
        );
        assert!(ran.await.is_err(), "{body}");
        let began = Instant::now();
        while script_threads() > 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "{body}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // And one that is asked to stop.
    let script = load(migrate("for (;;) { try { db.get('a/b'); } catch {} }")).unwrap();
    let options = RunOptions::new(RunMode::DryRun { preview: 1 });
    options.stop.request();
    let error = script
        .run(Function::Migrate, &database, options, &Progress::new())
        .await
        .unwrap_err();
    assert!(matches!(error.kind, ScriptErrorKind::Stopped), "{error:?}");
    drop(sandbox);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_fails_does_not_send_what_waits() {
    let (sandbox, database) = database("demo-waits").await;
    let ran = run(&database, "db.set('a/b', { n: 1 });\nthrow new Error('no');").await;
    assert_eq!(ran.result.unwrap_err().message, "no");
    assert_eq!((sandbox.usage().writes, ran.images.len()), (0, 0));
}
