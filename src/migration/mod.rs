//! Migrations: scripts that change a database once, and the way back.
//!
//! A migration is a JavaScript module. [`Script`] reads one and runs its functions against a database; what it writes goes
//! through a [`Journal`] first, which keeps what the documents were before. The engine knows nothing of histories, locks
//! and repositories, and whoever runs migrations knows nothing of JavaScript: the types here are all that lies between.
//!
//! ```no_run
//! # use std::{collections::BTreeMap, path::Path, sync::Arc};
//! use firebank::migration::{Function, Limits, NoJournal, RunMode, RunOptions, Script};
//! # async fn example(database: firebank::firestore::Firestore) -> Result<(), Box<dyn std::error::Error>> {
//! let file = Path::new("migrations/v2_add_currency.js");
//! let source = std::fs::read_to_string(file)?;
//! let script = Script::load(file, source, BTreeMap::new(), Limits::default())?;
//! let options = RunOptions::new(RunMode::write(&database, Arc::new(NoJournal)));
//! let stats = script.run(Function::Migrate, &database, options, &Default::default()).await?;
//! println!("{}: {} documents changed", script.description().unwrap_or("-"), stats.changed());
//! # Ok(())
//! # }
//! ```

mod adopt;
mod apply;
mod before_images;
mod engine;
mod error;
pub mod files;
mod history;
mod journal;
mod lock;
mod overview;
mod recover;
mod reset;
mod rollback;
mod run;
mod runner;
mod script;
mod script_error;
mod sorted;
mod undo;

pub use error::{AfterFailure, MigrationError};
pub use files::{BadMigrationId, FilesError, MigrationFile, MigrationId, Version};
pub use history::{HISTORY_COLLECTION, History, Record, RecordStatus, RollbackWay};
pub use journal::{BeforeImage, BodyHash, Journal, JournalError, NoJournal, StoredDocument};
pub use lock::{Holder, LOCK_COLLECTION, Lock, LockError, LockOptions, LockWatch};
pub use overview::{Divergence, Entry, MigrationState, Overview};
pub use reset::{ResetError, ResetStats};
pub use rollback::{RollbackOptions, RollbackStats, RollbackTarget, RolledBack};
pub use run::{CollectionStats, DocumentChange, LogLevel, LogLine, LogSink, RunMode, RunOptions, RunStats};
pub use runner::{
    Applied, MigrateOptions, MigrateStats, MigrationPlan, Recovered, Runner, RunnerEvent, RunnerOptions,
};
pub use script::{Function, Limits, Script};
pub use script_error::{ScriptError, ScriptErrorKind};
pub use undo::UndoStats;
