//! What the database says of itself: who it is, and how far back it can be read.

use std::time::Duration;

use ::firestore::gcloud_sdk::prost_types;

use super::{Error, Firestore, Method, Result};
use crate::document::Timestamp;

/// A database as the administration API describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseMetadata {
    /// Its identity: another one after it was deleted and made again under the same name.
    pub uid: String,
    /// Where it is stored.
    pub location: String,
    /// The oldest time that it can be read at.
    pub earliest_read_time: Option<Timestamp>,
    /// How long it keeps what has changed.
    pub retention: Option<Duration>,
    /// Whether point-in-time recovery is on: seven days instead of one hour.
    pub point_in_time_recovery: bool,
    /// Whether it is Firestore's native mode. Databases in Datastore mode are not for this API.
    pub native: bool,
}

/// `google.firestore.admin.v1.GetDatabaseRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct GetDatabaseRequest {
    #[prost(string, tag = "1")]
    name: String,
}

/// The fields of `google.firestore.admin.v1.Database` that matter here
/// (<https://github.com/googleapis/googleapis/blob/master/google/firestore/admin/v1/database.proto>).
#[derive(Clone, PartialEq, prost::Message)]
struct Database {
    #[prost(string, tag = "3")]
    uid: String,
    #[prost(string, tag = "9")]
    location_id: String,
    #[prost(int32, tag = "10")]
    database_type: i32,
    #[prost(message, optional, tag = "17")]
    version_retention_period: Option<prost_types::Duration>,
    #[prost(message, optional, tag = "18")]
    earliest_version_time: Option<prost_types::Timestamp>,
    #[prost(int32, tag = "21")]
    point_in_time_recovery_enablement: i32,
}

const FIRESTORE_NATIVE: i32 = 1;
const RECOVERY_ENABLED: i32 = 1;

impl Firestore {
    /// What the database says of itself; `None` where the server does not say, as emulators do not. Needs the
    /// permission `datastore.databases.getMetadata`.
    pub async fn metadata(&self) -> Result<Option<DatabaseMetadata>> {
        let request = GetDatabaseRequest {
            name: self.inner.database.resource(),
        };
        let database: Database = match self.ask(Method::GetDatabase, None, &request).await {
            Err(Error::Unsupported { .. }) => return Ok(None),
            answer => answer?,
        };
        Ok(Some(DatabaseMetadata {
            uid: database.uid,
            location: database.location_id,
            earliest_read_time: database
                .earliest_version_time
                .and_then(|time| Some(Timestamp::new(time.seconds, u32::try_from(time.nanos).ok()?))),
            retention: database
                .version_retention_period
                .and_then(|period| u64::try_from(period.seconds).ok())
                .map(Duration::from_secs),
            point_in_time_recovery: database.point_in_time_recovery_enablement == RECOVERY_ENABLED,
            native: database.database_type == FIRESTORE_NATIVE,
        }))
    }
}
