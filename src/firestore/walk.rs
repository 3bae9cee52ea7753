//! Reading a key range collection by collection, for servers that refuse queries over all collections.
//!
//! From the root's collections down: list a collection's documents, those that are missing and only have
//! something below them included, and after each document the collections below it. A document's key comes
//! before all that is below it and that before the next document's, so the walk gives the very order that a
//! query over all collections gives. It takes a call and a billed read more for every document, to ask for
//! the collections below it; they are asked for several at a time.
//!
//! There are no cursors by name here: a walk that begins in the middle of a collection lists it from its
//! start and passes over what comes before. So ranges should begin where root collections do. Pages are whole
//! answers with a token for the next one, so they cannot end short unnoticed as streams can.

use std::collections::VecDeque;

use ::firestore::gcloud_sdk::google::firestore::v1::list_documents_request::ConsistencySelector;
use ::firestore::gcloud_sdk::google::firestore::v1::{DocumentMask, ListDocumentsRequest};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::Code;

use super::proto::{NAME_FIELD, protobuf_time};
use super::scan::ScanOptions;
use super::{Error, Firestore, Method, Result};
use crate::document::{CollectionPath, DocumentBatch, DocumentKey, DocumentPath, KeyRange, wire};

/// Documents whose collections are asked for at once.
const CHILDREN_AT_ONCE: usize = 16;
/// Documents in a page, at first, at least and at most.
const FIRST_PAGE: u64 = 50;
const SMALLEST_PAGE: u64 = 1;
const LARGEST_PAGE: u64 = 300;
/// Bytes that a page should hold.
const PAGE_BYTES: u64 = 2 << 20;

/// A walk through a range.
pub(super) struct Walker {
    firestore: Firestore,
    options: ScanOptions,
    /// From the root's collections to where the walk is.
    levels: Vec<Level>,
    started: bool,
    page_documents: u64,
    /// The key of the last document that was listed, whether it exists or not.
    last: Option<DocumentKey>,
}

/// One level of the walk: what is left of it.
enum Level {
    Collections(VecDeque<CollectionPath>),
    Documents(Documents),
}

/// A collection's documents.
struct Documents {
    collection: CollectionPath,
    /// The token of the next page; `None` after the last one.
    next: Option<String>,
    listed: VecDeque<Listed>,
}

/// A document of a page.
struct Listed {
    path: DocumentPath,
    /// `None` if it is missing.
    message: Option<Bytes>,
    collections: Vec<CollectionPath>,
}

impl Walker {
    pub(super) fn new(firestore: Firestore, options: ScanOptions) -> Self {
        Self {
            firestore,
            options,
            levels: Vec::new(),
            started: false,
            page_documents: FIRST_PAGE,
            last: None,
        }
    }

    /// The next documents, `None` at the end of the range.
    pub(super) async fn next_batch(&mut self) -> Result<Option<DocumentBatch>> {
        if !self.started {
            self.started = true;
            let roots = self.collections_below(None).await?;
            self.levels.push(Level::Collections(roots.into()));
        }
        let mut batch = DocumentBatch::new();
        while batch.len() < self.options.batch_documents.max(1) && batch.byte_len() < self.options.batch_bytes
        {
            let Some(level) = self.levels.last_mut() else {
                break;
            };
            let entered = match level {
                Level::Collections(collections) => collections.pop_front().map(|collection| {
                    Level::Documents(Documents {
                        collection,
                        next: Some(String::new()),
                        listed: VecDeque::new(),
                    })
                }),
                Level::Documents(documents) => match documents.listed.pop_front() {
                    Some(listed) => Some(Level::Collections(self.pass(listed, &mut batch)?.into())),
                    None => match documents.next.take() {
                        Some(token) => {
                            let collection = documents.collection.clone();
                            self.read_page(collection, token).await?;
                            continue;
                        }
                        None => None,
                    },
                },
            };
            match entered {
                Some(level) => self.levels.push(level),
                None => drop(self.levels.pop()),
            }
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// Gives a document out, if it is one and in the range. What is below it comes next.
    fn pass(&mut self, listed: Listed, batch: &mut DocumentBatch) -> Result<Vec<CollectionPath>> {
        let key = listed.path.key();
        let after = self.options.after.as_ref();
        if let Some(message) = &listed.message
            && self.options.range.contains(key.as_bytes())
            && after.is_none_or(|after| *after < key)
        {
            wire::append_document(message, &self.firestore.inner.root, batch)?;
        }
        Ok(listed.collections)
    }

    /// Lists a page of the collection that the walk is in, and the collections below each of its documents.
    async fn read_page(&mut self, collection: CollectionPath, token: String) -> Result<()> {
        let (found, mut next) = self.list(&collection, token).await?;
        let mut wanted = Vec::with_capacity(found.len());
        for (path, message) in found {
            let subtree = path.key().subtree();
            self.check_order(&path)?;
            let end = self.options.range.end.as_ref();
            if end.is_some_and(|end| subtree.start.as_ref() >= Some(end)) {
                // Nothing that follows in this collection is in the range.
                next = None;
                break;
            }
            if !self.is_outside(&subtree) {
                wanted.push((path, message));
            }
        }
        let walker = &*self;
        let listed = stream::iter(wanted).map(|(path, message)| async move {
            let collections = walker.collections_below(Some(&path)).await?;
            Ok::<_, Error>(Listed {
                path,
                message,
                collections,
            })
        });
        let listed: VecDeque<Listed> = listed
            .buffered(CHILDREN_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?
            .into();
        if let Some(Level::Documents(documents)) = self.levels.last_mut() {
            (documents.next, documents.listed) = (next, listed);
        }
        Ok(())
    }

    fn is_outside(&self, keys: &KeyRange) -> bool {
        let passed = match (&keys.end, &self.options.after) {
            (Some(end), Some(after)) => end <= after,
            _ => false,
        };
        passed || keys.intersection(&self.options.range).is_empty()
    }

    fn check_order(&mut self, path: &DocumentPath) -> Result<()> {
        let key = path.key();
        let siblings = self.last.replace(key.clone()).filter(|last| {
            let last = last.path().map(|last| last.collection());
            last.is_ok_and(|last| last == path.collection())
        });
        match siblings {
            Some(last) if last >= key => Err(Error::OutOfOrder {
                first: last.path().unwrap_or_else(|_| path.clone()),
                second: path.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The collections below a document or the root that have something of the range, in the order of their keys.
    async fn collections_below(&self, parent: Option<&DocumentPath>) -> Result<Vec<CollectionPath>> {
        let ids = self
            .firestore
            .collection_ids(parent, Some(self.options.read_time));
        let ids: Vec<String> = ids.try_collect().await?;
        let mut collections = Vec::with_capacity(ids.len());
        for id in ids {
            let path = match parent {
                Some(parent) => format!("{parent}/{id}"),
                None => id,
            };
            let path = CollectionPath::parse(path)
                .map_err(|error| Error::malformed(Method::ListCollectionIds, error))?;
            if !self.is_outside(&path.key_range()) {
                collections.push(path);
            }
        }
        collections.sort_by_cached_key(|path| path.key_range().start);
        Ok(collections)
    }

    /// One page of a collection, and the token of the next.
    async fn list(&mut self, collection: &CollectionPath, token: String) -> Result<Page> {
        let root = &self.firestore.inner.root;
        let (parent, id) = match collection.as_str().rsplit_once('/') {
            Some((parent, id)) => (format!("{root}/{parent}"), id.to_owned()),
            None => (root.clone(), collection.as_str().to_owned()),
        };
        let mut request = ListDocumentsRequest {
            parent,
            collection_id: id,
            page_token: token,
            show_missing: true,
            mask: self.options.names_only.then(|| DocumentMask {
                field_paths: vec![NAME_FIELD.to_owned()],
            }),
            consistency_selector: Some(ConsistencySelector::ReadTime(protobuf_time(
                self.options.read_time,
            ))),
            ..Default::default()
        };
        let message = loop {
            let wanted = u32::try_from(self.page_documents).unwrap_or(u32::MAX);
            let documents = u64::from(self.firestore.inner.read_rate.query(wanted).await);
            request.page_size = i32::try_from(documents).unwrap_or(i32::MAX);
            let asked = self
                .firestore
                .ask_raw(Method::ListDocuments, Some(self.options.read_time), &request);
            match asked.await {
                Ok(message) => break message,
                // Documents that together are larger than a message may be.
                Err(Error::Rejected { source, .. })
                    if source.code() == Code::OutOfRange && documents > SMALLEST_PAGE =>
                {
                    self.page_documents = documents / 2;
                }
                Err(error) => return Err(error),
            }
        };
        let answer = wire::list_answer(&message)?;
        let listed = answer.documents.len() as u64;
        self.firestore.inner.stats.billed(listed.max(1));
        if let Some(mean) = (message.len() as u64).checked_div(listed) {
            self.page_documents = (PAGE_BYTES / mean.max(1)).clamp(SMALLEST_PAGE, LARGEST_PAGE);
        }
        let mut documents = Vec::with_capacity(answer.documents.len());
        for document in &answer.documents {
            let path = self.firestore.path_of(document.name);
            let path = path.ok_or_else(|| {
                let reason = format!("it has a document named `{}`", document.name);
                Error::malformed(Method::ListDocuments, reason)
            })?;
            let existing = document.exists.then(|| message.slice_ref(document.message));
            documents.push((path, existing));
        }
        let next = (!answer.next_page_token.is_empty()).then(|| answer.next_page_token.to_owned());
        Ok((documents, next))
    }
}

/// Documents by path, `None` for those that are missing, and the token of the next page.
type Page = (Vec<(DocumentPath, Option<Bytes>)>, Option<String>);
