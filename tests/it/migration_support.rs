//! Scripts against databases, for the tests of migrations.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use firebank::document::{DocumentPath, Fields, canonical};
use firebank::firestore::Firestore;
use firebank::migration::{
    BeforeImage, Function, Journal, JournalError, Limits, LogLine, RunMode, RunOptions, RunStats, Script,
    ScriptError,
};
use firebank::progress::Progress;

use crate::support::operations::put_all;

/// Keeps images in memory.
#[derive(Default)]
pub(crate) struct Images(pub(crate) Mutex<Vec<BeforeImage>>);

#[async_trait::async_trait]
impl Journal for Images {
    async fn record(&self, images: Vec<BeforeImage>) -> Result<(), JournalError> {
        self.0.lock().unwrap().extend(images);
        Ok(())
    }
}

/// A script with a body for `migrate`.
pub(crate) fn migrate(body: &str) -> String {
    format!("export function migrate(db) {{\n{body}\n}}\n")
}

/// Loads a script by the name `v1_test.js`.
pub(crate) fn load(source: impl Into<String>) -> Result<Script, ScriptError> {
    load_with(source, Limits::default())
}

/// The same with limits.
pub(crate) fn load_with(source: impl Into<String>, limits: Limits) -> Result<Script, ScriptError> {
    let settings = BTreeMap::from([("currency".to_owned(), "EUR".to_owned())]);
    Script::load(Path::new("v1_test.js"), source.into(), settings, limits)
}

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) result: Result<RunStats, ScriptError>,
    pub(crate) images: Vec<BeforeImage>,
    pub(crate) log: Vec<String>,
}

/// Runs a function of a script, with a journal in memory.
pub(crate) async fn run_function(database: &Firestore, script: &Script, function: Function) -> Ran {
    let images = Arc::new(Images::default());
    let mut options = RunOptions::new(RunMode::write(database, images.clone()));
    let log = capture(&mut options);
    let result = script.run(function, database, options, &Progress::new()).await;
    let images = std::mem::take(&mut *images.0.lock().unwrap());
    let log = log.lock().unwrap().iter().map(|line| line.text.clone()).collect();
    Ran { result, images, log }
}

/// Collects what a script logs.
pub(crate) fn capture(options: &mut RunOptions) -> Arc<Mutex<Vec<LogLine>>> {
    let lines = Arc::<Mutex<Vec<LogLine>>>::default();
    let sink = lines.clone();
    options.log = Arc::new(move |line| sink.lock().unwrap().push(line));
    lines
}

/// Runs `migrate` with this body.
pub(crate) async fn run(database: &Firestore, body: &str) -> Ran {
    let script = load(migrate(body)).unwrap();
    run_function(database, &script, Function::Migrate).await
}

/// The same, which must succeed: its numbers and its log.
pub(crate) async fn run_ok(database: &Firestore, body: &str) -> (RunStats, Vec<String>) {
    let ran = run(database, body).await;
    match ran.result {
        Ok(stats) => (stats, ran.log),
        Err(error) => panic!("{error}"),
    }
}

/// The same, which must fail.
pub(crate) async fn run_err(database: &Firestore, body: &str) -> ScriptError {
    run(database, body).await.result.unwrap_err()
}

pub(crate) fn path(text: impl Into<String>) -> DocumentPath {
    DocumentPath::parse(text).unwrap()
}

/// Writes documents.
pub(crate) async fn put(database: &Firestore, documents: impl IntoIterator<Item = (String, Fields)>) {
    let documents = documents.into_iter();
    let documents = documents.map(|(name, fields)| (path(name), canonical::encode(&fields)));
    put_all(database, documents).await;
}

/// A document's fields, `None` where there is none.
pub(crate) async fn get(database: &Firestore, name: &str) -> Option<Fields> {
    let found = database.get_documents(&[path(name)], None).await.unwrap().found;
    found
        .last()
        .map(|document| canonical::decode(document.body).unwrap())
}

/// A document's fields as typed JSON, `null` where there is none.
pub(crate) async fn json(database: &Firestore, name: &str) -> String {
    match get(database, name).await {
        Some(fields) => firebank::document::typed_json::fields_to_json(&fields)
            .unwrap()
            .to_string(),
        None => "null".to_owned(),
    }
}
