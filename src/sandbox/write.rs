//! Writes: preconditions, masks, transforms, and what they make of a document.

use std::collections::{HashMap, HashSet};

use ::firestore::gcloud_sdk::google::firestore::v1::{
    Precondition, WriteResult, precondition::ConditionType,
};
use tonic::Status;

use super::database::{Commit, Micros, Stored, micros, timestamp};
use super::messages::Write;
use super::values::{self, Checked, FieldPath, Tree};
use super::{names, transform};
use crate::document::DatabaseName;

/// Writes that are done together or not at all, before they are.
pub(crate) struct Staging<'a, 'b> {
    commit: &'a mut Commit<'b>,
    time: Micros,
    staged: HashMap<Vec<u8>, Option<Stored>>,
    /// The order in which documents were first written.
    keys: Vec<Vec<u8>>,
}

impl<'a, 'b> Staging<'a, 'b> {
    pub(crate) fn new(commit: &'a mut Commit<'b>) -> Self {
        let time = commit.tick();
        Self {
            commit,
            time,
            staged: HashMap::new(),
            keys: Vec::new(),
        }
    }

    /// The time at which the writes happen.
    pub(crate) fn time(&self) -> Micros {
        self.time
    }

    fn current(&self, key: &[u8]) -> Option<Stored> {
        match self.staged.get(key) {
            Some(staged) => staged.clone(),
            None => self.commit.get(key),
        }
    }

    /// Stages one write.
    pub(crate) fn write(&mut self, prepared: Prepared<'_>) -> Result<WriteResult, Status> {
        let Prepared {
            write,
            name,
            key,
            fields,
            mask,
        } = prepared;
        let current = self.current(&key);
        check_precondition(name, current.as_ref(), write.current_document.as_ref())?;
        let mut transform_results = Vec::new();
        let transforms = match &write.transform {
            Some(transform) => &transform.field_transforms,
            None => &write.update_transforms,
        };
        let fields = match fields {
            _ if write.delete.is_some() => None,
            Some(fields) if mask.is_none() && transforms.is_empty() => Some(fields),
            fields => {
                let sent = fields.map(|fields| values::stored_tree(&fields.fields));
                let mut tree = masked(sent, mask.as_deref(), current.as_ref());
                transform_results = transform::apply(transforms, &mut tree, self.time)?;
                Some(values::checked_tree(&tree)?)
            }
        };
        let new = match fields {
            Some(fields) => Some(self.document(name, fields.into_fields(name)?, current.as_ref())),
            None => None,
        };
        let update_time = new.as_ref().map(|document| timestamp(document.update_time));
        if !self.staged.contains_key(&key) {
            self.keys.push(key.clone());
        }
        self.staged.insert(key, new);
        Ok(WriteResult {
            update_time,
            transform_results,
        })
    }

    /// The document with its new fields; unchanged ones leave the update time alone.
    fn document(&self, name: &str, fields: Vec<u8>, current: Option<&Stored>) -> Stored {
        match current {
            Some(current) if values::same_fields(current.fields(), &fields) => current.clone(),
            Some(current) => Stored::from_parts(name, &fields, current.create_time, self.time),
            None => Stored::from_parts(name, &fields, self.time, self.time),
        }
    }

    /// Makes the staged documents the present ones.
    pub(crate) fn apply(mut self, history: Micros) {
        for key in std::mem::take(&mut self.keys) {
            let Some(document) = self.staged.remove(&key) else {
                continue;
            };
            let before = self.commit.get(&key);
            let unchanged = match (&before, &document) {
                (None, None) => true,
                (Some(before), Some(document)) => before.update_time == document.update_time,
                _ => false,
            };
            if !unchanged {
                self.commit.put(&key, self.time, document, history);
            }
        }
    }
}

/// The fields before transforms: what was sent, or the masked part of it over what is there.
fn masked(sent: Option<Tree>, mask: Option<&[FieldPath]>, current: Option<&Stored>) -> Tree {
    let there = || {
        current
            .map(|current| values::stored_tree(current.fields()))
            .unwrap_or_default()
    };
    match (sent, mask) {
        (Some(sent), None) => sent,
        (None, _) => there(),
        (Some(sent), Some(mask)) => {
            let mut tree = there();
            mask.iter()
                .for_each(|path| path.set(&mut tree, path.get(&sent).cloned()));
            tree
        }
    }
}

/// A write that is in order by itself, whatever is stored.
pub(crate) struct Prepared<'a> {
    write: &'a Write,
    name: &'a str,
    key: Vec<u8>,
    /// What was sent, `None` unless the write is an update.
    fields: Option<Checked>,
    mask: Option<Vec<FieldPath>>,
}

impl<'a> Prepared<'a> {
    /// Checks a write. What is wrong here fails the whole request, of a BatchWrite too.
    pub(crate) fn new(write: &'a Write, database: &DatabaseName) -> Result<Self, Status> {
        let name = write
            .name()
            .ok_or_else(|| Status::invalid_argument("empty write operation"))?;
        let key = names::document(name, database)?;
        let fields = write
            .update
            .as_ref()
            .map(|document| values::checked(&document.fields))
            .transpose()?;
        let mask = write
            .update_mask
            .as_ref()
            .map(|mask| values::mask(&mask.field_paths))
            .transpose()?;
        transform::check(&write.update_transforms)?;
        transform::check(
            write
                .transform
                .as_ref()
                .map_or(&[][..], |transform| &transform.field_transforms),
        )?;
        Ok(Self {
            write,
            name,
            key,
            fields,
            mask,
        })
    }

    /// The document's full name.
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    /// The document's key.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }
}

/// Checks all writes of a request, each of another document if `once`.
pub(crate) fn prepare<'a>(
    writes: &'a [Write],
    database: &DatabaseName,
    once: bool,
) -> Result<Vec<Prepared<'a>>, Status> {
    let mut seen = HashSet::with_capacity(writes.len());
    let prepared = writes.iter().map(|write| {
        let prepared = Prepared::new(write, database)?;
        if once && !seen.insert(prepared.name) {
            return Err(Status::invalid_argument(
                "the same document cannot be written more than once in a single request",
            ));
        }
        Ok(prepared)
    });
    prepared.collect()
}

fn check_precondition(
    name: &str,
    current: Option<&Stored>,
    condition: Option<&Precondition>,
) -> Result<(), Status> {
    match (condition.and_then(|condition| condition.condition_type), current) {
        (Some(ConditionType::Exists(true)), None) => {
            Err(Status::not_found(format!("No document to update: {name}")))
        }
        (Some(ConditionType::Exists(false)), Some(_)) => {
            Err(Status::already_exists(format!("Document already exists: {name}")))
        }
        (Some(ConditionType::UpdateTime(_)), None) => Err(Status::failed_precondition(format!(
            "the stored version of {name} does not match the required base version: there is no document"
        ))),
        (Some(ConditionType::UpdateTime(time)), Some(current)) if micros(&time) != current.update_time => {
            Err(Status::failed_precondition(format!(
                "the stored version ({}) of {name} does not match the required base version ({})",
                current.update_time,
                micros(&time)
            )))
        }
        _ => Ok(()),
    }
}
