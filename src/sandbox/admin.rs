//! The methods of google.firestore.admin.v1.FirestoreAdmin that say something about a database: what it is, and by which fields
//! it deletes documents.
//!
//! Emulators do not have them, and in production many identities may not call them, so a sandbox is either of these, or
//! describes its databases as it is told to. What is described changes no data and no behaviour: how long the past can be read
//! is [`SandboxConfig::history`](super::SandboxConfig::history).

use ::firestore::gcloud_sdk::prost_types::Duration;
use tonic::{Request, Response, Status};

use super::codec::{Answer, Received};
use super::faults::Rpc;
use super::names;
use super::service::Service;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
mod generated {
    tonic::include_proto!("google.firestore.admin.v1.FirestoreAdmin");
}
pub(crate) use generated::firestore_admin_server::{FirestoreAdmin, FirestoreAdminServer};

/// What the administration API answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Administration {
    /// There is none, as with Google's emulator.
    #[default]
    Absent,
    /// The identity may not ask.
    Refused,
    /// It describes every database of the sandbox so.
    Describes(DatabaseFacts),
}

/// What the administration API says of a database.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseFacts {
    /// Its identity.
    pub uid: String,
    /// Where it is said to be stored.
    pub location: String,
    /// Whether it is said to have point-in-time recovery.
    pub point_in_time_recovery: bool,
    /// Whether it is said to be protected from being deleted.
    pub delete_protection: bool,
    /// The fields by which it is said to delete documents: a collection group's id and a field's path. Nothing is deleted.
    pub ttl_fields: Vec<(String, String)>,
}

impl Default for DatabaseFacts {
    fn default() -> Self {
        Self {
            uid: "00000000-0000-0000-0000-000000000001".to_owned(),
            location: "nam5".to_owned(),
            point_in_time_recovery: false,
            delete_protection: false,
            ttl_fields: Vec::new(),
        }
    }
}

/// The messages, with the fields that matter here
/// (<https://github.com/googleapis/googleapis/tree/master/google/firestore/admin/v1>).
pub(crate) mod messages {
    use ::firestore::gcloud_sdk::prost_types::Duration;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct GetDatabaseRequest {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Database {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, tag = "3")]
        pub(crate) uid: String,
        #[prost(string, tag = "9")]
        pub(crate) location_id: String,
        #[prost(int32, tag = "10")]
        pub(crate) database_type: i32,
        #[prost(message, optional, tag = "17")]
        pub(crate) version_retention_period: Option<Duration>,
        #[prost(int32, tag = "21")]
        pub(crate) point_in_time_recovery_enablement: i32,
        #[prost(int32, tag = "22")]
        pub(crate) delete_protection_state: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ListFieldsRequest {
        #[prost(string, tag = "1")]
        pub(crate) parent: String,
        #[prost(string, tag = "2")]
        pub(crate) filter: String,
        #[prost(int32, tag = "3")]
        pub(crate) page_size: i32,
        #[prost(string, tag = "4")]
        pub(crate) page_token: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ListFieldsResponse {
        #[prost(message, repeated, tag = "1")]
        pub(crate) fields: Vec<Field>,
        #[prost(string, tag = "2")]
        pub(crate) next_page_token: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Field {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(message, optional, tag = "3")]
        pub(crate) ttl_config: Option<TtlConfig>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct TtlConfig {
        #[prost(int32, tag = "1")]
        pub(crate) state: i32,
    }
}

const NATIVE: i32 = 1;
const ENABLED: i32 = 1;
const DISABLED: i32 = 2;
const ACTIVE: i32 = 2;
/// Fields in a page of a list, at most: few, so that clients meet a second page.
const PAGE: usize = 2;

impl Service {
    fn facts(&self) -> Result<DatabaseFacts, Status> {
        match self.administration() {
            Administration::Absent => Err(Status::unimplemented("There is no administration API here.")),
            Administration::Refused => Err(Status::permission_denied("Missing or insufficient permissions.")),
            Administration::Describes(facts) => Ok(facts),
        }
    }
}

#[tonic::async_trait]
impl FirestoreAdmin for Service {
    async fn get_database(
        &self,
        request: Request<Received<messages::GetDatabaseRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let facts = self.facts()?;
        let (request, _, _) = self.enter(Rpc::GetDatabase, request).await?;
        names::database(&request.name)?;
        let hours = if facts.point_in_time_recovery { 7 * 24 } else { 1 };
        let state = |enabled| if enabled { ENABLED } else { DISABLED };
        self.answer(&messages::Database {
            name: request.name,
            uid: facts.uid,
            location_id: facts.location,
            database_type: NATIVE,
            version_retention_period: Some(Duration {
                seconds: hours * 3600,
                nanos: 0,
            }),
            point_in_time_recovery_enablement: state(facts.point_in_time_recovery),
            // The states are numbered the other way around: 1 is disabled.
            delete_protection_state: state(!facts.delete_protection),
        })
    }

    async fn list_fields(
        &self,
        request: Request<Received<messages::ListFieldsRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let facts = self.facts()?;
        let (request, _, _) = self.enter(Rpc::ListFields, request).await?;
        let wrong =
            || Status::invalid_argument("The parent must name a collection group, or all of them by `-`.");
        let (database, group) = request
            .parent
            .split_once("/collectionGroups/")
            .ok_or_else(wrong)?;
        names::database(database)?;
        if request.filter != "ttlConfig:*" {
            return Err(Status::invalid_argument(
                "The sandbox lists fields with the filter `ttlConfig:*` only.",
            ));
        }
        let start: usize = match request.page_token.as_str() {
            "" => 0,
            token => token
                .parse()
                .map_err(|_| Status::invalid_argument("invalid page token"))?,
        };
        let chosen = facts
            .ttl_fields
            .iter()
            .filter(|(of, _)| group == "-" || group == of);
        let chosen: Vec<_> = chosen.collect();
        let end = (start + PAGE).min(chosen.len());
        let page = chosen.get(start..end).unwrap_or_default();
        self.answer(&messages::ListFieldsResponse {
            fields: page
                .iter()
                .map(|(group, field)| messages::Field {
                    name: format!("{database}/collectionGroups/{group}/fields/{field}"),
                    ttl_config: Some(messages::TtlConfig { state: ACTIVE }),
                })
                .collect(),
            next_page_token: match end < chosen.len() {
                true => end.to_string(),
                false => String::new(),
            },
        })
    }
}
