//! The scripts of a project: `v<N>_<name>.js` in one folder, in the order of their numbers.
//!
//! The number is a number: v10 comes after v9. A migration's id is its file's name without `.js`; its checksum does not see how
//! lines end, so that a checkout on another system is not taken for a change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The folder in the working folder where scripts are looked for.
pub const DEFAULT_FOLDER: &str = "migrations";

/// What editors complete from, beside the scripts.
const DECLARATIONS: &str = "firebank.d.ts";

/// What a migration is called: `v<N>_<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MigrationId {
    text: String,
    version: u64,
}

/// A text that is no migration's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a migration's name: it must be v<N>_<name>, such as v2_user_preferences")]
pub struct BadMigrationId(String);

impl MigrationId {
    /// The number in it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for MigrationId {
    type Err = BadMigrationId;

    fn from_str(text: &str) -> Result<Self, BadMigrationId> {
        let bad = || BadMigrationId(text.to_owned());
        let (number, name) = text
            .strip_prefix('v')
            .and_then(|rest| rest.split_once('_'))
            .ok_or_else(bad)?;
        let plain = |char: char| char.is_ascii_alphanumeric() || "_-.".contains(char);
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || name.is_empty() || !name.chars().all(plain) {
            return Err(bad());
        }
        Ok(Self {
            version: number.parse().map_err(|_| bad())?,
            text: text.to_owned(),
        })
    }
}

impl PartialOrd for MigrationId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MigrationId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.version, &self.text).cmp(&(other.version, &other.text))
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A version as people name it: `3`, `v3`, `3.0`, or a migration's whole id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('v').unwrap_or(text);
        let number = number.split_once(['_', '.']).map_or(number, |(number, _)| number);
        number
            .parse()
            .map(Self)
            .map_err(|_| format!("`{text}` is no version: give a number such as 3"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// A script.
#[derive(Clone, Debug)]
pub struct MigrationFile {
    /// Its id.
    pub id: MigrationId,
    /// Where it is.
    pub path: PathBuf,
    /// Its text. What was hashed is what is run.
    pub source: String,
    /// See [`checksum`].
    pub checksum: String,
}

/// The scripts cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The folder is not there.
    #[error(
        "there is no folder `{}`: `firebank create-migration NAME` makes it with a first script, and --migrations names \
         another one", .0.display()
    )]
    NoFolder(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Two scripts have the same number.
    #[error(
        "{} and {} have the same number: which one comes first? Give one of them the next free number, v{next}",
        first.display(), second.display()
    )]
    Duplicate {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// A number that is free.
        next: u64,
    },
    /// A file that is to be run has another kind of name.
    #[error(transparent)]
    Name(#[from] BadMigrationId),
    /// Nothing of a name is left that a file could have.
    #[error("`{0}` gives no name for a file: use letters or digits")]
    NoName(String),
}

/// The scripts of a folder, ascending. Files with other names are none, and stay.
///
/// # Errors
/// [`FilesError::NoFolder`], [`FilesError::Duplicate`].
pub fn discover(folder: &Path) -> Result<Vec<MigrationFile>, FilesError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => FilesError::NoFolder(folder.to_owned()),
        _ => FilesError::Io {
            what: "list",
            path: folder.to_owned(),
            source,
        },
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "js") || !path.is_file() {
            continue;
        }
        match id_of(&path) {
            Ok(_) => files.push(read(&path)?),
            Err(error) => tracing::info!("{} is passed over: {error}", path.display()),
        }
    }
    files.sort_by(|a, b| a.id.cmp(&b.id));
    let next = next_version(&files);
    if let Some([first, second]) = files
        .array_windows()
        .find(|[first, second]| first.id.version == second.id.version)
    {
        return Err(FilesError::Duplicate {
            first: first.path.clone(),
            second: second.path.clone(),
            next,
        });
    }
    Ok(files)
}

/// One script, wherever it is.
pub fn read(path: &Path) -> Result<MigrationFile, FilesError> {
    let id = id_of(path)?;
    let source = std::fs::read_to_string(path).map_err(|source| FilesError::Io {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(MigrationFile {
        id,
        path: path.to_owned(),
        checksum: checksum(&source),
        source,
    })
}

fn id_of(path: &Path) -> Result<MigrationId, BadMigrationId> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".js")
        .ok_or_else(|| BadMigrationId(name.to_string()))?
        .parse()
}

/// What tells a changed script from the one that was run: BLAKE3 of its text, with every end of line as a line feed and
/// without a byte order mark.
pub fn checksum(source: &str) -> String {
    let text = source.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    format!("blake3:{}", blake3::hash(text.as_bytes()).to_hex())
}

/// The number that the next script gets.
pub fn next_version(files: &[MigrationFile]) -> u64 {
    files.iter().map(|file| file.id.version).max().unwrap_or(0) + 1
}

/// Writes a commented template that runs as it is, numbered one above the highest, and the declarations for editors beside it.
/// Makes the folder where it is missing.
///
/// # Errors
/// [`FilesError::NoName`]; an existing file is never overwritten.
pub fn create(folder: &Path, name: &str, description: Option<&str>) -> Result<MigrationFile, FilesError> {
    let slug = slug(name).ok_or_else(|| FilesError::NoName(name.to_owned()))?;
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| FilesError::Io { what, path, source }
    };
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let version = next_version(&discover(folder)?);
    let path = folder.join(format!("v{version}_{slug}.js"));
    let text = template(description.unwrap_or(name));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(io("create", &path))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(io("write", &path))?;
    // What the template's comment promises; one of another version is replaced.
    let declarations = folder.join(DECLARATIONS);
    std::fs::write(&declarations, include_str!("../../migrations/firebank.d.ts"))
        .map_err(io("write", &declarations))?;
    read(&path)
}

/// `Add user analytics!` as `add_user_analytics`; `None` when nothing is left.
fn slug(name: &str) -> Option<String> {
    let mut slug = String::new();
    for char in name.chars() {
        match char.is_ascii_alphanumeric() {
            true => slug.push(char.to_ascii_lowercase()),
            false if !slug.is_empty() && !slug.ends_with('_') => slug.push('_'),
            false => {}
        }
    }
    slug.truncate(100);
    let slug = slug.trim_end_matches('_').to_owned();
    (!slug.is_empty()).then_some(slug)
}

fn template(description: &str) -> String {
    // JSON strings are JavaScript strings.
    let description = serde_json::Value::from(description).to_string();
    include_str!("template.js").replace("\"DESCRIPTION\"", &description)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) {
        std::fs::write(folder.join(name), "export function migrate(db) {}\n").unwrap();
    }

    #[test]
    fn numbers_order_and_not_letters() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "v10_ten.js",
            "v9_nine.js",
            "v1_one.js",
            "notes.js",
            "v2_old.py",
            "firebank.d.ts",
        ] {
            write(folder.path(), name);
        }
        let files = discover(folder.path()).unwrap();
        let ids: Vec<&str> = files.iter().map(|file| file.id.as_str()).collect();
        assert_eq!(ids, ["v1_one", "v9_nine", "v10_ten"]);
        let made = create(folder.path(), "Add user analytics!", None).unwrap();
        assert_eq!(made.id.as_str(), "v11_add_user_analytics");
        assert!(made.source.contains("\"Add user analytics!\""), "{}", made.source);
        write(folder.path(), "v010_again.js");
        let error = discover(folder.path()).unwrap_err().to_string();
        assert!(error.contains("v10_ten.js") && error.contains("v12"), "{error}");
    }

    #[test]
    fn the_folder_is_made_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("migrations");
        assert!(matches!(discover(&inner), Err(FilesError::NoFolder(_))));
        let made = create(&inner, "first", Some("quotes \" and `ticks`\nand lines")).unwrap();
        assert_eq!(made.id.as_str(), "v1_first");
        assert!(made.source.contains(r#""quotes \" and `ticks`\nand lines""#));
        assert!(matches!(create(&inner, "!!", None), Err(FilesError::NoName(_))));
    }

    #[test]
    fn ends_of_lines_do_not_matter() {
        assert_eq!(checksum("a\nb\n"), checksum("\u{feff}a\r\nb\r\n"));
        assert_ne!(checksum("a\nb\n"), checksum("a\nb"));
    }

    #[test]
    fn versions_as_people_write_them() {
        for text in ["3", "v3", "3.0", "v3_name", "v3.0"] {
            assert_eq!(text.parse(), Ok(Version(3)), "{text}");
        }
        assert!("three".parse::<Version>().is_err());
        for text in ["v_x", "v1", "v1_", "1_x", "v1_a b", "vx_a", "v1_ä"] {
            assert!(text.parse::<MigrationId>().is_err(), "{text}");
        }
    }
}
