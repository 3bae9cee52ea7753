//! What can go wrong with an object, sorted by what the caller does about it.

use std::error::Error;
use std::io;
use std::ops::Range;

type Source = Box<dyn Error + Send + Sync + 'static>;

/// A request to the store that failed. Every variant names the object.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object (or, on opening a local store, no such folder).
    #[error("`{name}` does not exist")]
    NotFound {
        /// The object.
        name: String,
    },
    /// A create-only put found other bytes under the name.
    #[error("`{name}` exists already, with other contents")]
    AlreadyExists {
        /// The object.
        name: String,
    },
    /// The store refuses this identity.
    #[error(
        "no permission to {operation} `{name}`: {source}. Check the owner and mode of the folder, or what the bucket \
         grants to these credentials"
    )]
    NoPermission {
        /// The object.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// What the store said.
        source: Source,
    },
    /// The disk or the quota is used up.
    #[error(
        "no space left to {operation} `{name}`: {source}. Free some space and start again; nothing that was \
         committed is affected"
    )]
    Full {
        /// The object.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// What the store said.
        source: Source,
    },
    /// The object ends before the part that was asked for: it was cut short.
    #[error("`{name}` has {size} bytes, but bytes {} to {} were needed: it was cut short", range.start, range.end)]
    OutOfRange {
        /// The object.
        name: String,
        /// What was asked for.
        range: Range<u64>,
        /// What there is.
        size: u64,
    },
    /// The object is larger than anything of its kind may be.
    #[error("`{name}` has {size} bytes, more than the {limit} that an object of its kind may have")]
    TooLarge {
        /// The object.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No object can have this name.
    #[error("`{name}` cannot name an object: {what}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The store lacks a promise that the archive rests on.
    #[error("this store cannot hold a repository: {what}")]
    Unfit {
        /// Which.
        what: String,
    },
    /// Anything else: the network, the service, the disk.
    #[error("could not {operation} `{name}`: {source}")]
    Other {
        /// The object.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// What the store said.
        source: Source,
    },
}

impl StoreError {
    /// Sorts an error of the client library.
    pub(super) fn from_object_store(name: &str, operation: &'static str, error: object_store::Error) -> Self {
        use object_store::Error as E;
        let name = name.to_owned();
        match error {
            E::NotFound { .. } => Self::NotFound { name },
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::AlreadyExists { name },
            E::PermissionDenied { source, .. } | E::Unauthenticated { source, .. } => Self::NoPermission {
                name,
                operation,
                source,
            },
            error => match io_cause(&error) {
                Some(kind) => Self::from_kind(kind, name, operation, Box::new(error)),
                None => Self::Other {
                    name,
                    operation,
                    source: Box::new(error),
                },
            },
        }
    }

    /// Sorts an error of the local disk.
    pub(super) fn from_io(name: &str, operation: &'static str, error: io::Error) -> Self {
        Self::from_kind(error.kind(), name.to_owned(), operation, Box::new(error))
    }

    fn from_kind(kind: io::ErrorKind, name: String, operation: &'static str, source: Source) -> Self {
        use io::ErrorKind as K;
        match kind {
            K::NotFound => Self::NotFound { name },
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Self::Full {
                name,
                operation,
                source,
            },
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::NoPermission {
                name,
                operation,
                source,
            },
            _ => Self::Other {
                name,
                operation,
                source,
            },
        }
    }
}

/// The disk's own error below whatever wraps it.
fn io_cause(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(kind: io::ErrorKind) -> StoreError {
        let error = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(io::Error::from(kind)),
        };
        StoreError::from_object_store("chunks/ab/x", "create", error)
    }

    #[test]
    fn a_full_disk_and_a_refusal_are_told_apart_and_name_the_object() {
        let full = sorted(io::ErrorKind::StorageFull);
        assert!(matches!(full, StoreError::Full { .. }), "{full:?}");
        assert!(full.to_string().contains("chunks/ab/x") && full.to_string().contains("Free some space"));
        assert!(matches!(
            sorted(io::ErrorKind::QuotaExceeded),
            StoreError::Full { .. }
        ));
        let refused = sorted(io::ErrorKind::PermissionDenied);
        assert!(matches!(refused, StoreError::NoPermission { .. }), "{refused:?}");
        assert!(matches!(
            sorted(io::ErrorKind::ConnectionReset),
            StoreError::Other { .. }
        ));
    }
}
