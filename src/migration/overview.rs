//! Where a database stands: scripts and history side by side, and what does not fit.
//!
//! Pure. What a command does with what does not fit is its own matter: `migrate` stops, `migration-status` shows it.

use super::{History, MigrationFile, MigrationId, Record, RecordStatus};

/// How a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// Applied.
    Applied,
    /// Taken for applied, and never run here.
    Baseline,
    /// Waits for `migrate`.
    Pending,
    /// Was taken back; `migrate` applies it again.
    RolledBack,
    /// Failed and was undone; `migrate` tries it again.
    Failed,
    /// Failed, and what it wrote was left.
    Partial,
    /// Was under way when its process ended, or is under way.
    Interrupted,
}

impl MigrationState {
    /// Whether `migrate` would run it.
    pub fn is_pending(self) -> bool {
        matches!(
            self,
            Self::Pending | Self::RolledBack | Self::Failed | Self::Interrupted
        )
    }
}

/// One migration.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which one.
    pub id: MigrationId,
    /// Its script, `None` where there is none.
    pub file: Option<MigrationFile>,
    /// Its record, `None` where the database has none.
    pub record: Option<Record>,
    /// How it stands.
    pub state: MigrationState,
}

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// An applied script is not what it was.
    #[error(
        "{id} was changed after it was applied: its checksum was {} and is {}. Put the file back as it was, and write what is \
         to change as a new migration; `firebank migrate --repair` accepts the file as it is",
        short(applied),
        short(found)
    )]
    Changed {
        /// Which one.
        id: MigrationId,
        /// The checksum of what was applied.
        applied: String,
        /// The checksum of the file.
        found: String,
    },
    /// An applied script is gone.
    #[error(
        "{id} is applied, and its file is not in the folder. Put it back, or look whether this is the right folder \
         (--migrations); `firebank migrate --repair` accepts that it is gone"
    )]
    Missing {
        /// Which one.
        id: MigrationId,
    },
    /// An applied script has another name.
    #[error(
        "{id} is applied, and the folder has {found} under the same number. Give the file its old name back, or give the new \
         migration a new number"
    )]
    Renamed {
        /// The applied one.
        id: MigrationId,
        /// What the folder has.
        found: MigrationId,
    },
    /// A script below the current version was never applied.
    #[error(
        "{id} was never applied, and the database is at v{current} already. If it does not build upon what came later, \
         `--out-of-order` applies it; otherwise give it a number above v{current}"
    )]
    OutOfOrder {
        /// Which one.
        id: MigrationId,
        /// The version of the database.
        current: u64,
    },
    /// A failed migration's writes were left.
    #[error(
        "{id} failed, and what it wrote was left (--keep-partial). `firebank rollback` puts back what there was before"
    )]
    Partial {
        /// Which one.
        id: MigrationId,
    },
}

impl Divergence {
    /// Whether it is drift: what is applied is not what the folder has.
    pub fn is_drift(&self) -> bool {
        matches!(
            self,
            Self::Changed { .. } | Self::Missing { .. } | Self::Renamed { .. }
        )
    }

    /// Whose.
    pub fn id(&self) -> &MigrationId {
        match self {
            Self::Changed { id, .. }
            | Self::Missing { id }
            | Self::Renamed { id, .. }
            | Self::OutOfOrder { id, .. }
            | Self::Partial { id } => id,
        }
    }
}

/// The first digits of a checksum: enough to tell two apart.
fn short(checksum: &str) -> &str {
    let digits = checksum.rsplit_once(':').map_or(checksum, |(_, digits)| digits);
    digits.get(..12).unwrap_or(digits)
}

/// Scripts and history side by side.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// All migrations of either, ascending.
    pub entries: Vec<Entry>,
    /// The highest version that is applied.
    pub current: Option<u64>,
    /// What does not fit.
    pub divergences: Vec<Divergence>,
}

impl Overview {
    /// Puts scripts (ascending) and history side by side.
    pub fn new(files: Vec<MigrationFile>, history: &History) -> Self {
        let current = history.current();
        let mut overview = Self {
            current,
            ..Self::default()
        };
        let names: Vec<MigrationId> = files.iter().map(|file| file.id.clone()).collect();
        for record in history.records() {
            let known = names.contains(&record.id);
            if !known && (record.is_applied() || record.is_unfinished() || record.partial) {
                overview.without_file(record, &names);
            }
        }
        for file in files {
            let record = history.get(&file.id).cloned();
            overview.with_file(file, record);
        }
        overview.entries.sort_by(|a, b| a.id.cmp(&b.id));
        overview.divergences.sort_by(|a, b| a.id().cmp(b.id()));
        overview
    }

    fn without_file(&mut self, record: &Record, files: &[MigrationId]) {
        let id = record.id.clone();
        let same_number = files.iter().find(|file| file.version() == id.version());
        match same_number {
            _ if record.missing_accepted || !record.is_applied() => {}
            Some(found) => self.divergences.push(Divergence::Renamed {
                id: id.clone(),
                found: found.clone(),
            }),
            None => self.divergences.push(Divergence::Missing { id: id.clone() }),
        }
        if record.partial {
            self.divergences.push(Divergence::Partial { id: id.clone() });
        }
        self.entries.push(Entry {
            state: state(Some(record)),
            id,
            file: None,
            record: Some(record.clone()),
        });
    }

    fn with_file(&mut self, file: MigrationFile, record: Option<Record>) {
        let id = file.id.clone();
        let state = state(record.as_ref());
        let checksum = record.as_ref().and_then(|record| record.checksum.as_ref());
        let renamed = self
            .divergences
            .iter()
            .any(|divergence| matches!(divergence, Divergence::Renamed { found, .. } if *found == id));
        match (state, checksum, self.current) {
            (MigrationState::Applied | MigrationState::Baseline, Some(applied), _)
                if *applied != file.checksum =>
            {
                self.divergences.push(Divergence::Changed {
                    id: id.clone(),
                    applied: applied.clone(),
                    found: file.checksum.clone(),
                });
            }
            (MigrationState::Partial, ..) => self.divergences.push(Divergence::Partial { id: id.clone() }),
            (state, _, Some(current)) if state.is_pending() && id.version() < current && !renamed => {
                self.divergences.push(Divergence::OutOfOrder {
                    id: id.clone(),
                    current,
                });
            }
            _ => {}
        }
        self.entries.push(Entry {
            id,
            file: Some(file),
            record,
            state,
        });
    }

    /// Those that `migrate` would run, ascending.
    pub fn pending(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.state.is_pending() && entry.file.is_some())
    }

    /// Those that are applied, ascending.
    pub fn applied(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        let applied =
            |entry: &&Entry| matches!(entry.state, MigrationState::Applied | MigrationState::Baseline);
        self.entries.iter().filter(applied)
    }

    /// Those that a process left half done.
    pub fn interrupted(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.state == MigrationState::Interrupted)
    }

    /// Whether the folder is not what was applied.
    pub fn has_drift(&self) -> bool {
        self.divergences.iter().any(Divergence::is_drift)
    }
}

fn state(record: Option<&Record>) -> MigrationState {
    let Some(record) = record else {
        return MigrationState::Pending;
    };
    match record.status {
        RecordStatus::Completed if record.baseline => MigrationState::Baseline,
        RecordStatus::Completed => MigrationState::Applied,
        RecordStatus::Failed if record.partial => MigrationState::Partial,
        RecordStatus::Failed => MigrationState::Failed,
        RecordStatus::Running | RecordStatus::RollingBack => MigrationState::Interrupted,
        RecordStatus::RolledBack => MigrationState::RolledBack,
        RecordStatus::Other(_) => MigrationState::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{DocumentPath, Fields, Value};
    use crate::migration::files::checksum;

    fn file(id: &str) -> MigrationFile {
        MigrationFile {
            id: id.parse().unwrap(),
            path: format!("{id}.js").into(),
            source: id.to_owned(),
            checksum: checksum(id),
        }
    }

    fn record(id: &str, status: &str, source: &str) -> (DocumentPath, Fields) {
        let fields = Fields::from([
            ("status".to_owned(), Value::String(status.to_owned())),
            ("checksum".to_owned(), Value::String(checksum(source))),
        ]);
        (DocumentPath::parse(format!("_migrations/{id}")).unwrap(), fields)
    }

    fn overview(files: &[&str], records: &[(&str, &str, &str)]) -> Overview {
        let history = History::of(
            records
                .iter()
                .map(|(id, status, source)| record(id, status, source)),
        );
        Overview::new(files.iter().map(|id| file(id)).collect(), &history)
    }

    fn words(overview: &Overview) -> Vec<String> {
        let divergences = overview.divergences.iter();
        divergences.map(ToString::to_string).collect()
    }

    #[test]
    fn all_fits() {
        let overview = overview(
            &["v1_a", "v2_b", "v9_c", "v10_d"],
            &[("v1_a", "completed", "v1_a"), ("v2_b", "completed", "v2_b")],
        );
        let pending: Vec<&str> = overview.pending().map(|entry| entry.id.as_str()).collect();
        assert_eq!(pending, ["v9_c", "v10_d"]);
        assert_eq!(
            (overview.current, words(&overview)),
            (Some(2), Vec::<String>::new())
        );
    }

    #[test]
    fn each_kind_of_divergence_is_named() {
        let overview = overview(
            &["v1_a", "v2_b", "v3_new", "v5_e"],
            &[
                ("v1_a", "completed", "other"),
                ("v3_old", "completed", "x"),
                ("v4_d", "completed", "x"),
                ("v6_f", "rolled_back", "x"),
            ],
        );
        let words = words(&overview);
        assert_eq!(words.len(), 4, "{words:#?}");
        assert!(words[0].starts_with("v1_a was changed"), "{words:#?}");
        assert!(words[1].starts_with("v2_b was never applied"), "{words:#?}");
        assert!(
            words[2].starts_with("v3_old is applied, and the folder has v3_new"),
            "{words:#?}"
        );
        assert!(
            words[3].starts_with("v4_d is applied, and its file is not"),
            "{words:#?}"
        );
        assert!(overview.has_drift());
    }

    #[test]
    fn failed_and_rolled_back_ones_are_tried_again() {
        let overview = overview(
            &["v1_a", "v2_b", "v3_c"],
            &[
                ("v1_a", "completed", "v1_a"),
                ("v2_b", "failed", "v2 before it was mended"),
                ("v3_c", "rolled_back", "v3 before it was mended"),
            ],
        );
        assert_eq!(overview.pending().count(), 2);
        assert!(overview.divergences.is_empty(), "{overview:?}");
    }
}
