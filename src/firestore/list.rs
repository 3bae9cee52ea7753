//! Lists of collections.

use std::collections::VecDeque;

use ::firestore::gcloud_sdk::google::firestore::v1::list_collection_ids_request::ConsistencySelector;
use ::firestore::gcloud_sdk::google::firestore::v1::{ListCollectionIdsRequest, ListCollectionIdsResponse};
use futures::{Stream, stream};

use super::proto::protobuf_time;
use super::{Firestore, Method, Result};
use crate::document::{DocumentPath, Timestamp};

const PAGE: i32 = 300;

struct Listing {
    firestore: Firestore,
    request: ListCollectionIdsRequest,
    read_time: Option<Timestamp>,
    ready: VecDeque<String>,
    finished: bool,
}

impl Firestore {
    /// Streams the ids of the collections below a document, or of the root collections, in the server's order (by
    /// name). A page of 300 is billed as one read.
    pub fn collection_ids(
        &self,
        parent: Option<&DocumentPath>,
        read_time: Option<Timestamp>,
    ) -> impl Stream<Item = Result<String>> + Send + 'static + use<> {
        let root = &self.inner.root;
        let listing = Listing {
            request: ListCollectionIdsRequest {
                parent: parent.map_or_else(|| root.clone(), |path| format!("{root}/{path}")),
                page_size: PAGE,
                consistency_selector: read_time
                    .map(|time| ConsistencySelector::ReadTime(protobuf_time(time))),
                ..Default::default()
            },
            firestore: self.clone(),
            read_time,
            ready: VecDeque::new(),
            finished: false,
        };
        stream::try_unfold(listing, |mut listing| async move {
            loop {
                if let Some(id) = listing.ready.pop_front() {
                    return Ok(Some((id, listing)));
                }
                if listing.finished {
                    return Ok(None);
                }
                let answer: ListCollectionIdsResponse = listing
                    .firestore
                    .ask(Method::ListCollectionIds, listing.read_time, &listing.request)
                    .await?;
                listing.firestore.inner.stats.billed(1);
                listing.finished = answer.next_page_token.is_empty();
                listing.request.page_token = answer.next_page_token;
                listing.ready = answer.collection_ids.into();
            }
        })
    }
}
