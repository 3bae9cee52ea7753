//! Changes of the history alone: taking migrations for applied, and accepting that the folder is not what was applied.

use super::{
    Divergence, Lock, MigrationError, MigrationId, MigrationState, Record, RecordStatus, Runner, Version,
};

impl Runner {
    /// Takes all scripts up to a version for applied without running them: for a database that was made another way. Says
    /// which were not applied before.
    ///
    /// # Errors
    /// When there is no such version.
    pub async fn baseline(&self, version: Version) -> Result<Vec<MigrationId>, MigrationError> {
        let lock = self.lock().await?;
        let done = self.baseline_locked(&lock, version).await;
        lock.release().await;
        done
    }

    async fn baseline_locked(
        &self,
        lock: &Lock,
        version: Version,
    ) -> Result<Vec<MigrationId>, MigrationError> {
        let overview = self.overview().await?;
        let known = |entry: &super::Entry| entry.file.is_some() && entry.id.version() == version.0;
        if !overview.entries.iter().any(known) {
            return Err(MigrationError::Refused(format!(
                "there is no script {version} in {}: `firebank list-migrations` shows which there are",
                self.options.folder.display()
            )));
        }
        let mut taken = Vec::new();
        let now = self.database.current_read_time().await?;
        for entry in &overview.entries {
            let Some(file) = entry.file.clone() else { continue };
            if entry.id.version() > version.0 {
                continue;
            }
            match entry.state {
                MigrationState::Applied | MigrationState::Baseline => continue,
                MigrationState::Interrupted | MigrationState::Partial => {
                    return Err(MigrationError::Refused(format!(
                        "{} is half done: `firebank migrate` or `firebank rollback` undoes it first",
                        entry.id
                    )));
                }
                _ => {}
            }
            let checksum = file.checksum.clone();
            let script = self.load(file).await?;
            let mut record = Record::new(entry.id.clone())?;
            record.status = RecordStatus::Completed;
            record.baseline = true;
            record.executed_at = Some(now);
            record.checksum = Some(checksum);
            record.description = script.description().map(ToOwned::to_owned);
            record.tool_version = Some(env!("CARGO_PKG_VERSION").to_owned());
            self.write_record(lock, &record).await?;
            taken.push(entry.id.clone());
        }
        Ok(taken)
    }

    /// Accepts applied scripts as they are in the folder, changed or gone. Says what was accepted.
    pub async fn repair(&self) -> Result<Vec<Divergence>, MigrationError> {
        let lock = self.lock().await?;
        let done = self.repair_locked(&lock).await;
        lock.release().await;
        done
    }

    async fn repair_locked(&self, lock: &Lock) -> Result<Vec<Divergence>, MigrationError> {
        let overview = self.overview().await?;
        let mut repaired = Vec::new();
        for divergence in overview.divergences {
            let entry = overview.entries.iter().find(|entry| entry.id == *divergence.id());
            let Some(mut record) = entry.and_then(|entry| entry.record.clone()) else {
                continue;
            };
            match &divergence {
                Divergence::Changed { found, .. } => record.checksum = Some(found.clone()),
                Divergence::Missing { .. } | Divergence::Renamed { .. } => record.missing_accepted = true,
                Divergence::OutOfOrder { .. } | Divergence::Partial { .. } => continue,
            }
            self.write_record(lock, &record).await?;
            repaired.push(divergence);
        }
        Ok(repaired)
    }
}
