//! Resource names as requests carry them, checked as Google's emulator checks them.

use tonic::Status;

use super::keys;
use crate::document::DatabaseName;

/// The longest id of a document or a collection, in bytes.
const MAX_ID_BYTES: usize = 1500;
/// The longest name of a document, in bytes.
const MAX_NAME_BYTES: usize = 6 << 10;

/// A database, and what follows `/documents` in a name: empty for the root.
pub(crate) struct Name<'a> {
    pub(crate) database: DatabaseName,
    /// Relative to the root, without slashes around it.
    pub(crate) path: &'a str,
}

/// Takes `projects/…/databases/…` apart, whatever follows it.
pub(crate) fn database(name: &str) -> Result<DatabaseName, Status> {
    DatabaseName::parse(name).map_err(|_| {
        Status::invalid_argument(format!(
            "Resource name \"{name}\" does not name a database: projects/<project>/databases/<database>."
        ))
    })
}

/// Takes a name of the form `projects/…/databases/…/documents[/…]` apart.
pub(crate) fn parse(name: &str) -> Result<Name<'_>, Status> {
    let database = database(name)?;
    let rest = name.get(database.resource().len()..).unwrap_or_default();
    match rest.strip_prefix("/documents") {
        Some("") => Ok(Name { database, path: "" }),
        Some(path) if path.starts_with('/') => Ok(Name {
            database,
            path: &path[1..],
        }),
        _ => Err(Status::invalid_argument(format!(
            "Document name \"{name}\" lacks \"/documents\" at index {}.",
            name.len() - rest.len()
        ))),
    }
}

/// A parent: the root or a document. Returns the key that everything below starts with.
pub(crate) fn parent(name: &str) -> Result<(DatabaseName, Vec<u8>), Status> {
    let name = parse(name)?;
    if name.path.is_empty() {
        return Ok((name.database, Vec::new()));
    }
    check_path(name.path)?;
    Ok((name.database, keys::key_of(name.path)))
}

/// A document of `database`, by its full name. Returns its key.
pub(crate) fn document(name: &str, database: &DatabaseName) -> Result<Vec<u8>, Status> {
    let name_of = parse(name)?;
    if name_of.database != *database {
        return Err(Status::invalid_argument(format!(
            "Document name \"{name}\" is not in the database {} that the request names.",
            database.resource()
        )));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(Status::invalid_argument(format!(
            "Document name is longer than {MAX_NAME_BYTES} bytes."
        )));
    }
    check_path(name_of.path)?;
    Ok(keys::key_of(name_of.path))
}

fn check_path(path: &str) -> Result<(), Status> {
    let mut count = 0;
    for id in path.split('/') {
        check_id(id)?;
        count += 1;
    }
    if count % 2 != 0 {
        return Err(Status::invalid_argument(format!(
            "Document name \"{path}\" has an odd number of segments."
        )));
    }
    if count > 200 {
        return Err(Status::invalid_argument("Document name has too many levels."));
    }
    Ok(())
}

/// Checks a document's or a collection's id.
pub(crate) fn check_id(id: &str) -> Result<(), Status> {
    let reserved = id.len() >= 4 && id.starts_with("__") && id.ends_with("__") && !is_numeric(id);
    let problem = match id {
        "" => "is empty",
        "." | ".." => "is reserved",
        _ if id.len() > MAX_ID_BYTES => "is longer than 1500 bytes",
        _ if id.contains('/') => "contains a slash",
        _ if reserved => "is reserved",
        _ => return Ok(()),
    };
    Err(Status::invalid_argument(format!(
        "Resource id \"{id}\" is invalid because it {problem}."
    )))
}

/// Whether an id is of the form that Datastore's numbers appear as.
fn is_numeric(id: &str) -> bool {
    matches!(keys::key_of(id).first(), Some(1))
}
