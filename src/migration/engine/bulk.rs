//! Steps over whole collections that need no function of the script: they never enter JavaScript, and move values as they are.

use std::sync::Arc;

use super::change::{Base, Change, OnConflict, Write};
use super::draft::{Draft, value_at};
use super::failure::Failure;
use super::scan::{Scan, Source};
use super::serve::Server;
use super::sink::Sink;
use crate::document::{CollectionPath, DocumentBatch, DocumentPath, DocumentRef, Fields, canonical};
use crate::firestore::Query;
use crate::migration::StoredDocument;

/// A step.
#[derive(Debug)]
pub(super) enum Bulk {
    /// A field for the documents that do not have it.
    AddField(Query, Vec<String>, Draft),
    /// Another name for a field.
    RenameField(Query, Vec<String>, Vec<String>),
    /// No field.
    RemoveField(Query, Vec<String>),
    /// The documents of a collection and below it in another, too or instead.
    Copy {
        from: CollectionPath,
        to: CollectionPath,
        moving: bool,
    },
    /// No documents in a collection and below it.
    Delete(CollectionPath),
}

impl<S: Sink> Server<S> {
    /// Does a step; how many documents it changes, makes or deletes.
    pub(super) async fn bulk(&mut self, bulk: Bulk, site: Arc<str>) -> Result<u64, Failure> {
        match bulk {
            Bulk::AddField(query, field, draft) => {
                let change = Change::AddField(field.clone(), draft);
                self.change_where(query, change, site, |fields| value_at(fields, &field).is_none())
                    .await
            }
            Bulk::RenameField(query, from, to) => {
                let change = Change::RenameField(from.clone(), to);
                self.change_where(query, change, site, |fields| value_at(fields, &from).is_some())
                    .await
            }
            Bulk::RemoveField(query, field) => {
                let removed = Draft::Operation(super::draft::Operation::Delete);
                let change = Change::Update(vec![(field.clone(), removed)]);
                self.change_where(query, change, site, |fields| value_at(fields, &field).is_some())
                    .await
            }
            Bulk::Copy { from, to, moving } => self.copy(&from, &to, moving, site).await,
            Bulk::Delete(collection) => self.delete_all(&collection, site).await,
        }
    }

    async fn change_where(
        &mut self,
        query: Query,
        change: Change,
        site: Arc<str>,
        concerns: impl Fn(&Fields) -> bool + Send,
    ) -> Result<u64, Failure> {
        self.writer.flush_query(&query).await?;
        let mut documents = self.scan(Source::Query(query)).await?;
        let mut count = 0;
        while let Some(batch) = self.next(&mut documents).await? {
            for document in batch.iter() {
                let path = document.path().map_err(|_| Failure::Gone)?;
                let fields = canonical::decode(document.body).map_err(|error| Failure::Change {
                    path: path.clone(),
                    site: site.clone(),
                    source: error.into(),
                })?;
                if concerns(&fields) {
                    count += 1;
                    let write = of_stored(path, document, change.clone(), OnConflict::AgainIfThere, &site);
                    self.writer.add(write).await?;
                }
            }
        }
        Ok(count)
    }

    async fn copy(
        &mut self,
        from: &CollectionPath,
        to: &CollectionPath,
        moving: bool,
        site: Arc<str>,
    ) -> Result<u64, Failure> {
        self.writer.flush().await?;
        let mut documents = self.scan(Source::Range(from.key_range())).await?;
        let mut count = 0;
        while let Some(batch) = self.next(&mut documents).await? {
            for document in batch.iter() {
                let path = document.path().map_err(|_| Failure::Gone)?;
                let tail = path.as_str().strip_prefix(from.as_str()).ok_or(Failure::Gone)?;
                let there = DocumentPath::parse(format!("{to}{tail}")).map_err(|_| Failure::Gone)?;
                let body = bytes::Bytes::copy_from_slice(document.body);
                count += 1;
                self.writer
                    .add(Write {
                        path: there,
                        base: Base::Unknown,
                        change: Change::Copy(body),
                        on_conflict: OnConflict::Again,
                        site: site.clone(),
                    })
                    .await?;
            }
            if moving {
                // Never gone from here before it is there.
                self.writer.flush().await?;
                for document in batch.iter() {
                    let path = document.path().map_err(|_| Failure::Gone)?;
                    let write = of_stored(path, document, Change::Delete, OnConflict::Never, &site);
                    self.writer.add(write).await?;
                }
            }
        }
        Ok(count)
    }

    async fn delete_all(&mut self, collection: &CollectionPath, site: Arc<str>) -> Result<u64, Failure> {
        self.writer.flush().await?;
        let mut documents = self.scan(Source::Range(collection.key_range())).await?;
        let mut count = 0;
        while let Some(batch) = self.next(&mut documents).await? {
            for document in batch.iter() {
                let path = document.path().map_err(|_| Failure::Gone)?;
                count += 1;
                let write = of_stored(path, document, Change::Delete, OnConflict::AgainIfThere, &site);
                self.writer.add(write).await?;
            }
        }
        Ok(count)
    }

    async fn next(&self, documents: &mut Scan) -> Result<Option<DocumentBatch>, Failure> {
        self.bounds().check()?;
        documents.next().await
    }
}

fn of_stored(
    path: DocumentPath,
    document: DocumentRef<'_>,
    change: Change,
    on_conflict: OnConflict,
    site: &Arc<str>,
) -> Write {
    Write {
        path,
        base: Base::Stored(Arc::new(StoredDocument::of(document))),
        change,
        on_conflict,
        site: site.clone(),
    }
}
