//! The script's side of a run: the calls that the prelude makes.
//!
//! Lives on the engine's thread. Writes are collected and handed over some at a time; whatever asks for an answer hands over
//! what was collected first, so the database's side sees everything in the script's order.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use rquickjs::{Ctx, Exception, Function, Object, Value as Js};
use tokio::sync::{mpsc, oneshot};

use super::change::{After, Base, Change, OnConflict, Replacement, Write};
use super::convert::{draft_of, drafts_of};
use super::draft::{are_timeless, fields_onto};
use super::failure::Failure;
use super::serve::{Reply, Request, Scanned};
use super::watch::Watch;
use crate::document::{CollectionPath, DocumentBatch, DocumentPath, DocumentRef, Timestamp, canonical};
use crate::migration::{LogLevel, LogLine, LogSink, StoredDocument};
use crate::restore::is_acceptable;

/// What the script may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: it is only being loaded.
    None,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// Writes that are handed over at once.
const WRITES: usize = 128;
/// And their bytes.
const WRITE_BYTES: usize = 256 << 10;

/// See the module's documentation.
pub(super) struct Host {
    pub(super) access: Access,
    pub(super) requests: Option<mpsc::Sender<Request>>,
    pub(super) watch: Rc<Watch>,
    pub(super) log: LogSink,
    /// The database's document root.
    pub(super) root: String,
    /// Bytes of documents that the script may hold on to.
    pub(super) memory: usize,
    writes: RefCell<Vec<Write>>,
    write_bytes: Cell<usize>,
    scans: RefCell<HashMap<u32, Scan>>,
    next_scan: Cell<u32>,
    /// Bytes of documents that the script holds on to.
    held: Cell<usize>,
    /// Where a handle puts its document when it is called.
    opened: RefCell<Option<Arc<StoredDocument>>>,
    /// The stack that the last call came with: most calls come from where the last one came from.
    site: RefCell<Arc<str>>,
    /// What the last failed call met, and the message that was thrown for it.
    failed: RefCell<Option<(String, Failure)>>,
}

struct Scan {
    documents: mpsc::Receiver<Scanned>,
    batch: DocumentBatch,
    next: usize,
}

/// A document that the script holds on to.
struct Held {
    document: Arc<StoredDocument>,
    host: Rc<Host>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = self.host.held.get();
        self.host.held.set(held.saturating_sub(weight(&self.document)));
    }
}

/// A document's bytes, and what it takes besides.
fn weight(document: &StoredDocument) -> usize {
    document.body.len() + 128
}

impl Host {
    pub(super) fn new(
        access: Access,
        requests: Option<mpsc::Sender<Request>>,
        watch: Rc<Watch>,
        log: LogSink,
        root: String,
        memory: usize,
    ) -> Self {
        Self {
            access,
            requests,
            watch,
            log,
            root,
            memory,
            writes: RefCell::default(),
            write_bytes: Cell::new(0),
            scans: RefCell::default(),
            next_scan: Cell::new(0),
            held: Cell::new(0),
            opened: RefCell::default(),
            site: RefCell::new("".into()),
            failed: RefCell::default(),
        }
    }

    /// What the last failed call met, if this is the message that was thrown for it.
    pub(super) fn take_failure(&self, message: &str) -> Option<Failure> {
        self.failed
            .borrow_mut()
            .take_if(|(thrown, _)| message.contains(thrown.as_str()))
            .map(|(_, failure)| failure)
    }

    // ---- asking the database's side ----

    fn send(&self, ctx: &Ctx<'_>, request: Request) -> rquickjs::Result<()> {
        let Some(requests) = &self.requests else {
            return Err(Exception::throw_message(
                ctx,
                "the database is only at hand while migrate, rollback or validate runs",
            ));
        };
        let sent = requests.blocking_send(request);
        self.watch.resumed();
        sent.map_err(|_| self.gone(ctx))
    }

    /// The database's side has ended: so does the script, whatever it catches.
    fn gone(&self, ctx: &Ctx<'_>) -> rquickjs::Error {
        self.watch.abandon();
        Exception::throw_message(ctx, "the run has ended")
    }

    fn hand_over(&self, ctx: &Ctx<'_>) -> rquickjs::Result<()> {
        let writes = self.writes.take();
        self.write_bytes.set(0);
        match writes.is_empty() {
            true => Ok(()),
            false => self.send(ctx, Request::Write(writes)),
        }
    }

    pub(super) fn ask<T>(
        &self,
        ctx: &Ctx<'_>,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> rquickjs::Result<T> {
        self.hand_over(ctx)?;
        let (reply, answer) = oneshot::channel();
        self.send(ctx, request(reply))?;
        let answer = answer.blocking_recv();
        self.watch.resumed();
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(self.fail(ctx, failure)),
            Err(_) => Err(self.gone(ctx)),
        }
    }

    fn fail(&self, ctx: &Ctx<'_>, failure: Failure) -> rquickjs::Error {
        let message = failure.to_string();
        *self.failed.borrow_mut() = Some((message.clone(), failure));
        Exception::throw_message(ctx, &message)
    }

    // ---- documents ----

    /// A function that puts the document where the host's other calls find it. The engine frees it with the last reference.
    fn handle<'js>(
        self: &Rc<Self>,
        ctx: &Ctx<'js>,
        document: StoredDocument,
    ) -> rquickjs::Result<Function<'js>> {
        if self.held.get() + weight(&document) > self.memory {
            // Some may only wait to be collected: the engine does not know how large they are.
            ctx.run_gc();
        }
        let held = self.held.get() + weight(&document);
        if held > self.memory {
            return Err(Exception::throw_internal(
                ctx,
                "out of memory: the script holds on to too many documents",
            ));
        }
        self.held.set(held);
        let held = Held {
            document: Arc::new(document),
            host: self.clone(),
        };
        Function::new(ctx.clone(), move || {
            *held.host.opened.borrow_mut() = Some(held.document.clone());
        })
    }

    /// The document behind a handle.
    fn open(&self, ctx: &Ctx<'_>, handle: &Function<'_>) -> rquickjs::Result<Arc<StoredDocument>> {
        handle.call::<_, ()>(())?;
        let opened = self.opened.borrow_mut().take();
        opened.ok_or_else(|| Exception::throw_internal(ctx, "this is no document"))
    }

    pub(super) fn data<'js>(
        &self,
        ctx: &Ctx<'js>,
        handle: &Function<'js>,
        make: &Object<'js>,
    ) -> rquickjs::Result<Object<'js>> {
        let document = self.open(ctx, handle)?;
        super::convert::object_of(ctx, &document.body, make)
    }

    pub(super) fn times<'js>(
        &self,
        ctx: &Ctx<'js>,
        handle: &Function<'js>,
        make: &Object<'js>,
    ) -> rquickjs::Result<Vec<Js<'js>>> {
        let document = self.open(ctx, handle)?;
        let timestamp: Function<'js> = make.get("timestamp")?;
        [document.create_time, document.update_time]
            .into_iter()
            .map(|time| timestamp.call((time.seconds as f64, time.nanos)))
            .collect()
    }

    pub(super) fn get<'js>(
        self: &Rc<Self>,
        ctx: &Ctx<'js>,
        path: &str,
    ) -> rquickjs::Result<Option<Function<'js>>> {
        let path = document_path(ctx, path)?;
        let found = self.ask(ctx, |reply| Request::Get(path, reply))?;
        found.map(|document| self.handle(ctx, document)).transpose()
    }

    // ---- scans ----

    pub(super) fn open_scan(&self, ctx: &Ctx<'_>, query: crate::firestore::Query) -> rquickjs::Result<u32> {
        let documents = self.ask(ctx, |reply| Request::Open(query, reply))?;
        let number = self.next_scan.get();
        self.next_scan.set(number.wrapping_add(1));
        let scan = Scan {
            documents,
            batch: DocumentBatch::new(),
            next: 0,
        };
        self.scans.borrow_mut().insert(number, scan);
        Ok(number)
    }

    /// The next document's path and handle.
    pub(super) fn next<'js>(
        self: &Rc<Self>,
        ctx: &Ctx<'js>,
        number: u32,
    ) -> rquickjs::Result<Option<(String, Function<'js>)>> {
        loop {
            let found = self.scans.borrow_mut().get_mut(&number).and_then(|scan| {
                let document = scan.batch.get(scan.next)?;
                scan.next += 1;
                Some((document.path(), StoredDocument::of(document)))
            });
            if let Some((path, document)) = found {
                let path = path.map_err(|error| Exception::throw_internal(ctx, &error.to_string()))?;
                return Ok(Some((path.into(), self.handle(ctx, document)?)));
            }
            self.hand_over(ctx)?;
            let scanned = match self.scans.borrow_mut().get_mut(&number) {
                Some(scan) => scan.documents.blocking_recv(),
                None => return Ok(None),
            };
            self.watch.resumed();
            match scanned {
                Some(Scanned::Documents(batch)) => {
                    if let Some(scan) = self.scans.borrow_mut().get_mut(&number) {
                        scan.batch = batch;
                        scan.next = 0;
                    }
                }
                Some(Scanned::End) => {
                    self.close_scan(number);
                    return Ok(None);
                }
                Some(Scanned::Failed(failure)) => {
                    self.close_scan(number);
                    return Err(self.fail(ctx, failure));
                }
                // Cancelled, and not at its end.
                None => return Err(self.gone(ctx)),
            }
        }
    }

    pub(super) fn close_scan(&self, number: u32) {
        self.scans.borrow_mut().remove(&number);
    }

    // ---- writes ----

    /// The stack of a call, kept once as long as calls come from the same place.
    pub(super) fn site(&self, stack: &str) -> Arc<str> {
        let mut site = self.site.borrow_mut();
        if **site != *stack {
            *site = stack.into();
        }
        site.clone()
    }

    pub(super) fn check_write(&self, ctx: &Ctx<'_>) -> rquickjs::Result<()> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(Exception::throw_message(ctx, "validate must not write")),
            Access::None => Err(Exception::throw_message(
                ctx,
                "the database is only at hand while migrate, rollback or validate runs",
            )),
        }
    }

    fn write(&self, ctx: &Ctx<'_>, write: Write) -> rquickjs::Result<()> {
        self.write_bytes.set(self.write_bytes.get() + write.weight());
        let full = {
            let mut writes = self.writes.borrow_mut();
            writes.push(write);
            writes.len() >= WRITES
        };
        match full || self.write_bytes.get() >= WRITE_BYTES {
            true => self.hand_over(ctx),
            false => Ok(()),
        }
    }

    /// A write to a path, or to the document that a handle stands for.
    pub(super) fn change(
        &self,
        ctx: &Ctx<'_>,
        path: &str,
        change: Change,
        handle: Option<&Function<'_>>,
        stack: &str,
    ) -> rquickjs::Result<()> {
        self.check_write(ctx)?;
        let (base, on_conflict) = match (handle, &change) {
            (Some(handle), Change::Set(_) | Change::Merge(_)) => {
                (Base::Stored(self.open(ctx, handle)?), OnConflict::Again)
            }
            (Some(handle), _) => (Base::Stored(self.open(ctx, handle)?), OnConflict::AgainIfThere),
            (None, Change::Create(_)) => (Base::Absent, OnConflict::Again),
            (None, _) => (Base::Unknown, OnConflict::Again),
        };
        let write = Write {
            path: document_path(ctx, path)?,
            base,
            change,
            on_conflict,
            site: self.site(stack),
        };
        self.write(ctx, write)
    }

    /// Makes a document what a script's function returned; whether that is another than it was.
    pub(super) fn replace<'js>(
        &self,
        ctx: &Ctx<'js>,
        path: &str,
        data: &Object<'js>,
        handle: &Function<'js>,
        function: u32,
        stack: &str,
    ) -> rquickjs::Result<bool> {
        self.check_write(ctx)?;
        let stored = self.open(ctx, handle)?;
        let drafts = drafts_of(ctx, data, &self.root)?;
        let unreadable = |_| Exception::throw_internal(ctx, "the document cannot be read");
        let before = canonical::decode(&stored.body).map_err(unreadable)?;
        let (after, timed) = match are_timeless(&drafts) {
            true => (fields_onto(drafts, Some(&before), Timestamp::default()), None),
            false => (
                fields_onto(drafts.clone(), Some(&before), Timestamp::default()),
                Some(drafts),
            ),
        };
        let after = after.map_err(|error| Exception::throw_type(ctx, &error.to_string()))?;
        let Some(after) = After::of(Some(&before), &after) else {
            return Ok(false);
        };
        let change = match timed {
            Some(drafts) => Change::Replace(drafts),
            None => Change::Become(Replacement {
                of: stored.clone(),
                after,
            }),
        };
        let write = Write {
            path: document_path(ctx, path)?,
            base: Base::Stored(stored),
            change,
            on_conflict: OnConflict::Rerun(function),
            site: self.site(stack),
        };
        self.write(ctx, write)?;
        Ok(true)
    }

    pub(super) fn drafts<'js>(
        &self,
        ctx: &Ctx<'js>,
        data: &Object<'js>,
    ) -> rquickjs::Result<std::collections::BTreeMap<String, super::draft::Draft>> {
        drafts_of(ctx, data, &self.root)
    }

    pub(super) fn draft<'js>(&self, ctx: &Ctx<'js>, value: Js<'js>) -> rquickjs::Result<super::draft::Draft> {
        draft_of(ctx, value, &self.root)
    }

    pub(super) fn log(&self, level: &str, text: String) {
        let level = match level {
            "debug" => LogLevel::Debug,
            "warn" => LogLevel::Warning,
            "error" => LogLevel::Error,
            _ => LogLevel::Info,
        };
        (self.log)(LogLine { level, text });
    }
}

impl StoredDocument {
    /// A copy of a document of a batch.
    pub(super) fn of(document: DocumentRef<'_>) -> Self {
        Self {
            body: bytes::Bytes::copy_from_slice(document.body),
            create_time: document.create_time,
            update_time: document.update_time,
        }
    }
}

pub(super) fn document_path(ctx: &Ctx<'_>, path: &str) -> rquickjs::Result<DocumentPath> {
    let parsed = DocumentPath::parse(path).map_err(|error| Exception::throw_type(ctx, &error.to_string()))?;
    match is_acceptable(&parsed) {
        true => Ok(parsed),
        // The database would say so too, but not where in the script.
        false => Err(Exception::throw_type(
            ctx,
            &format!(
                "`{path}` is no name that Firestore takes: an id must not be `.`, `..` or `__…__`, nor longer than 1500 bytes"
            ),
        )),
    }
}

pub(super) fn collection_path(ctx: &Ctx<'_>, path: &str) -> rquickjs::Result<CollectionPath> {
    CollectionPath::parse(path).map_err(|error| Exception::throw_type(ctx, &error.to_string()))
}
