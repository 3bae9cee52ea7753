//! Resource names as requests carry them, checked as Google's emulator checks them.

use tonic::Status;

use crate::document::DatabaseName;
use crate::document::key as keys;

/// The longest id of a document or a collection, in bytes.
const MAX_ID_BYTES: usize = 1500;
/// The longest name of a document, in bytes.
const MAX_NAME_BYTES: usize = 6 << 10;
/// How many collections deep a document can be.
const MAX_LEVELS: usize = 100;

/// A database, and what follows `/documents` in a name: empty for the root.
struct Name<'a> {
    database: DatabaseName,
    /// Relative to the root, without slashes around it.
    path: &'a str,
}

/// Takes `projects/…/databases/…` apart, whatever follows it.
pub(crate) fn database(name: &str) -> Result<DatabaseName, Status> {
    DatabaseName::parse(name).map_err(|_| {
        let missing = if name.starts_with("projects/") {
            "databases"
        } else {
            "projects"
        };
        Status::invalid_argument(format!("Resource name \"{name}\" lacks \"{missing}\"."))
    })
}

/// Takes a name of the form `projects/…/databases/…/documents[/…]` apart.
fn parse(name: &str) -> Result<Name<'_>, Status> {
    let database = database(name)?;
    let rest = name.get(database.resource().len()..).unwrap_or_default();
    match rest.strip_prefix("/documents") {
        Some("") => Ok(Name { database, path: "" }),
        Some(path) if path.starts_with('/') => Ok(Name {
            database,
            path: &path[1..],
        }),
        _ => Err(Status::invalid_argument(format!(
            "Document name \"{name}\" lacks \"/documents\"."
        ))),
    }
}

/// A parent: the root or a document. Returns the key that everything below starts with.
pub(crate) fn parent(name: &str) -> Result<(DatabaseName, Vec<u8>), Status> {
    let parsed = parse(name)?;
    if parsed.path.is_empty() {
        return Ok((parsed.database, Vec::new()));
    }
    check_path(parsed.path)?;
    Ok((parsed.database, keys::key_of(parsed.path)))
}

/// A document of `database`, by its full name. Returns its key.
pub(crate) fn document(name: &str, database: &DatabaseName) -> Result<Vec<u8>, Status> {
    let parsed = parse(name)?;
    if parsed.database != *database {
        return Err(Status::invalid_argument(format!(
            "The document \"{name}\" is in a different database than the request's, {}.",
            database.resource()
        )));
    }
    check_path(parsed.path)?;
    Ok(keys::key_of(parsed.path))
}

/// Checks the name in a reference, to a document of any database.
pub(crate) fn check_reference(name: &str) -> Result<(), Status> {
    check_path(parse(name)?.path)
}

fn check_path(path: &str) -> Result<(), Status> {
    if path.len() > MAX_NAME_BYTES {
        return Err(Status::invalid_argument(format!(
            "A document's name is longer than {MAX_NAME_BYTES} bytes."
        )));
    }
    let mut count = 0;
    for id in path.split('/') {
        if count % 2 == 0 {
            check_collection_id(id)
        } else {
            check_document_id(id)
        }?;
        count += 1;
    }
    if count % 2 != 0 {
        return Err(Status::invalid_argument(format!(
            "Document name \"{path}\" lacks \"/\" at its end."
        )));
    }
    if count > 2 * MAX_LEVELS {
        return Err(Status::invalid_argument(format!(
            "Key path is too long. Cannot exceed {MAX_LEVELS} elements."
        )));
    }
    Ok(())
}

/// Checks a document's id. Of the reserved form, Datastore's numbers are allowed; zero is none of them.
pub(crate) fn check_document_id(id: &str) -> Result<(), Status> {
    let is_number = keys::numeric_id(id).is_some_and(|number| number != 0);
    if is_reserved(id) && !is_number {
        return Err(Status::invalid_argument(format!(
            "Resource id \"{id}\" is invalid because it is reserved."
        )));
    }
    check_id(id)
}

/// Checks a collection's id.
pub(crate) fn check_collection_id(id: &str) -> Result<(), Status> {
    if is_reserved(id) {
        return Err(Status::invalid_argument(format!(
            "Collection id \"{id}\" is invalid because it is reserved."
        )));
    }
    check_id(id)
}

/// Whether an id or a field's name is of the form that Firestore keeps for itself: `__.+__`.
pub(crate) fn is_reserved(id: &str) -> bool {
    id.len() > 4 && id.starts_with("__") && id.ends_with("__")
}

fn check_id(id: &str) -> Result<(), Status> {
    let problem = match id {
        "" => "empty",
        "." | ".." => "reserved",
        _ if id.contains('/') => "not one segment",
        _ if id.len() > MAX_ID_BYTES => "longer than 1500 bytes",
        _ => return Ok(()),
    };
    Err(Status::invalid_argument(format!(
        "Resource id \"{id}\" is invalid because it is {problem}."
    )))
}
