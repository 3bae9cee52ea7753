//! The name of a database, and the names of what is in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::PathError;

/// A database's name: the project and the database in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DatabaseName {
    /// The project's id.
    pub project: String,
    /// The database's id, `(default)` where the project has only one.
    pub database: String,
}

impl DatabaseName {
    /// The id of the database that a project has when it names none.
    pub const DEFAULT_DATABASE: &'static str = "(default)";

    /// A database of a project.
    pub fn new(project: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            project: project.into(),
            database: database.into(),
        }
    }

    /// Takes the database out of a resource name: `projects/<project>/databases/<database>`, whatever follows.
    pub fn parse(name: &str) -> Result<Self, PathError> {
        let mut segments = name.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("projects"), Some(project), Some("databases"), Some(database))
                if !project.is_empty() && !database.is_empty() =>
            {
                Ok(Self::new(project, database))
            }
            _ => Err(PathError::BadDatabaseName(name.to_owned())),
        }
    }

    /// `projects/<project>/databases/<database>`.
    pub fn resource(&self) -> String {
        format!("projects/{}/databases/{}", self.project, self.database)
    }

    /// The root that document names start with, without a slash after it: `…/documents`.
    pub fn root(&self) -> String {
        format!("{}/documents", self.resource())
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.database)
    }
}
