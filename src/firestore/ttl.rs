//! The fields by which a database deletes documents once their time has passed.

use super::{Error, Firestore, Method, Result};

/// A time-to-live policy: documents of all collections with an id are deleted some time after the moment in a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtlPolicy {
    /// The collections' id.
    pub collection_group: String,
    /// The field's path, as Firestore writes it.
    pub field: String,
}

/// `google.firestore.admin.v1.ListFieldsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct ListFieldsRequest {
    #[prost(string, tag = "1")]
    parent: String,
    #[prost(string, tag = "2")]
    filter: String,
    #[prost(string, tag = "4")]
    page_token: String,
}

/// `google.firestore.admin.v1.ListFieldsResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct ListFieldsResponse {
    #[prost(message, repeated, tag = "1")]
    fields: Vec<Field>,
    #[prost(string, tag = "2")]
    next_page_token: String,
}

/// The fields of `google.firestore.admin.v1.Field` that matter here
/// (<https://github.com/googleapis/googleapis/blob/master/google/firestore/admin/v1/field.proto>).
#[derive(Clone, PartialEq, prost::Message)]
struct Field {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    ttl_config: Option<TtlConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TtlConfig {}

/// All collection groups, and of their fields those with a time-to-live policy
/// (<https://cloud.google.com/firestore/docs/reference/rest/v1/projects.databases.collectionGroups.fields/list>).
const ALL_GROUPS: &str = "collectionGroups/-";
const WITH_TTL: &str = "ttlConfig:*";

impl Firestore {
    /// The database's time-to-live policies; `None` where the server does not say, as emulators do not. Needs the permission
    /// `datastore.indexes.list`.
    pub async fn ttl_policies(&self) -> Result<Option<Vec<TtlPolicy>>> {
        let mut policies = Vec::new();
        let mut request = ListFieldsRequest {
            parent: format!("{}/{ALL_GROUPS}", self.inner.database.resource()),
            filter: WITH_TTL.to_owned(),
            page_token: String::new(),
        };
        loop {
            let page: ListFieldsResponse = match self.ask(Method::ListFields, None, &request).await {
                Err(Error::Unsupported { .. }) => return Ok(None),
                answer => answer?,
            };
            let with_policy = page.fields.iter().filter(|field| field.ttl_config.is_some());
            policies.extend(with_policy.filter_map(|field| policy_of(&field.name)));
            if page.next_page_token.is_empty() || page.next_page_token == request.page_token {
                return Ok(Some(policies));
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// The policy on the field of this name, `projects/…/collectionGroups/GROUP/fields/PATH`.
fn policy_of(name: &str) -> Option<TtlPolicy> {
    let (_, name) = name.split_once("/collectionGroups/")?;
    let (collection_group, field) = name.split_once("/fields/")?;
    Some(TtlPolicy {
        collection_group: collection_group.to_owned(),
        field: field.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fields_name_tells_its_group_and_path() {
        let policy = policy_of("projects/p/databases/d/collectionGroups/s/fields/a.`b/c`").unwrap();
        assert_eq!(
            (policy.collection_group.as_str(), policy.field.as_str()),
            ("s", "a.`b/c`")
        );
        assert_eq!(policy_of("projects/p/databases/d"), None);
    }
}
