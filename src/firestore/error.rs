//! What can go wrong with the database, told apart by what a caller can do about it.

use tonic::{Code, Status};

use super::Method;
use crate::document::{DatabaseName, DocumentPath, Timestamp, wire::WireError};

/// The result of a call to the database.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call to the database.
///
/// None of the variants holds a token or a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at the address.
    #[error("cannot connect to {address} (is it running, and can this machine reach it?)")]
    Connect {
        /// The address.
        address: String,
        /// What the connection attempt met.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No usable credentials.
    #[error("{problem}; {remedy}")]
    Credentials {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
        /// The failure underneath, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The credentials work, and are not allowed to do this.
    #[error(
        "permission denied for {method} on {database}: grant the account a role that allows it (roles/datastore.viewer reads, \
         roles/datastore.user writes; `firebank doctor` lists what is missing)"
    )]
    PermissionDenied {
        /// The database.
        database: DatabaseName,
        /// The method that was refused.
        method: Method,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// The server does not accept the credentials.
    #[error(
        "the server does not accept the credentials for {method} on {database}: renew them (`gcloud auth \
         application-default login`) or name another key file"
    )]
    Unauthenticated {
        /// The database.
        database: DatabaseName,
        /// The method that was refused.
        method: Method,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// The project has no such database.
    #[error("there is no database {database}: check the project's and the database's id")]
    DatabaseNotFound {
        /// The database.
        database: DatabaseName,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// The server no longer keeps the versions of that time.
    #[error(
        "the database no longer keeps what it held at {read_time}: read at a newer time (an hour is kept, seven days \
         with point-in-time recovery)"
    )]
    ReadTimeTooOld {
        /// The time that was asked for.
        read_time: Timestamp,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// The server does not answer queries over all collections at once. A read that begins with this goes on
    /// another way.
    #[error("the server refuses queries over all collections, and has answered some before: try again")]
    KindlessRefused {
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// The server does not offer the method.
    #[error("the server does not offer {method}")]
    Unsupported {
        /// The method.
        method: Method,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// Documents came in another order than Firestore's own, so nothing may be concluded from a missing one.
    #[error(
        "the server sent `{second}` after `{first}`, against the order of names, so nothing may be concluded \
         from a missing one: nothing was committed; `firebank backup --walk` reads another way; please report the two \
         names"
    )]
    OutOfOrder {
        /// What came first.
        first: DocumentPath,
        /// What came after it and should not have.
        second: DocumentPath,
    },
    /// The server answered for another time than the one asked for.
    #[error(
        "{method} was asked for the time {asked} and answered for {answered}: the result would not be consistent"
    )]
    OtherReadTime {
        /// The method.
        method: Method,
        /// The time asked for.
        asked: Timestamp,
        /// The time answered for.
        answered: Timestamp,
    },
    /// Every attempt failed with something that is usually temporary.
    #[error(
        "{method} on {database} failed {attempts} times in a row: the service is overloaded or out of reach, try again later"
    )]
    Unavailable {
        /// The database.
        database: DatabaseName,
        /// The method.
        method: Method,
        /// How many attempts were made.
        attempts: u32,
        /// The last answer.
        #[source]
        source: Status,
    },
    /// The server ended the call by itself.
    #[error("the server cancelled {method} on {database}: try again")]
    Cancelled {
        /// The database.
        database: DatabaseName,
        /// The method.
        method: Method,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// The server refuses the request, and would refuse it again.
    #[error("{method} on {database} was refused: {}", source.message())]
    Rejected {
        /// The database.
        database: DatabaseName,
        /// The method.
        method: Method,
        /// The server's answer.
        #[source]
        source: Status,
    },
    /// A document that cannot be read or written without loss; the message names it.
    #[error(transparent)]
    Document(#[from] WireError),
    /// An answer that is not what the API promises.
    #[error("the answer to {method} makes no sense: {reason}")]
    Malformed {
        /// The method.
        method: Method,
        /// What is wrong.
        reason: String,
    },
    /// A key range's end that stands for no place between documents.
    #[error("{boundary} is not a boundary of a key range")]
    BadBoundary {
        /// The boundary.
        boundary: String,
    },
    /// What failed to be written could not be recorded, so the writer stopped.
    #[error(
        "cannot record a document that could not be written: free some space or name another file, and start again"
    )]
    FailureSink(#[source] std::io::Error),
    /// The writer has stopped because of an earlier error.
    #[error("the writer has stopped after an earlier error")]
    WriterStopped,
}

impl Error {
    /// The server's own status, where there is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::PermissionDenied { source, .. }
            | Self::Unauthenticated { source, .. }
            | Self::DatabaseNotFound { source, .. }
            | Self::ReadTimeTooOld { source, .. }
            | Self::KindlessRefused { source }
            | Self::Unsupported { source, .. }
            | Self::Unavailable { source, .. }
            | Self::Cancelled { source, .. }
            | Self::Rejected { source, .. } => Some(source),
            _ => None,
        }
    }

    /// An answer that is none.
    pub(super) fn malformed(method: Method, reason: impl ToString) -> Self {
        Self::Malformed {
            method,
            reason: reason.to_string(),
        }
    }

    /// What a final status of a call means.
    pub(super) fn from_status(
        database: &DatabaseName,
        method: Method,
        read_time: Option<Timestamp>,
        attempts: u32,
        source: Status,
    ) -> Self {
        let database = database.clone();
        match (source.code(), read_time) {
            (Code::PermissionDenied, _) => Self::PermissionDenied {
                database,
                method,
                source,
            },
            (Code::Unauthenticated, _) => Self::Unauthenticated {
                database,
                method,
                source,
            },
            (Code::NotFound, _) => Self::DatabaseNotFound { database, source },
            (Code::FailedPrecondition, Some(read_time)) if says_too_old(source.message()) => {
                Self::ReadTimeTooOld { read_time, source }
            }
            (Code::Unimplemented, _) => Self::Unsupported { method, source },
            _ if super::retry::is_retryable(&source) => Self::Unavailable {
                database,
                method,
                attempts,
                source,
            },
            (Code::Cancelled, _) => Self::Cancelled {
                database,
                method,
                source,
            },
            _ => Self::Rejected {
                database,
                method,
                source,
            },
        }
    }
}

/// "The requested snapshot version is too old" in production; the wording has varied.
fn says_too_old(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("too old") || message.contains("read_time") || message.contains("read time")
}
