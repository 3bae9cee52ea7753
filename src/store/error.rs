//! What can go wrong with an object, sorted by what the caller does about it.

use std::error::Error;
use std::io;
use std::ops::Range;

use object_store::client::{HttpError, HttpErrorKind};

use super::rights::{endpoint_variables, how_to_authenticate, right_to};
use super::transport::{NoMetadata, Refusal, Unreachable};
use super::{Place, Provider};

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
    #[error("no permission to {operation} `{name}`: {source}. {advice}")]
    NoPermission {
        /// The object.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// Which right is missing, or where to look.
        advice: String,
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
    /// There is no such bucket.
    #[error("there is no {word} {location}: create it first, or check the address and the account")]
    NoBucket {
        /// The address.
        location: String,
        /// What the service calls a bucket.
        word: &'static str,
    },
    /// The bucket is in another region, or at another endpoint, than where it was looked for.
    #[error("{location} is not where it was looked for: {what}")]
    Elsewhere {
        /// The address.
        location: String,
        /// What the service says, and what to set.
        what: String,
    },
    /// The service does not accept who asks, or nobody said who does.
    #[error("the credentials for {location} are not accepted: {what}. Credentials: {advice}")]
    Credentials {
        /// The address.
        location: String,
        /// What the service says.
        what: String,
        /// How they are given.
        advice: &'static str,
    },
    /// The environment says too little about a bucket's service, or something that cannot be.
    #[error("cannot use {location}: {what}")]
    Settings {
        /// The address.
        location: String,
        /// What is wrong.
        what: String,
    },
    /// No connection to the service.
    #[error("cannot reach {location}: {what}. Check the network, the address, and {variables} where set")]
    Unreachable {
        /// The address.
        location: String,
        /// What the network says.
        what: String,
        /// Which environment variables say where the service is.
        variables: &'static str,
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
    pub(super) fn from_object_store(
        place: &Place,
        name: &str,
        operation: &'static str,
        error: object_store::Error,
    ) -> Self {
        use object_store::Error as E;
        let provider = place.provider;
        if let Some(found) = provider.and_then(|provider| of_bucket(place, provider, name, operation, &error))
        {
            return found;
        }
        let name = name.to_owned();
        match error {
            E::NotFound { .. } => Self::NotFound { name },
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::AlreadyExists { name },
            E::PermissionDenied { source, .. } | E::Unauthenticated { source, .. } => Self::NoPermission {
                advice: advice(provider, operation),
                name,
                operation,
                source,
            },
            error => match io_cause(&error).filter(|_| provider.is_none()) {
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
                advice: advice(None, operation),
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

/// What a service says about a request, or the network instead of it.
fn of_bucket(
    place: &Place,
    provider: Provider,
    name: &str,
    operation: &'static str,
    error: &object_store::Error,
) -> Option<StoreError> {
    let location = || place.location.to_string();
    let credentials = |what: String| StoreError::Credentials {
        location: location(),
        what,
        advice: how_to_authenticate(provider),
    };
    if let Some(missing) = cause::<NoMetadata>(error) {
        return Some(credentials(missing.to_string()));
    }
    if let Some(refusal) = cause::<Refusal>(error) {
        return Some(match refusal {
            refusal if refusal.is_of_credentials() => credentials(refusal.to_string()),
            refusal if refusal.is_missing_bucket() => StoreError::NoBucket {
                location: location(),
                word: provider.bucket_word(),
            },
            refusal if refusal.is_elsewhere() => StoreError::Elsewhere {
                location: location(),
                what: elsewhere(provider, refusal),
            },
            refusal => {
                let source = refusal.to_string().into();
                let name = name.to_owned();
                match refusal.status {
                    403 => StoreError::NoPermission {
                        advice: advice(Some(provider), operation),
                        name,
                        operation,
                        source,
                    },
                    _ => StoreError::Other {
                        name,
                        operation,
                        source,
                    },
                }
            }
        });
    }
    // Azure deletes by a batch, which is accepted as a whole; the library tells what became of the object in
    // words only.
    if provider == Provider::Azure && operation == "delete" && error.to_string().contains("(code: 403)") {
        return Some(StoreError::NoPermission {
            advice: advice(Some(provider), operation),
            name: name.to_owned(),
            operation,
            source: "the service answered 403".into(),
        });
    }
    let unreachable = |what| StoreError::Unreachable {
        location: location(),
        what,
        variables: endpoint_variables(provider),
    };
    if let Some(host) = cause::<Unreachable>(error) {
        return Some(unreachable(host.to_string()));
    }
    let connection = cause::<HttpError>(error).filter(|error| error.kind() == HttpErrorKind::Connect)?;
    Some(unreachable(connection.to_string()))
}

fn elsewhere(provider: Provider, refusal: &Refusal) -> String {
    match &refusal.region {
        Some(region) => format!("{refusal}. It is in the region {region}: set AWS_REGION={region}"),
        None => format!("{refusal}. Check {}", endpoint_variables(provider)),
    }
}

fn advice(provider: Option<Provider>, operation: &str) -> String {
    match provider {
        Some(provider) => format!("This needs {}", right_to(provider, operation)),
        None => "Check the owner and mode of the folder".to_owned(),
    }
}

/// The first error of a kind among an error and its causes.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The disk's own error below whatever wraps it.
fn io_cause(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    cause::<io::Error>(error).map(io::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(kind: io::ErrorKind) -> StoreError {
        let error = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(io::Error::from(kind)),
        };
        StoreError::from_object_store(&Place::named("test"), "chunks/ab/x", "create", error)
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
