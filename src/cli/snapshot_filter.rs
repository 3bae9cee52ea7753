//! The filters that listings share: tags, hosts, project, database.

use clap::Args;

use super::options::GlobalOptions;
use crate::archive::SnapshotFilter;
use crate::prune::PruneFilter;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SnapshotFilterArgs {
    /// Only snapshots with all of these tags; may be repeated
    #[arg(long = "tag", value_name = "TAG[,TAG…]")]
    tags: Vec<String>,
    /// Only snapshots that this machine took; may be repeated
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
}

impl SnapshotFilterArgs {
    /// With the project and database that the command line names. The environment's project is where a backup goes, and
    /// hides nothing.
    pub(crate) fn prune_filter(&self, global: &GlobalOptions) -> PruneFilter {
        PruneFilter {
            project: global.project_flag().map(str::to_owned),
            database: global.named_database().map(str::to_owned),
            tags: tag_lists(&self.tags),
            hosts: self.hosts.clone(),
        }
    }

    /// Whether nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.hosts.is_empty()
    }

    /// For `latest`, of whatever database.
    pub(crate) fn of_latest(&self) -> SnapshotFilter {
        SnapshotFilter {
            tags: tag_lists(&self.tags),
            hosts: self.hosts.clone(),
            ..SnapshotFilter::default()
        }
    }
}

/// Lists of tags, separated by commas.
pub(crate) fn tag_lists(lists: &[String]) -> Vec<Vec<String>> {
    lists
        .iter()
        .map(|list| list.split(',').map(|tag| tag.trim().to_owned()).collect())
        .collect()
}
