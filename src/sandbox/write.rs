//! Writes: preconditions, masks, transforms, and what they make of a document.

use std::collections::HashMap;

use ::firestore::gcloud_sdk::google::firestore::v1::{
    Precondition, Value, WriteResult, precondition::ConditionType,
};
use tonic::Status;

use super::database::{Commit, Micros, Stored, micros, timestamp};
use super::messages::{Document, Write};
use super::values::{self, Tree};
use super::{names, transform};
use crate::document::DatabaseName;

/// Writes that are done together or not at all, before they are.
pub(crate) struct Staging<'a, 'b> {
    commit: &'a mut Commit<'b>,
    database: &'a DatabaseName,
    time: Micros,
    staged: HashMap<Vec<u8>, Option<Stored>>,
    /// The order in which documents were first written.
    keys: Vec<Vec<u8>>,
}

impl<'a, 'b> Staging<'a, 'b> {
    pub(crate) fn new(commit: &'a mut Commit<'b>, database: &'a DatabaseName) -> Self {
        let time = commit.tick();
        Self {
            commit,
            database,
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
    pub(crate) fn write(&mut self, write: &Write) -> Result<WriteResult, Status> {
        let name = write
            .name()
            .ok_or_else(|| Status::invalid_argument("A write needs an operation."))?;
        let key = names::document(name, self.database)?;
        let current = self.current(&key);
        check_precondition(name, current.as_ref(), write.current_document.as_ref())?;
        let mut transform_results = Vec::new();
        let new = match write {
            Write {
                update: Some(document),
                ..
            } => {
                let fields = updated_fields(
                    document,
                    write,
                    current.as_ref(),
                    self.time,
                    &mut transform_results,
                )?;
                Some(self.document(name, fields, current.as_ref()))
            }
            Write {
                transform: Some(transform),
                ..
            } => {
                let mut tree = tree_of(current.as_ref());
                transform_results = transform::apply(&transform.field_transforms, &mut tree, self.time)?;
                Some(self.document(name, values::checked_tree(name, tree)?, current.as_ref()))
            }
            _ => None,
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

fn tree_of(current: Option<&Stored>) -> Tree {
    current
        .map(|current| values::stored_tree(current.fields()))
        .unwrap_or_default()
}

fn updated_fields(
    document: &Document,
    write: &Write,
    current: Option<&Stored>,
    time: Micros,
    transform_results: &mut Vec<Value>,
) -> Result<Vec<u8>, Status> {
    if write.update_mask.is_none() && write.update_transforms.is_empty() {
        return values::checked(&document.name, &document.fields);
    }
    let sent = values::tree(document.fields.iter().map(|entry| &entry[..]))?;
    let mut tree = match &write.update_mask {
        None => sent,
        Some(mask) => {
            let mut tree = tree_of(current);
            for path in values::mask(&mask.field_paths)? {
                path.set(&mut tree, path.get(&sent).cloned());
            }
            tree
        }
    };
    *transform_results = transform::apply(&write.update_transforms, &mut tree, time)?;
    values::checked_tree(&document.name, tree)
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
