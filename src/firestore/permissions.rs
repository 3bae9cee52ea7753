//! What the credentials are allowed to do, found out without changing anything.
//!
//! Each permission is tried with a request that has no effect: reads of a document that does not exist,
//! writes with a precondition that cannot hold. A request that is allowed fails for the precondition, one
//! that is not fails for the permission
//! (<https://cloud.google.com/firestore/docs/security/iam#required_permissions>).

use ::firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use ::firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use ::firestore::gcloud_sdk::google::firestore::v1::{
    BatchWriteRequest, BatchWriteResponse, Document, Precondition, Write,
};
use tonic::Code;

use super::{Error, Firestore, Method, Result};
use crate::document::DocumentPath;

/// What became of the test of a permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// The credentials have it.
    Granted,
    /// They lack it.
    Missing,
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// What a permission is needed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To read a database.
    Reading,
    /// To write into one.
    Writing,
    /// To do either.
    Both,
}

/// One permission and whether the credentials have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionCheck {
    /// Its name in Google's terms.
    pub permission: &'static str,
    /// What needs it.
    pub purpose: Purpose,
    /// What does not work without it.
    pub needed_for: &'static str,
    /// Whether it is there.
    pub result: Permission,
}

impl Firestore {
    /// Tries every permission that Firebank uses. Nothing is changed, and a few reads are billed.
    pub async fn check_permissions(&self) -> Vec<PermissionCheck> {
        let nowhere = self.nonexistent();
        let list = self.current_read_time().await.map(|_| ());
        let get = self
            .get_documents(std::slice::from_ref(&nowhere), None)
            .await
            .map(|_| ());
        let metadata = self.metadata().await.map(|_| ());
        let name = format!("{}/{nowhere}", self.inner.root);
        let update = self.try_write(Operation::Update(Document {
            name,
            ..Default::default()
        }));
        let update = update.await;
        let check = |permission, purpose, needed_for, result| PermissionCheck {
            permission,
            purpose,
            needed_for,
            result,
        };
        use Purpose::{Both, Reading, Writing};
        vec![
            check(
                "datastore.entities.list",
                Reading,
                "reading a database: backup, status",
                outcome(list),
            ),
            check(
                "datastore.databases.getMetadata",
                Reading,
                "telling a database from another one of its name",
                outcome(metadata),
            ),
            check(
                "datastore.entities.get",
                Both,
                "fetching what changed (backup), finding out whether a write was done whose answer was lost (restore)",
                outcome(get),
            ),
            check(
                "datastore.entities.create",
                Writing,
                "restore, import",
                // A creation that is sure to fail needs a document that is sure to exist.
                Permission::Unknown(
                    "it cannot be tried without writing; roles that allow updates allow it too".to_owned(),
                ),
            ),
            check("datastore.entities.update", Writing, "restore, import", update),
        ]
    }

    /// A document that nobody has.
    pub(super) fn nonexistent(&self) -> DocumentPath {
        let id = format!("firebank-permission-check-{:016x}", rand::random::<u64>());
        #[expect(clippy::expect_used, reason = "two segments, neither empty")]
        DocumentPath::parse(format!("{id}/{id}")).expect("a document's path")
    }

    /// Tries a write to a document that does not exist on the condition that it does.
    async fn try_write(&self, operation: Operation) -> Permission {
        let request = BatchWriteRequest {
            database: self.inner.database.resource(),
            writes: vec![Write {
                current_document: Some(Precondition {
                    condition_type: Some(ConditionType::Exists(true)),
                }),
                operation: Some(operation),
                ..Default::default()
            }],
            ..Default::default()
        };
        let answer: BatchWriteResponse = match self.ask(Method::BatchWrite, None, &request).await {
            Ok(answer) => answer,
            Err(error) => return outcome(Err(error)),
        };
        match answer
            .status
            .first()
            .map(|status| (Code::from_i32(status.code), &status.message))
        {
            Some((Code::PermissionDenied, _)) => Permission::Missing,
            Some((Code::NotFound | Code::FailedPrecondition, _)) => Permission::Granted,
            Some((code, message)) => Permission::Unknown(format!("the answer was {code:?}: {message}")),
            None => Permission::Unknown("there was no answer to the write".to_owned()),
        }
    }
}

fn outcome(result: Result<()>) -> Permission {
    match result {
        Ok(()) => Permission::Granted,
        Err(Error::PermissionDenied { .. }) => Permission::Missing,
        Err(error) => Permission::Unknown(error.to_string()),
    }
}
